# SPDX-License-Identifier: Apache-2.0
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn import metrics as sklearn_metrics

from metro_jax import metrics
from metro_jax.metrics import BinaryHistogram, Mean


def examples(size: int = 2000, seed: int = 0):
  rng = np.random.default_rng(seed)
  positive = rng.random(size) < 0.85
  logits = rng.normal(size=size) * 3 + 2 * positive
  weights = rng.random(size) < 0.9
  return logits.astype(np.float32), positive, weights


def test_mean_is_a_ratio_of_sums():
  a = Mean.of(jnp.array([1.0, 5.0]), jnp.array([1.0, 0.0]))
  b = Mean.of(jnp.array([2.0, 4.0, 6.0]), jnp.ones(3))
  assert a.compute() == 1.0
  assert metrics.merge(a, b).compute() == pytest.approx(13 / 4)


def test_mean_of_nothing_is_nan():
  assert np.isnan(Mean.of(jnp.ones(3), jnp.zeros(3)).compute())


def test_means_carry_no_gradient():
  grad = jax.grad(lambda x: Mean.of(x, x).total + 0 * x.sum())(jnp.ones(3))
  assert not grad.any()


def test_auc_equals_scikit_learn_on_binned_scores():
  """With one score per bin the histogram loses nothing."""
  logits, positive, weights = examples()
  # Centres of the bins: halves of 1/16 steps.
  logits = (np.floor(logits * 16) + 0.5) / 16
  ours = BinaryHistogram.of(logits, positive, weights).compute()
  theirs = sklearn_metrics.roc_auc_score(positive[weights], logits[weights])
  assert ours == pytest.approx(theirs, abs=1e-12)


def test_auc_is_within_the_bins_resolution_on_any_scores():
  logits, positive, weights = examples()
  histogram = BinaryHistogram.of(logits, positive, weights)
  theirs = sklearn_metrics.roc_auc_score(positive[weights], logits[weights])
  p, n = (np.asarray(x) for x in (histogram.positive, histogram.negative))
  # Only pairs within one bin can be ordered wrongly, and each counts half.
  bound = np.sum(p * n) / 2 / (p.sum() * n.sum())
  assert bound < 0.01
  assert abs(histogram.compute() - theirs) <= bound


def test_auc_of_extreme_scores():
  logits = jnp.array([-1e4, -20.0, 20.0, 1e4])
  positive = jnp.array([False, False, True, True])
  assert BinaryHistogram.of(logits, positive, jnp.ones(4)).compute() == 1.0
  assert BinaryHistogram.of(-logits, positive, jnp.ones(4)).compute() == 0.0


def test_auc_without_one_of_the_classes_is_nan():
  histogram = BinaryHistogram.of(jnp.ones(4), jnp.ones(4, bool), jnp.ones(4))
  assert np.isnan(histogram.compute())


def test_metrics_of_parts_add_up_to_those_of_the_whole():
  logits, positive, weights = examples()

  def of(part):
    x, y, w = logits[part], positive[part], weights[part]
    return {'auc': BinaryHistogram.of(x, y, w), 'mean': Mean.of(x, w)}

  parts = metrics.merge(of(slice(0, 700)), of(slice(700, None)))
  whole = metrics.compute(of(slice(None)))
  merged = metrics.compute(parts)
  assert merged['auc'] == whole['auc']  # Counts of whole numbers.
  assert merged['mean'] == pytest.approx(whole['mean'], rel=1e-5)
