# SPDX-License-Identifier: Apache-2.0
"""Search over a model that predicts one token after the other.

The model is a step function: (token of each row, its index, cache) to (logits
of what follows, cache). The cache is the model's affair; it is None at index
0. Nothing here knows a Transformer.
"""

import functools
from collections.abc import Callable
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from flax import struct

from metro_jax import ops
from metro_jax.errors import UserError

Cache = Any
_NEVER = -1e30  # A score that no sequence has; finite, so that 0 * it is 0.


class Step(Protocol):
  """The model, bound to its parameters and to what it is conditioned on."""

  def __call__(
    self, tokens: jax.Array, index: jax.Array, cache: Cache
  ) -> tuple[jax.Array, Cache]:
    """Reads one token per row.

    Args:
      tokens: int32 [rows].
      index: int32 scalar, how many tokens came before; calls count it up.
      cache: what the call before returned; None at index 0.

    Returns:
      float32 logits [rows, vocabulary] of the next token, and the cache.
    """


@struct.dataclass
class Decoded:
  """What a search found.

  Attributes:
    tokens: int32 [rows, length] or [rows, beams, length], best first; the end
      token included where it came, 0 after it.
    scores: float32 [rows] or [rows, beams], the log-probability of the tokens;
      in a beam search divided by its length penalty.
  """

  tokens: jax.Array
  scores: jax.Array


@struct.dataclass
class _Sampling:
  index: jax.Array
  last: jax.Array
  tokens: jax.Array
  scores: jax.Array
  done: jax.Array
  cache: Cache


def sample(
  step: Step,
  start: jax.Array,
  length: int,
  end_id: int,
  *,
  temperature: float = 0.0,
  top_k: int | None = None,
  seed: jax.Array | None = None,
  rows: jax.Array | None = None,
) -> Decoded:
  """Draws each token from softmax(logits / temperature); 0 takes the best.

  Args:
    step: the model.
    start: int32 [rows], the token before the first.
    length: most tokens to draw.
    end_id: token that ends a row.
    temperature: 0 is greedy search.
    top_k: draw among the so many most likely tokens only.
    seed: uint32 scalar, needed where the temperature is not 0.
    rows: uint32 [rows]: draws depend on seed, row and index alone. None is
      0, 1, ...

  Returns:
    Tokens, and their log-probabilities under the model (at temperature 1).
  """
  _check_sampling(length, temperature, top_k, seed)
  count = start.shape[0]
  if rows is None:
    rows = jnp.arange(count, dtype=jnp.uint32)

  def choose(logits: jax.Array, index: jax.Array) -> jax.Array:
    if temperature == 0:
      return jnp.argmax(logits, axis=-1).astype(jnp.int32)
    if top_k is not None:
      least = jax.lax.top_k(logits, top_k)[0][:, -1:]
      logits = jnp.where(logits >= least, logits, _NEVER)
    now = ops.random_bits.fold(seed, index)
    logits = logits[:, None] / temperature
    return ops.sample_categorical(logits, now, rows)[:, 0]

  def advance(state: _Sampling) -> _Sampling:
    logits, cache = step(state.last, state.index, state.cache)
    token = jnp.where(state.done, 0, choose(logits, state.index))
    gain = jnp.take_along_axis(jax.nn.log_softmax(logits), token[:, None], 1)
    return _Sampling(
      state.index + 1,
      token,
      jax.lax.dynamic_update_slice_in_dim(
        state.tokens, token[:, None], state.index, axis=1
      ),
      state.scores + jnp.where(state.done, 0.0, gain[:, 0]),
      state.done | (token == end_id),
      cache,
    )

  # The first step makes the cache, whose shape the loop needs to know.
  first = _Sampling(
    index=jnp.int32(0),
    last=start.astype(jnp.int32),
    tokens=jnp.zeros((count, length), jnp.int32),
    scores=jnp.zeros(count, jnp.float32),
    done=jnp.zeros(count, bool),
    cache=None,
  )
  last = jax.lax.while_loop(
    lambda state: (state.index < length) & ~jnp.all(state.done),
    advance,
    advance(first),
  )
  return Decoded(last.tokens, last.scores)


greedy = functools.partial(sample, temperature=0.0)


def _check_sampling(length, temperature, top_k, seed) -> None:
  if length < 1:
    raise UserError(f'length: {length} tokens to generate; give 1 or more')
  if temperature < 0:
    raise UserError(f'temperature: {temperature} is negative; 0 is greedy')
  if top_k is not None and top_k < 1:
    raise UserError(f'top_k: {top_k} must be at least 1, or None')
  if temperature > 0 and seed is None:
    raise UserError('seed: sampling at a temperature over 0 needs one')


