# SPDX-License-Identifier: Apache-2.0
"""One pass over the vocabulary, a block of logits at a time.

A block has its tokens along one axis and its vocabulary along the other; per
token there is a running summary, of size 1 along the vocabulary's axis.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from pallas_kernels import random_bits

# Logit of ids past the end: finite, so that it subtracts without a NaN.
NOWHERE = -1e30
NO_ID = 2**30


class Summary(NamedTuple):
  """What is kept of the logits of a token.

  Attributes:
    peak: largest logit.
    total: sum of exp(logit - peak).
    at_target: logit of the target, 0 while it was not met.
    best: id of the largest logit, the lowest among equals.
    noisy_peak: largest logit after adding noise; None without sampling.
    sample: its id, which is a draw from the softmax.
  """

  peak: jax.Array
  total: jax.Array
  at_target: jax.Array
  best: jax.Array
  noisy_peak: jax.Array | None = None
  sample: jax.Array | None = None


def start(shape: tuple[int, ...], sampling: bool) -> Summary:
  """Of no logits at all."""

  def full(value, dtype=jnp.float32):
    return jnp.full(shape, value, dtype)

  summary = Summary(full(NOWHERE), full(0.0), full(0.0), full(0, jnp.int32))
  if sampling:
    summary = summary._replace(noisy_peak=full(NOWHERE))
    summary = summary._replace(sample=full(0, jnp.int32))
  return summary


def update(
  summary: Summary,
  x: jax.Array,
  ids: jax.Array,
  targets: jax.Array,
  keys: jax.Array | None,
  cold: jax.Array | None,
  axis: int,
) -> Summary:
  """Adds a block of logits.

  Args:
    summary: of the ids below these.
    x: float32 [tokens, ids] or [ids, tokens], NOWHERE past the vocabulary.
    ids: int32, of x's shape or size 1 along tokens.
    targets: int32, size 1 along ids.
    keys: uint32, `random_bits.row_key` of each token, size 1 along ids; None
      draws no sample.
    cold: float32, 1 / temperature.
    axis: of x along which the ids are.

  Returns:
    The summary with these ids.
  """
  peak, best = _argmax(x, ids, axis)
  new = jnp.maximum(summary.peak, peak)
  here = jnp.sum(jnp.exp(x - new), axis=axis, keepdims=True)
  hit = jnp.where(ids == targets, x, 0.0)
  out = Summary(
    peak=new,
    total=summary.total * jnp.exp(summary.peak - new) + here,
    at_target=summary.at_target + jnp.sum(hit, axis=axis, keepdims=True),
    best=jnp.where(peak > summary.peak, best, summary.best),
  )
  if keys is None:
    return out
  noise = random_bits.gumbel(random_bits.mix(keys + ids.astype(jnp.uint32)))
  noisy = jnp.where(x > NOWHERE, x * cold + noise, NOWHERE)
  peak, sample = _argmax(noisy, ids, axis)
  return out._replace(
    noisy_peak=jnp.maximum(summary.noisy_peak, peak),
    sample=jnp.where(peak > summary.noisy_peak, sample, summary.sample),
  )


def gradient(
  x: jax.Array,
  ids: jax.Array,
  targets: jax.Array,
  lse: jax.Array,
  d_loss: jax.Array,
  d_sum: jax.Array,
) -> jax.Array:
  """Cotangent of a block of logits; arguments as in `update`.

  Args:
    x: logits, NOWHERE past the vocabulary.
    ids: of the block.
    targets: of the tokens.
    lse: log-sum-exp of each token.
    d_loss: cotangent of the loss.
    d_sum: cotangent of the loss plus that of the log-sum-exp.

  Returns:
    float32, of x's shape, 0 past the vocabulary.
  """
  return jnp.exp(x - lse) * d_sum - jnp.where(ids == targets, d_loss, 0.0)


def combine(parts: Summary) -> Summary:
  """One summary from those of consecutive parts of the vocabulary.

  Args:
    parts: fields [parts, tokens].

  Returns:
    Fields [tokens].
  """
  peak = jnp.max(parts.peak, axis=0)
  total = jnp.sum(parts.total * jnp.exp(parts.peak - peak), axis=0)
  best = _pick(parts.peak, parts.best)
  out = Summary(peak, total, jnp.sum(parts.at_target, axis=0), best)
  if parts.sample is None:
    return out
  return out._replace(
    noisy_peak=jnp.max(parts.noisy_peak, axis=0),
    sample=_pick(parts.noisy_peak, parts.sample),
  )


def _argmax(x, ids, axis):
  peak = jnp.max(x, axis=axis, keepdims=True)
  best = jnp.min(jnp.where(x == peak, ids, NO_ID), axis=axis, keepdims=True)
  return peak, best


def _pick(value, ids):
  """Ids [parts, tokens] of the first part with the largest value."""
  first = jnp.argmax(value, axis=0)[None]
  return jnp.take_along_axis(ids, first, axis=0)[0]
