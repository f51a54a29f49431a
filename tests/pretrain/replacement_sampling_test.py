# SPDX-License-Identifier: Apache-2.0
"""Samplers against the distributions they are to draw from."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from metro_jax import losses, ops
from metro_jax.pretrain import Categorical, Gumbel

VOCAB = 300  # No multiple of a block.
ROWS, SLOTS = 512, 40


def distribution() -> np.ndarray:
  rng = np.random.default_rng(0)
  logits = rng.normal(0, 2, VOCAB)
  logits[7] = -np.inf
  p = np.exp(logits - logits.max())
  return p / p.sum()


def draw(sampler, seed: int = 1, rows: np.ndarray | None = None) -> np.ndarray:
  rows = np.arange(ROWS, dtype=np.uint32) if rows is None else rows
  logits = jnp.log(jnp.asarray(distribution(), jnp.float32))
  logits = jnp.broadcast_to(logits, (len(rows), SLOTS, VOCAB))
  return np.asarray(jax.jit(sampler)(logits, jnp.uint32(seed), rows).ids)


def p_value(ids: np.ndarray, p: np.ndarray) -> float:
  """Of a chi-square test; ids expected fewer than 5 times share a cell."""
  expected = p * ids.size
  observed = np.bincount(ids.ravel(), minlength=p.size)
  rare = expected < 5
  cells = [np.append(x[~rare], x[rare].sum()) for x in (observed, expected)]
  return stats.chisquare(*cells).pvalue


@pytest.fixture(scope='module', params=[Categorical(), Gumbel()], ids=repr)
def ids(request) -> np.ndarray:
  return draw(request.param)


def test_distribution(ids):
  p = distribution()
  assert p_value(ids, p) > 1e-3
  assert not (ids == 7).any()
  # The test can tell: a temperature of 1.1 does not pass.
  warmer = p ** (1 / 1.1)
  assert p_value(ids, warmer / warmer.sum()) < 1e-6


def test_draws_are_independent_of_each_other(ids):
  """Chi-square of neighbours, each within the likelier half or not."""
  p = distribution()
  order = np.argsort(p)[::-1]
  heavy = np.isin(ids, order[: np.searchsorted(np.cumsum(p[order]), 0.5)])
  for a, b in ((heavy[:, 1:], heavy[:, :-1]), (heavy[1:], heavy[:-1])):
    table = [[np.sum((a == i) & (b == j)) for j in (0, 1)] for i in (0, 1)]
    assert stats.chi2_contingency(table).pvalue > 1e-3


@pytest.mark.parametrize('sampler', [Categorical(), Gumbel()], ids=repr)
def test_draws_follow_the_row_not_its_place(sampler):
  whole = draw(sampler)
  some = np.array([400, 3, 77, 5], np.uint32)
  np.testing.assert_array_equal(draw(sampler, rows=some), whole[some])
  assert (draw(sampler, seed=2) != whole).any()


@pytest.mark.parametrize('sampler', [Categorical(), Gumbel()], ids=repr)
def test_no_gradient_crosses(sampler):
  def total(logits):
    sample = sampler(logits, jnp.uint32(0), jnp.arange(2, dtype=jnp.uint32))
    assert sample.relaxed is None
    return jnp.sum(sample.ids.astype(jnp.float32)) + 0.0 * jnp.sum(logits)

  logits = jnp.asarray(np.random.default_rng(0).normal(size=(2, 3, 10)))
  assert not np.asarray(jax.grad(total)(logits)).any()


def test_a_draw_that_rides_along_is_the_samplers_own():
  """And the loss beside it is the loss; no gradient but the loss's."""
  x = jnp.asarray(np.random.default_rng(0).normal(size=(4, 5, 30)), jnp.float32)
  targets = jnp.arange(20).reshape(4, 5)
  rows = jnp.array([3, 1, 4, 0], jnp.uint32)
  seed = jnp.uint32(2)

  @jax.jit
  def run(x):
    def total(x):
      logits = ops.TokenLogits(x, jnp.eye(30))
      loss, ids = losses.sampled_cross_entropy(logits, targets, seed, rows)
      return jnp.sum(loss.loss), (loss, ids)

    return jax.grad(total, has_aux=True)(x)

  g, (loss, ids) = run(x)
  np.testing.assert_array_equal(ids, Gumbel()(x, seed, rows).ids)
  log_p = jax.nn.log_softmax(x)
  want = -jnp.take_along_axis(log_p, targets[..., None], -1)[..., 0]
  np.testing.assert_allclose(loss.loss, want, rtol=1e-5)
  one_hot = np.eye(30)[np.asarray(targets)]
  np.testing.assert_allclose(g, np.exp(log_p) - one_hot, atol=1e-6)
