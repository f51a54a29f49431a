# SPDX-License-Identifier: Apache-2.0
"""Replacements without an auxiliary model (Fast-ELECTRA appendices D.1, E.3).

Each stands in the place of an auxiliary, has no parameters, and costs no pass
of a Transformer.
"""

import dataclasses
from collections.abc import Callable, Collection, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from metro_jax.errors import UserError
from metro_jax.modules import Embedder
from metro_jax.pretrain.corruption import MaskedTokens
from metro_jax.pretrain.curriculum import (
  EXPONENTIAL,
  Schedule,
  log_interpolate,
)
from metro_jax.pretrain.proposal import Proposal

_NEVER = -1e9


class _Distribution:
  """The `AuxiliaryModel` that samples from `logits`."""

  def __call__(
    self,
    masked: MaskedTokens,
    embedder: Embedder,
    share: Collection[str] = (),
    progress: jax.Array | float = 1.0,
    train: bool = False,
  ) -> Proposal:
    """See `AuxiliaryModel`."""
    del share, train
    size = embedder.config.vocab_size
    return Proposal(
      sampled_from=self.logits(masked, size, progress),
      gamma=self.gamma(progress),
    )

  def gamma(self, progress: jax.Array | float) -> jax.Array | None:
    """Where the curriculum is, if there is one."""
    del progress

  def logits(
    self, masked: MaskedTokens, size: int, progress: jax.Array | float
  ) -> jax.Array:
    """float32 [batch, slots, size], over a vocabulary of `size`."""
    raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class Uniform(_Distribution):
  """Every id of the vocabulary alike."""

  def log_probabilities(self, size: int) -> jax.Array:
    """float32 [size]."""
    return jnp.full((size,), -np.log(size), jnp.float32)

  def logits(
    self, masked: MaskedTokens, size: int, progress: jax.Array | float
  ) -> jax.Array:
    """See `_Distribution`."""
    del progress
    shape = (*masked.weights.shape, size)
    return jnp.broadcast_to(self.log_probabilities(size), shape)


@dataclasses.dataclass(frozen=True)
class TermFrequency(_Distribution):
  """Ids as often as they are in the training text.

  Attributes:
    counts: of each id, or a function that returns them when they are needed;
      ids beyond have count 0.
  """

  counts: Sequence[float] | Callable[[], Sequence[float]]

  def log_probabilities(self, size: int) -> jax.Array:
    """float32 [size]; very small, but finite, where the count is 0."""
    counts = self.counts() if callable(self.counts) else self.counts
    counts = np.asarray(counts, np.float64)
    if len(counts) > size or counts.min() < 0 or not counts.any():
      raise UserError(
        f'TermFrequency.counts: {len(counts)} counts of a vocabulary of'
        f' {size} must be no more than that, and positive'
      )
    counts = np.pad(counts, (0, size - len(counts)))
    # Not -inf: times a gamma of 0 it would not be a number.
    with np.errstate(divide='ignore'):
      logs = np.maximum(np.log(counts / counts.sum()), _NEVER)
    return jnp.asarray(logs, jnp.float32)

  def logits(
    self, masked: MaskedTokens, size: int, progress: jax.Array | float
  ) -> jax.Array:
    """See `_Distribution`."""
    del progress
    shape = (*masked.weights.shape, size)
    return jnp.broadcast_to(self.log_probabilities(size), shape)


@dataclasses.dataclass(frozen=True)
class SmoothedOneHot(_Distribution):
  """The original with probability 1 - alpha, else any other id alike.

  Attributes:
    alpha: 0.35 is the error rate of a typical auxiliary.
  """

  alpha: float = 0.35

  def __post_init__(self):
    if not 0 < self.alpha < 1:
      raise UserError(f'SmoothedOneHot.alpha: {self.alpha} is not in (0, 1)')

  def logits(
    self, masked: MaskedTokens, size: int, progress: jax.Array | float
  ) -> jax.Array:
    """See `_Distribution`."""
    del progress
    hit = masked.targets[..., None] == jnp.arange(size)
    miss = np.float32(np.log(self.alpha / (size - 1)))
    return jnp.where(hit, np.float32(np.log1p(-self.alpha)), miss)


@dataclasses.dataclass(frozen=True)
class Interpolated(_Distribution):
  """From an easy distribution to a hard one: easy^gamma hard^(1 - gamma).

  Attributes:
    hard: `SmoothedOneHot`.
    easy: `Uniform` (UNF -> SOH) or `TermFrequency` (TF -> SOH).
    schedule: of gamma, from 1 to 0.
  """

  hard: _Distribution = SmoothedOneHot()
  easy: _Distribution = Uniform()
  schedule: Schedule = EXPONENTIAL

  def gamma(self, progress: jax.Array | float) -> jax.Array | None:
    """See `_Distribution`."""
    return self.schedule(progress)

  def logits(
    self, masked: MaskedTokens, size: int, progress: jax.Array | float
  ) -> jax.Array:
    """See `_Distribution`."""
    hard, easy = (
      part.logits(masked, size, progress) for part in (self.hard, self.easy)
    )
    gamma = self.schedule(progress)
    return log_interpolate(hard, easy, gamma)