@struct.dataclass
class _Beams:
  index: jax.Array
  tokens: jax.Array
  scores: jax.Array
  finished_tokens: jax.Array
  finished_scores: jax.Array
  cache: Cache


def beam_search(
  step: Step,
  start: jax.Array,
  length: int,
  end_id: int,
  *,
  beams: int,
  reorder: Callable[[Cache, jax.Array], Cache],
  alpha: float = 0.6,
) -> Decoded:
  """Keeps the best `beams` unfinished sequences of each row at every length.

  A finished sequence of n tokens is ranked by its log-probability over
  ((5 + n) / 6)^alpha, the end token counted; alpha = 0 ranks by
  log-probability alone. A row that finishes none returns unfinished ones.

  Args:
    step: the model, for rows * beams rows; those of one row are adjacent.
    start: int32 [rows], the token before the first.
    length: most tokens of a sequence.
    end_id: token that ends a sequence.
    beams: how many sequences to keep.
    reorder: (cache, int32 [rows * beams]) to the cache of those rows.
    alpha: strength of the length penalty.

  Returns:
    [rows, beams, length] tokens, best first.
  """
  if length < 1 or beams < 1:
    raise UserError(f'beams, length: {beams}, {length}; give 1 or more of each')
  count = start.shape[0]

  def penalty(tokens: jax.Array | int) -> jax.Array:
    return ((5.0 + tokens) / 6.0) ** alpha

  def advance(state: _Beams, last: jax.Array) -> _Beams:
    logits, cache = step(last.reshape(-1), state.index, state.cache)
    gains = jax.nn.log_softmax(logits).reshape(count, beams, -1)
    # Twice as many as beams: at most half of them end here.
    scores, parent, token = _best(state.scores[..., None] + gains, 2 * beams)
    tokens = _take(state.tokens, parent)
    tokens = jnp.where(
      jnp.arange(length) == state.index, token[..., None], tokens
    )
    ends = token == end_id
    done = jnp.where(ends, scores / penalty(state.index + 1), _NEVER)
    done = jnp.where(scores > _NEVER / 2, done, _NEVER)
    finished_scores, order = jax.lax.top_k(
      jnp.concatenate([state.finished_scores, done], axis=1), beams
    )
    finished = jnp.concatenate([state.finished_tokens, tokens], axis=1)
    scores, keep = jax.lax.top_k(jnp.where(ends, _NEVER, scores), beams)
    parent = jnp.take_along_axis(parent, keep, axis=1)
    flat = parent + beams * jnp.arange(count)[:, None]
    return _Beams(
      state.index + 1,
      _take(tokens, keep),
      scores,
      _take(finished, order),
      finished_scores,
      reorder(cache, flat.reshape(-1)),
    )

  def goes_on(state: _Beams) -> jax.Array:
    # Scores only fall, so this is the best that an unfinished one can become.
    longest = penalty(length) if alpha > 0 else penalty(state.index + 1)
    hope = state.scores[:, 0] / longest
    return (state.index < length) & jnp.any(hope > state.finished_scores[:, -1])

  empty = jnp.zeros((count, beams, length), jnp.int32)
  nothing = jnp.full((count, beams), _NEVER, jnp.float32)
  # All beams hold the start token: only one of them may count.
  first = _Beams(
    jnp.int32(0), empty, nothing.at[:, 0].set(0.0), empty, nothing, None
  )
  start = jnp.repeat(start.astype(jnp.int32)[:, None], beams, axis=1)
  last = jax.lax.while_loop(
    goes_on,
    lambda state: advance(
      state,
      jax.lax.dynamic_index_in_dim(
        state.tokens, state.index - 1, axis=2, keepdims=False
      ),
    ),
    advance(first, start),
  )
  some = last.finished_scores[:, :1] > _NEVER / 2
  return Decoded(
    jnp.where(some[..., None], last.finished_tokens, last.tokens),
    jnp.where(some, last.finished_scores, last.scores / penalty(last.index)),
  )


def _best(
  scores: jax.Array, count: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """The best of [rows, beams, vocabulary]: score, beam, token [rows, count]."""
  rows, beams, size = scores.shape
  flat = scores.reshape(rows, -1)
  short = count - beams * size
  if short > 0:  # A vocabulary smaller than the beam: fill up.
    flat = jnp.pad(flat, ((0, 0), (0, short)), constant_values=_NEVER)
  best, index = jax.lax.top_k(flat, count)
  index = jnp.minimum(index, beams * size - 1)
  return best, index // size, index % size


def _take(x: jax.Array, index: jax.Array) -> jax.Array:
  """Beams `index` [rows, n] of x [rows, beams, length]."""
  return jnp.take_along_axis(x, index[..., None], axis=1)
