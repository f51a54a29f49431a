# SPDX-License-Identifier: Apache-2.0
"""Searches over a toy model whose every sequence can be listed."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special, stats

from metro_jax import decoding
from metro_jax.errors import UserError

VOCAB, LENGTH, END, START = 4, 3, 3, 1
ROWS = 5
# What follows token b at index i of row r; the row travels in the cache.
TABLE = np.random.default_rng(0).normal(0, 2, (ROWS, LENGTH, VOCAB, VOCAB))
TABLE = TABLE.astype(np.float32)


def step(tokens, index, cache, beams=1, rows=None):
  """Keeps in its cache which row this is, and what it has read so far."""
  if cache is None:
    ids = np.repeat(np.arange(ROWS) if rows is None else rows, beams)
    cache = {'row': jnp.array(ids), 'read': jnp.zeros((len(ids), LENGTH))}
  read = jax.lax.dynamic_update_slice_in_dim(
    cache['read'], tokens[:, None].astype(jnp.float32), index, axis=1
  )
  # Logits come from the cache: a wrong reordering would change them.
  last = jax.lax.dynamic_index_in_dim(read, index, axis=1, keepdims=False)
  logits = jnp.asarray(TABLE)[cache['row'], index, last.astype(jnp.int32)]
  return logits, {'row': cache['row'], 'read': read}


def take_rows(cache, rows):
  return jax.tree.map(lambda x: x[rows], cache)


def log_p(row, sequence):
  """In NumPy: log-probability of a sequence, up to and with its end."""
  total, before = 0.0, START
  for index, token in enumerate(sequence):
    total += special.log_softmax(np.float64(TABLE[row, index, before]))[token]
    before = token
  return total


def sequences():
  """All that end within LENGTH tokens."""
  inner = [t for t in range(VOCAB) if t != END]
  for n in range(LENGTH):
    for body in itertools.product(inner, repeat=n):
      yield (*body, END)


def padded(sequence):
  return [*sequence, *[0] * (LENGTH - len(sequence))]


START_TOKENS = np.full(ROWS, START, np.int32)


def test_greedy_takes_the_best_token_each_time():
  got = jax.jit(lambda s: decoding.greedy(step, s, LENGTH, END))(START_TOKENS)
  for row in range(ROWS):
    sequence, before = [], START
    while len(sequence) < LENGTH and before != END:
      before = int(TABLE[row, len(sequence), before].argmax())
      sequence.append(before)
    assert got.tokens[row].tolist() == padded(sequence)
    np.testing.assert_allclose(got.scores[row], log_p(row, sequence), rtol=1e-5)
  ended = np.any(np.asarray(got.tokens) == END, axis=1)
  assert ended.any()  # Some row stops early, which is tested above.


def test_greedy_stops_when_all_rows_have_ended():
  def only_end(tokens, index, cache):
    calls = jnp.zeros((), jnp.int32) if cache is None else cache
    jax.debug.callback(seen.append, index)
    return jnp.zeros((2, VOCAB)).at[:, END].set(9.0), calls + 1

  seen = []
  start = np.zeros(2, np.int32)
  got = jax.jit(lambda s: decoding.greedy(only_end, s, 50, END))(start)
  jax.effects_barrier()
  assert len(seen) == 1
  assert got.tokens[:, 0].tolist() == [END, END] and not got.tokens[:, 1:].any()


@pytest.fixture(scope='module')
def sampler():
  def draw(seed, rows, temperature, top_k):
    model = functools.partial(step, rows=np.zeros(len(rows), int))
    start = jnp.full(len(rows), START)
    return decoding.sample(
      model,
      start,
      LENGTH,
      END,
      temperature=temperature,
      top_k=top_k,
      seed=seed,
      rows=rows,
    )

  return jax.jit(draw, static_argnums=(2, 3))


@pytest.mark.parametrize('temperature, top_k', [(1.0, None), (0.7, 2)])
def test_samples_follow_the_distribution(sampler, temperature, top_k):
  count = 4000
  got = sampler(np.uint32(7), np.arange(count), temperature, top_k)
  tokens = np.asarray(got.tokens)

  def p(index, before):
    x = np.float64(TABLE[0, index, before]) / temperature
    if top_k:
      x = np.where(x >= np.sort(x)[-top_k], x, -np.inf)
    return special.softmax(x)

  for before in range(VOCAB):
    first = tokens[:, 0] == before
    if before == END or not first.sum():
      continue
    seen = np.bincount(tokens[first, 1], minlength=VOCAB)
    expected = p(1, before) * first.sum()
    assert not seen[expected == 0].any()
    big = expected >= 5
    cells = [np.append(x[big], x[~big].sum()) for x in (seen, expected)]
    cells = [x[: big.sum() + (cells[1][-1] > 0)] for x in cells]
    assert stats.chisquare(*cells).pvalue > 1e-3
  one = tokens[0][: 1 + int(np.argmax(tokens[0] == END))]
  one = one if END in tokens[0] else tokens[0]
  np.testing.assert_allclose(got.scores[0], log_p(0, one), rtol=1e-5)


def test_a_sample_depends_on_seed_and_row_alone(sampler):
  rows = np.arange(64)
  whole = sampler(np.uint32(7), rows, 1.0, None)
  part = sampler(np.uint32(7), rows[13:20], 1.0, None)
  np.testing.assert_array_equal(whole.tokens[13:20], part.tokens)
  other = sampler(np.uint32(8), rows, 1.0, None)
  assert np.any(whole.tokens != other.tokens)


@pytest.mark.parametrize('alpha', [0.0, 1.5])
def test_a_wide_beam_finds_the_best_of_all_sequences(alpha):
  """So many beams that nothing is ever dropped: an exhaustive search."""
  beams = 32

  def rank(row, sequence):
    return log_p(row, sequence) / ((5 + len(sequence)) / 6) ** alpha

  got = jax.jit(
    lambda start: decoding.beam_search(
      functools.partial(step, beams=beams),
      start,
      LENGTH,
      END,
      beams=beams,
      reorder=take_rows,
      alpha=alpha,
    )
  )(START_TOKENS)
  for row in range(ROWS):
    listed = sorted(sequences(), key=lambda s: -rank(row, s))
    scores = [rank(row, s) for s in listed]
    n = len(listed)  # Fewer than there are beams.
    assert n < beams
    np.testing.assert_allclose(got.scores[row, :n], scores, rtol=1e-5)
    assert got.tokens[row, :n].tolist() == [padded(s) for s in listed]
    assert (got.scores[row, n:] < -1e29).all()


def test_a_narrow_beam_is_the_textbook_algorithm():
  """Two beams, in plain Python."""
  beams, alpha = 2, 0.6
  got = jax.jit(
    lambda start: decoding.beam_search(
      functools.partial(step, beams=beams),
      start,
      LENGTH,
      END,
      beams=beams,
      reorder=take_rows,
      alpha=alpha,
    )
  )(START_TOKENS)
  for row in range(ROWS):
    live, finished = [()], []
    for n in range(1, LENGTH + 1):
      grown = [(*s, t) for s in live for t in range(VOCAB)]
      grown.sort(key=lambda s: -log_p(row, s))
      grown = grown[: 2 * beams]
      penalty = ((5 + n) / 6) ** alpha
      finished += [(log_p(row, s) / penalty, s) for s in grown if s[-1] == END]
      live = [s for s in grown if s[-1] != END][:beams]
    best = sorted(finished, reverse=True)[:beams]
    assert got.tokens[row].tolist() == [padded(s) for _, s in best]
    np.testing.assert_allclose(
      got.scores[row], [score for score, _ in best], rtol=1e-5
    )


def test_a_row_that_never_ends_returns_what_there_is():
  def endless(tokens, index, cache):
    logits, cache = step(tokens, index, cache, beams=2)
    return logits.at[:, END].set(-jnp.inf), cache

  got = decoding.beam_search(
    endless, START_TOKENS, LENGTH, END, beams=2, reorder=take_rows, alpha=0.0
  )
  tokens = np.asarray(got.tokens)
  assert (tokens != END).all() and (got.scores[:, 0] >= got.scores[:, 1]).all()

  def without_end(row, sequence):
    total, before = 0.0, START
    for index, token in enumerate(sequence):
      x = np.float64(TABLE[row, index, before])
      total += special.log_softmax(x[:END])[token]
      before = token
    return total

  want = [without_end(row, tokens[row, 0]) for row in range(ROWS)]
  np.testing.assert_allclose(got.scores[:, 0], want, rtol=1e-5)


@pytest.mark.parametrize(
  'options, says',
  [
    ({'temperature': -1.0}, 'temperature'),
    ({'temperature': 1.0}, 'seed'),
    ({'temperature': 1.0, 'top_k': 0, 'seed': 1}, 'top_k'),
    ({'length': 0}, 'length'),
  ],
)
def test_impossible_searches_are_refused(options, says):
  arguments = {'length': LENGTH, 'end_id': END} | options
  with pytest.raises(UserError, match=f'^{says}'):
    decoding.sample(step, START_TOKENS, **arguments)
