# SPDX-License-Identifier: Apache-2.0
"""Metrics as sums: they merge by addition, and divide only when read.

Addition works over microbatches, devices, steps and hosts alike, so a metric
of a window is the metric of all its tokens, not a mean of means.
"""

from collections.abc import Mapping
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

T = TypeVar('T')

# Scores beyond +-_RANGE share the outermost bins.
_BINS = 512
_RANGE = 16.0


@struct.dataclass
class Mean:
  """A ratio of sums.

  Attributes:
    total: float32 scalar, the sum of values times weights.
    count: float32 scalar, the sum of weights.
  """

  total: jax.Array
  count: jax.Array

  @classmethod
  def of(cls, values: jax.Array, weights: jax.Array) -> 'Mean':
    """Mean of `values` [...] weighted by `weights` [...], bool or number."""
    values, weights = (
      jax.lax.stop_gradient(x).astype(jnp.float32) for x in (values, weights)
    )
    return cls(jnp.sum(values * weights), jnp.sum(weights))

  def compute(self) -> float:
    """The mean; NaN if nothing was counted."""
    total, count = float(self.total), float(self.count)
    return total / count if count else float('nan')


@struct.dataclass
class BinaryHistogram:
  """Scores of two classes in bins, from which the area under the ROC curve.

  Bins are equal steps of the logit: a detector's probabilities crowd at 0
  and 1, its logits do not.

  Attributes:
    positive: float32 [bins], how many positive examples scored there.
    negative: float32 [bins].
  """

  positive: jax.Array
  negative: jax.Array

  @classmethod
  def of(
    cls, logits: jax.Array, positive: jax.Array, weights: jax.Array
  ) -> 'BinaryHistogram':
    """Counts examples.

    Args:
      logits: scores [...].
      positive: bool [...], the class.
      weights: [...], bool or number; 0 leaves an example out.

    Returns:
      The two histograms.
    """
    logits = jax.lax.stop_gradient(logits).astype(jnp.float32)
    place = (logits + _RANGE) * (_BINS / (2 * _RANGE))
    index = jnp.clip(place, 0, _BINS - 1).astype(jnp.int32)
    # One scatter for both classes: the negative ones lie behind.
    index = jnp.where(positive, index, index + _BINS)
    counts = jnp.zeros(2 * _BINS, jnp.float32)
    counts = counts.at[index.ravel()].add(weights.astype(jnp.float32).ravel())
    return cls(counts[:_BINS], counts[_BINS:])

  def compute(self) -> float:
    """P(a positive scores above a negative); ties within a bin count half.

    NaN if one of the classes is empty.
    """
    positive = np.asarray(self.positive, np.float64)
    negative = np.asarray(self.negative, np.float64)
    pairs = positive.sum() * negative.sum()
    below = np.cumsum(negative) - negative
    above = np.sum(positive * (below + negative / 2))
    return float(above / pairs) if pairs else float('nan')


def merge(a: T, b: T) -> T:
  """Metrics of two parts as those of the whole; any tree of metrics."""
  return jax.tree.map(lambda x, y: x + y, a, b)


def compute(metrics: Mapping[str, Any]) -> dict[str, float]:
  """Plain numbers by name."""
  return {
    name: metric.compute() for name, metric in jax.device_get(metrics).items()
  }
