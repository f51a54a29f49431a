# SPDX-License-Identifier: Apache-2.0
"""Curricula of Fast-ELECTRA: an auxiliary that is made worse, less and less.

A schedule is a function gamma(u) of the fraction u of training that has
passed. An augmentation takes gamma to something about a fixed auxiliary: its
logits, its dropout, or the tokens that it reads.
"""

import dataclasses
from collections.abc import Callable
from typing import ClassVar, Protocol

import jax
import jax.numpy as jnp

from metro_jax import ops
from metro_jax.errors import UserError
from metro_jax.modules import Dropout
from metro_jax.pretrain.corruption import MaskedTokens

_UNKNOWN = 1
_SPECIALS = 5  # The ids below: [PAD] [UNK] [CLS] [SEP] [MASK].

Schedule = Callable[[jax.Array | float], jax.Array]


def _positive(value: float, parameter: str) -> None:
  if not value > 0:
    raise UserError(f'{parameter}: {value} must be over 0')


@dataclasses.dataclass(frozen=True)
class Constant:
  """gamma(u) = peak.

  Attributes:
    peak: the value.
  """

  peak: float = 1.0

  def __call__(self, progress: jax.Array | float) -> jax.Array:
    """float32 scalar."""
    return jnp.full(jnp.shape(progress), self.peak, jnp.float32)


@dataclasses.dataclass(frozen=True)
class ExponentialDecay:
  """gamma(u) = peak exp(-u / rate): equation 2, where T = 1 + gamma.

  Attributes:
    peak: at the start; T_0 - 1 of the paper.
    rate: tau; the smaller, the sooner gamma is gone.
  """

  peak: float = 1.0
  rate: float = 0.1

  def __post_init__(self):
    _positive(self.rate, 'ExponentialDecay.rate')

  def __call__(self, progress: jax.Array | float) -> jax.Array:
    """float32 scalar."""
    return self.peak * jnp.exp(-jnp.asarray(progress, jnp.float32) / self.rate)


EXPONENTIAL = ExponentialDecay()


@dataclasses.dataclass(frozen=True)
class PolynomialDecay:
  """gamma(u) = peak (1 - u)^power.

  Attributes:
    peak: at the start.
    power: tau; the greater, the faster the decay.
  """

  peak: float = 1.0
  power: float = 1.0

  def __post_init__(self):
    _positive(self.power, 'PolynomialDecay.power')

  def __call__(self, progress: jax.Array | float) -> jax.Array:
    """float32 scalar."""
    left = 1.0 - jnp.asarray(progress, jnp.float32)
    return self.peak * jnp.maximum(left, 0.0) ** self.power


@dataclasses.dataclass(frozen=True)
class StepwiseDecay:
  """gamma(u) = peak (1 - floor(u steps) / steps).

  Attributes:
    peak: at the start.
    steps: tau, how many decays there are; the last is at the very end.
  """

  peak: float = 1.0
  steps: int = 4

  def __post_init__(self):
    _positive(self.steps, 'StepwiseDecay.steps')

  def __call__(self, progress: jax.Array | float) -> jax.Array:
    """float32 scalar."""
    done = jnp.floor(jnp.asarray(progress, jnp.float32) * self.steps)
    return self.peak * (1.0 - done / self.steps)


class Augmentation(Protocol):
  """What gamma does to an auxiliary.

  Attributes:
    schedule: gamma.
    changes_pass: whether `tokens` or `dropout` does anything, so that the
      proposal needs a pass of its own.
  """

  schedule: Schedule
  changes_pass: ClassVar[bool]

  def tokens(
    self, masked: MaskedTokens, gamma: jax.Array, seed: jax.Array
  ) -> jax.Array:
    """What the auxiliary reads, int32 [batch, length]."""

  def dropout(self, masked: MaskedTokens, gamma: jax.Array) -> Dropout | None:
    """What the auxiliary drops."""

  def logits(self, logits: jax.Array, gamma: jax.Array) -> jax.Array:
    """What is sampled from, float32 [batch, slots, vocabulary]."""


