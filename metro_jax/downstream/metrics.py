# SPDX-License-Identifier: Apache-2.0
"""Metrics of classifications and regressions, by scikit-learn and SciPy."""

import math
from collections.abc import Callable, Sequence

import numpy as np

from metro_jax.errors import UserError


def _sklearn(name: str, **options) -> Callable[..., float]:
  def compute(labels: Sequence, predictions: Sequence) -> float:
    from sklearn import metrics

    return float(getattr(metrics, name)(labels, predictions, **options))

  return compute


def _f1(labels: Sequence[str], predictions: Sequence[str]) -> float:
  """Of the second class of two, as MRPC and QQP have it."""
  from sklearn import metrics

  positive = max([*labels, *predictions])
  return float(
    metrics.f1_score(labels, predictions, pos_label=positive, zero_division=0)
  )


def _correlation(name: str) -> Callable[..., float]:
  def compute(labels: Sequence[float], predictions: Sequence[float]) -> float:
    from scipy import stats

    x, y = np.asarray(labels, float), np.asarray(predictions, float)
    # A model that says the same of everything says nothing of order.
    if len(x) < 2 or np.ptp(x) == 0 or np.ptp(y) == 0:
      return 0.0 if np.isfinite(y).all() else math.nan
    return float(getattr(stats, name)(x, y).statistic)

  return compute


# labels, predictions -> number; the higher the better.
METRICS: dict[str, Callable[..., float]] = {
  'accuracy': _sklearn('accuracy_score'),
  'f1': _f1,
  'macro_f1': _sklearn('f1_score', average='macro', zero_division=0),
  'mcc': _sklearn('matthews_corrcoef'),
  'pearson': _correlation('pearsonr'),
  'spearman': _correlation('spearmanr'),
}

# Those, and what tasks with a definition of their own report.
METRIC_NAMES = (
  *METRICS,
  *('exact', 'best_f1', 'best_exact', 'f1a', 'em'),
  *('rouge1', 'rouge2', 'rougeL'),
  'median',
)


def compute(
  names: Sequence[str], labels: Sequence, predictions: Sequence
) -> dict[str, float]:
  """Scores by metric.

  Args:
    names: of `METRICS`.
    labels: what is right.
    predictions: what the model says, in the same order.
  """
  unknown = [name for name in names if name not in METRICS]
  if unknown:
    raise UserError(f'metrics: {unknown[0]!r} is none of {sorted(METRICS)}')
  return {name: METRICS[name](labels, predictions) for name in names}
