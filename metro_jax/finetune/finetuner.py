# SPDX-License-Identifier: Apache-2.0
"""A pretrained encoder with a head for each task, as a module.

X --embedder--> x --main--> H --heads--> predictions --> losses
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from flax import linen as nn

from metro_jax.errors import UserError
from metro_jax.finetune.formulations import Formulation
from metro_jax.finetune.regularizers import PosteriorDifferential
from metro_jax.metrics import Mean
from metro_jax.modules import (
  Dropout,
  Embedder,
  EncoderDecoder,
  TransformerConfig,
)

Batch = Mapping[str, jax.Array]
Metrics = dict[str, Mean]


class Heads(nn.Module):
  """The task layers, each by the name of its task."""

  config: TransformerConfig
  tasks: Mapping[str, Formulation]
  dropout_rate: float

  @nn.compact
  def __call__(
    self, h: jax.Array, dropout: Dropout | None
  ) -> dict[str, jax.Array]:
    """Scores of all tasks for h [rows, length, embed_dim]."""
    return {
      name: task.head(self.config, self.dropout_rate, name)(h, dropout)
      for name, task in self.tasks.items()
    }


class Finetuner(nn.Module):
  """Embedder, main model and task heads.

  The parameters of embedder and main model have the names that a Pretrainer
  gives them, so that its checkpoints load. Of an encoder-decoder, the encoder
  is what is fine-tuned.

  Attributes:
    config: of the embedder; the encoder's.
    main: encoder or encoder-decoder.
    tasks: formulation by name. A batch of several tasks says with `task_ids`
      which task each row is of, by its place in this mapping.
    regularizer: None for plain fine-tuning.
    dropout_rate: of the main model, on hidden states and attention, 0..1.
    head_dropout_rate: of the task layers.
  """

  config: TransformerConfig
  main: nn.Module
  tasks: Mapping[str, Formulation]
  regularizer: PosteriorDifferential | None = None
  dropout_rate: float = 0.1
  head_dropout_rate: float = 0.1

  def setup(self) -> None:
    """Declares the parts."""
    for name in ('dropout_rate', 'head_dropout_rate'):
      rate = getattr(self, name)
      if not 0 <= rate < 1:
        raise UserError(f'Finetuner.{name}: {rate} is not in [0, 1)')
    self.embedder = Embedder(self.config)
    self.heads = Heads(self.config, self.tasks, self.head_dropout_rate)

  def __call__(
    self,
    batch: Batch,
    train: bool = False,
    count: jax.Array | None = None,
  ) -> tuple[jax.Array, Metrics]:
    """The loss of a batch.

    Args:
      batch: encoder_input_tokens int32 [batch, length], or [batch, choices,
        length] for ranking; segment_ids and positions likewise; labels float32
        [batch] or [batch, numbers]; weights float32 [batch], 0 for a row that
        does not count; task_ids int32 [batch] and row_ids uint32 [batch].
      train: whether dropout and regularisation are on.
      count: what to divide by; None for the sum of the weights.

    Returns:
      The loss, float32 scalar, and metrics.
    """
    weights = batch['weights']
    count = jnp.sum(weights) if count is None else count
    divisor = jnp.maximum(count, 1.0)
    predicted, perturbed = self._passes(batch, train)
    total, metrics = jnp.zeros((), jnp.float32), {}
    for index, (name, task) in enumerate(self.tasks.items()):
      mine = weights
      if len(self.tasks) > 1:
        mine = weights * (batch['task_ids'] == index)
      logits, labels = predicted[name], batch['labels']
      # A label of another task may be no class of this one.
      labels = jnp.where(_like(mine > 0, labels), labels, 0.0)
      of_task = jnp.sum(task.loss(logits, labels) * mine)
      metrics[f'loss/{name}'] = Mean(of_task, jnp.sum(mine))
      total += of_task
      correct = task.correct(logits, labels)
      if correct is not None:
        metrics[f'accuracy/{name}'] = Mean.of(correct, mine)
      if perturbed is not None:
        change = task.divergence(logits, perturbed[name])
        change = jnp.sum(change * mine)
        total += self.regularizer.weight * change
        metrics[f'pdr/{name}'] = Mean(change, jnp.sum(mine))
    metrics['loss'] = Mean(total, jnp.sum(weights))
    return total / divisor, jax.lax.stop_gradient(metrics)

  def predict(self, batch: Batch) -> dict[str, jax.Array]:
    """Each task's logits, float32 [batch, ...], without dropout."""
    return self._passes(batch, train=False)[0]

  def _passes(
    self, batch: Batch, train: bool
  ) -> tuple[dict[str, jax.Array], dict[str, jax.Array] | None]:
    """Predictions, and those for perturbed embeddings (equation 12)."""
    rows = _flat(batch)
    dropout = self._dropout(rows) if train else None
    x = self._embed(rows, dropout)
    predicted = self._predictions(x, batch, rows, dropout)
    regularizer = self.regularizer
    if not train or regularizer is None or regularizer.weight == 0:
      return predicted, None
    seed = jax.random.bits(self.make_rng('noise'), (), jnp.uint32)
    valid = rows['encoder_segment_ids'] > 0
    x = regularizer.perturb(x, seed, rows['row_ids'], valid)
    return predicted, self._predictions(x, batch, rows, dropout)

  def _embed(self, rows: Batch, dropout: Dropout | None) -> jax.Array:
    segments = rows['encoder_segment_ids']
    tokens, places = rows['encoder_input_tokens'], rows['encoder_positions']
    return self.embedder(tokens, places, segments > 0, dropout)

  def _encode(
    self, x: jax.Array, rows: Batch, dropout: Dropout | None
  ) -> jax.Array:
    segments, places = rows['encoder_segment_ids'], rows['encoder_positions']
    if isinstance(self.main, EncoderDecoder):
      return self.main.encode(x, segments, places, dropout)
    return self.main(x, segments, places, dropout).last

  def _predictions(
    self, x: jax.Array, batch: Batch, rows: Batch, dropout: Dropout | None
  ) -> dict[str, jax.Array]:
    h = self._encode(x, rows, dropout)
    # Layers fold in their index; the heads stand above the last.
    above = None if dropout is None else dropout.fold(self.config.num_layers)
    scores = self.heads(h, above)
    return {
      name: task.logits(scores[name].astype(jnp.float32), batch)
      for name, task in self.tasks.items()
    }

  def _dropout(self, rows: Batch) -> Dropout:
    """One seed for all passes, so that their masks are the same."""
    rate = self.dropout_rate
    dropout = Dropout(hidden=rate, attention=rate, rows=rows['row_ids'])
    return dropout.seeded(self, rows['row_ids'].shape[0])


def _flat(batch: Batch) -> dict[str, jax.Array]:
  """One row of tokens a row: [batch * choices, length] for ranking."""
  tokens = batch['encoder_input_tokens']
  ids = batch.get('row_ids', jnp.arange(tokens.shape[0], dtype=jnp.uint32))
  choices = tokens.shape[1] if tokens.ndim == 3 else 1
  names = ('input_tokens', 'segment_ids', 'positions')
  rows = {
    f'encoder_{name}': batch[f'encoder_{name}'].reshape(-1, tokens.shape[-1])
    for name in names
  }
  place = jnp.arange(choices, dtype=jnp.uint32)
  ids = (ids.astype(jnp.uint32)[:, None] * choices + place).reshape(-1)
  return rows | {'row_ids': ids}


def _like(mask: jax.Array, labels: jax.Array) -> jax.Array:
  """A mask [batch] that broadcasts over labels [batch, ...]."""
  return mask.reshape(mask.shape + (1,) * (labels.ndim - 1))