class _Nothing:
  """The hooks of an augmentation that does nothing."""

  changes_pass: ClassVar[bool] = False

  def tokens(
    self, masked: MaskedTokens, gamma: jax.Array, seed: jax.Array
  ) -> jax.Array:
    """See `Augmentation`."""
    del gamma, seed
    return masked.tokens

  def dropout(self, masked: MaskedTokens, gamma: jax.Array) -> Dropout | None:
    """See `Augmentation`."""
    del masked, gamma
    return None

  def logits(self, logits: jax.Array, gamma: jax.Array) -> jax.Array:
    """See `Augmentation`."""
    del gamma
    return logits


@dataclasses.dataclass(frozen=True)
class Temperature(_Nothing):
  """softmax(logits / (1 + gamma)): equation 1.

  Attributes:
    schedule: of gamma = T - 1.
  """

  schedule: Schedule = EXPONENTIAL

  def logits(self, logits: jax.Array, gamma: jax.Array) -> jax.Array:
    """See `Augmentation`."""
    return logits / (1.0 + gamma)


@dataclasses.dataclass(frozen=True)
class Interpolate(_Nothing):
  """p^(1 - gamma) times easy^gamma: logarithmic interpolation (appendix E.2).

  Attributes:
    easy: its `log_probabilities` [vocabulary]: `TermFrequency`.
    schedule: of gamma, 0..1.
  """

  easy: 'HasLogProbabilities'
  schedule: Schedule = EXPONENTIAL

  def logits(self, logits: jax.Array, gamma: jax.Array) -> jax.Array:
    """See `Augmentation`."""
    easy = self.easy.log_probabilities(logits.shape[-1])
    return log_interpolate(logits, easy, gamma)


class HasLogProbabilities(Protocol):
  """A distribution over the vocabulary that is the same everywhere."""

  def log_probabilities(self, size: int) -> jax.Array:
    """float32 [size]."""


@dataclasses.dataclass(frozen=True)
class AuxiliaryDropout(_Nothing):
  """Dropout in the auxiliary at rate gamma.

  Attributes:
    kind: 'hidden' for all of its layers of hidden states ("Dropout"),
      'attention' for attention probabilities ("Drop attention").
    schedule: of gamma, 0..1.
  """

  kind: str = 'hidden'
  schedule: Schedule = ExponentialDecay(peak=0.5)
  changes_pass: ClassVar[bool] = True

  def __post_init__(self):
    if self.kind not in ('hidden', 'attention'):
      raise UserError(
        f"AuxiliaryDropout.kind: {self.kind!r} is neither 'hidden' nor"
        " 'attention'"
      )

  def dropout(self, masked: MaskedTokens, gamma: jax.Array) -> Dropout | None:
    """See `Augmentation`."""
    return Dropout(rows=masked.row_ids, **{self.kind: gamma})


@dataclasses.dataclass(frozen=True)
class DropToken(_Nothing):
  """Each token that is not special becomes [UNK] with probability gamma.

  Attributes:
    schedule: of gamma, 0..1.
  """

  schedule: Schedule = ExponentialDecay(peak=0.5)
  changes_pass: ClassVar[bool] = True

  def tokens(
    self, masked: MaskedTokens, gamma: jax.Array, seed: jax.Array
  ) -> jax.Array:
    """See `Augmentation`."""
    position = jnp.arange(masked.tokens.shape[1], dtype=jnp.uint32)
    kept = ops.random_bits.keep(
      gamma, seed, masked.row_ids[:, None], position, jnp.uint32(0)
    )
    return jnp.where(
      kept | (masked.tokens < _SPECIALS), masked.tokens, _UNKNOWN
    )


def log_interpolate(
  hard: jax.Array, easy: jax.Array, gamma: jax.Array
) -> jax.Array:
  """Logits of p_easy^gamma p_hard^(1 - gamma), up to a constant.

  Args:
    hard: logits [..., vocabulary].
    easy: logits, broadcastable to them.
    gamma: 0 is hard, 1 is easy.

  Returns:
    float32 [..., vocabulary].
  """
  return (1.0 - gamma) * hard + gamma * easy
