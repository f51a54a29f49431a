# SPDX-License-Identifier: Apache-2.0
"""How a task is put to a model: its head, its loss, and what it predicts.

A formulation says how far two predictions are apart, too, so that posterior
differential regularisation needs to know nothing of tasks.
"""

import dataclasses
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from flax import linen as nn

from metro_jax.finetune import heads
from metro_jax.modules import TransformerConfig

_NEVER = -1e9  # The logit of what cannot be; its probability is exactly 0.


class Formulation(Protocol):
  """A kind of task."""

  def head(
    self, config: TransformerConfig, dropout_rate: float, name: str
  ) -> nn.Module:
    """The task layer: (h [rows, length, embed_dim], dropout) -> scores."""

  def logits(self, scores: jax.Array, batch: Any) -> jax.Array:
    """Scores of rows as predictions of examples [batch, ...]."""

  def loss(self, logits: jax.Array, labels: jax.Array) -> jax.Array:
    """float32 [batch] for labels float32 [batch] or [batch, numbers]."""

  def divergence(self, p: jax.Array, q: jax.Array) -> jax.Array:
    """float32 [batch], how far two predictions (logits) are apart."""

  def correct(self, logits: jax.Array, labels: jax.Array) -> jax.Array | None:
    """Bool [batch], whether the prediction is right; None if it has degrees."""


@dataclasses.dataclass(frozen=True)
class Classification:
  """One of several classes, for a sentence or a pair.

  Attributes:
    classes: how many.
    activation: of the task layer, 'tanh' or 'gelu'.
  """

  classes: int = 2
  activation: str = 'tanh'

  def head(
    self, config: TransformerConfig, dropout_rate: float, name: str
  ) -> nn.Module:
    """One score a class."""
    return heads.SentenceHead(
      config, self.classes, dropout_rate, self.activation, name=name
    )

  def logits(self, scores: jax.Array, batch: Any) -> jax.Array:
    """[batch, classes]."""
    del batch
    return scores

  def loss(self, logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Cross entropy; labels are class numbers."""
    return _cross_entropy(logits, labels)

  def divergence(self, p: jax.Array, q: jax.Array) -> jax.Array:
    """Symmetric KL divergence."""
    return symmetric_kl(p, q)

  def correct(self, logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Whether the class with the highest score is the label."""
    return jnp.argmax(logits, axis=-1) == labels.astype(jnp.int32)


@dataclasses.dataclass(frozen=True)
class Regression:
  """A number, for a sentence or a pair; labels lie in 0..1."""

  def head(
    self, config: TransformerConfig, dropout_rate: float, name: str
  ) -> nn.Module:
    """One score: the number itself."""
    return heads.SentenceHead(config, 1, dropout_rate, name=name)

  def logits(self, scores: jax.Array, batch: Any) -> jax.Array:
    """[batch], the predicted numbers."""
    del batch
    return scores[:, 0]

  def loss(self, logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Squared error."""
    return jnp.square(logits - labels)

  def divergence(self, p: jax.Array, q: jax.Array) -> jax.Array:
    """Squared difference."""
    return jnp.square(p - q)

  def correct(self, logits: jax.Array, labels: jax.Array) -> None:
    """A number is near or far, not right or wrong."""
    return None


@dataclasses.dataclass(frozen=True)
class Ranking:
  """The best of several rows; one score a row, a softmax over rows."""

  def head(
    self, config: TransformerConfig, dropout_rate: float, name: str
  ) -> nn.Module:
    """One score."""
    return heads.SentenceHead(config, 1, dropout_rate, name=name)

  def logits(self, scores: jax.Array, batch: Any) -> jax.Array:
    """[batch, choices]."""
    return scores.reshape(batch['encoder_input_tokens'].shape[:2])

  def loss(self, logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Cross entropy; labels are the numbers of the best choices."""
    return _cross_entropy(logits, labels)

  def divergence(self, p: jax.Array, q: jax.Array) -> jax.Array:
    """Symmetric KL divergence."""
    return symmetric_kl(p, q)

  def correct(self, logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Whether the highest score is the best choice's."""
    return jnp.argmax(logits, axis=-1) == labels.astype(jnp.int32)


@dataclasses.dataclass(frozen=True)
class Spans:
  """First and last token of an answer; both are [CLS] where there is none."""

  def head(
    self, config: TransformerConfig, dropout_rate: float, name: str
  ) -> nn.Module:
    """Two scores a token."""
    return heads.SpanHead(config, dropout_rate, name=name)

  def logits(self, scores: jax.Array, batch: Any) -> jax.Array:
    """[batch, 2, length]; tokens outside `span_candidates` cannot be."""
    possible = batch['span_candidates'][:, None] > 0
    return jnp.where(possible, scores, _NEVER)

  def loss(self, logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Mean cross entropy of first and last; labels [batch, 2] are positions."""
    return jnp.mean(_cross_entropy(logits, labels), axis=-1)

  def divergence(self, p: jax.Array, q: jax.Array) -> jax.Array:
    """Symmetric KL divergence, the mean of both ends."""
    return jnp.mean(symmetric_kl(p, q), axis=-1)

  def correct(self, logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Whether both ends are right."""
    right = jnp.argmax(logits, axis=-1) == labels.astype(jnp.int32)
    return jnp.all(right, axis=-1)


# By the names that tasks give.
FORMULATIONS = {
  'classification': Classification,
  'regression': Regression,
  'ranking': Ranking,
  'span': Spans,
}


def symmetric_kl(p: jax.Array, q: jax.Array) -> jax.Array:
  """KL(p || q) + KL(q || p) of logits [..., classes], float32 [...]."""
  log_p, log_q = jax.nn.log_softmax(p), jax.nn.log_softmax(q)
  return jnp.sum((jnp.exp(log_p) - jnp.exp(log_q)) * (log_p - log_q), axis=-1)


def _cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
  index = labels.astype(jnp.int32)[..., None]
  log_p = jax.nn.log_softmax(logits)
  return -jnp.take_along_axis(log_p, index, axis=-1)[..., 0]
