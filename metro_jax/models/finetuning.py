# SPDX-License-Identifier: Apache-2.0
"""A pretrained model with task heads, as a trainer sees it."""

import dataclasses
import sys
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from metro_jax import flops
from metro_jax.errors import UserError
from metro_jax.finetune import (
  FORMULATIONS,
  Finetuner,
  Formulation,
  PosteriorDifferential,
  Ranking,
  Spans,
)
from metro_jax.models.base import Batch, Metrics, Params
from metro_jax.models.pretraining import PretrainingModel
from metro_jax.models.text_to_text_model import TextToTextModel

_COUNT = 'examples'
_STREAMS = ('dropout', 'noise')


@dataclasses.dataclass(frozen=True)
class FineTuningModel:
  """`models.Model` for tasks; batches as `Finetuner` takes them.

  Attributes:
    finetuner: the module.
  """

  finetuner: Finetuner

  @property
  def vocab_size(self) -> int:
    """Ids that the model can embed: 0..vocab_size - 1."""
    return self.finetuner.config.vocab_size

  @property
  def max_length(self) -> int:
    """The longest sequence; sys.maxsize where positions are relative only."""
    positions = self.finetuner.config.positions
    has_table = positions.absolute or positions.untied
    return positions.max_length if has_table else sys.maxsize

  def build_batch_spec(
    self, batch_size: int, length: int
  ) -> dict[str, np.ndarray]:
    """A batch of zeros, for `init` and for `jax.eval_shape`."""
    kinds = self.finetuner.tasks.values()
    shape: tuple[int, ...] = (batch_size, length)
    if any(isinstance(kind, Ranking) for kind in kinds):
      shape = (batch_size, 2, length)
    names = ('input_tokens', 'segment_ids', 'positions')
    batch = {f'encoder_{name}': np.zeros(shape, np.int32) for name in names}
    labels: tuple[int, ...] = (batch_size,)
    if any(isinstance(kind, Spans) for kind in kinds):
      labels = (batch_size, 2)
      batch['span_candidates'] = np.zeros(shape, np.int32)
    return batch | {
      'labels': np.zeros(labels, np.float32),
      'weights': np.zeros(batch_size, np.float32),
      'task_ids': np.zeros(batch_size, np.int32),
    }

  def init(self, rng: jax.Array, batch: Batch) -> Params:
    """Initial parameters, boxed with their logical axes."""
    return self.finetuner.init(rng, batch)['params']

  def normalizers(self, batch: Batch) -> dict[str, jax.Array]:
    """How many examples count, in a global batch."""
    return {_COUNT: jnp.sum(batch['weights'])}

  def loss_fn(
    self,
    params: Params,
    batch: Batch,
    rng: jax.Array,
    step: jax.Array | int,
    train: bool,
    normalizers: Mapping[str, jax.Array] | None = None,
  ) -> tuple[jax.Array, Metrics]:
    """Mean loss of the examples; see `models.Model`."""
    del step
    count = None if normalizers is None else normalizers[_COUNT]
    keys = jax.random.split(rng, len(_STREAMS))
    return self.finetuner.apply(
      {'params': params},
      batch,
      train,
      count,
      rngs=dict(zip(_STREAMS, keys, strict=True)),
    )

  def outputs(self, params: Params, batch: Batch) -> dict[str, jax.Array]:
    """Each task's logits, float32 [batch, ...], for `Dataset.score`."""
    return self.finetuner.apply({'params': params}, batch, method='predict')

  def flops_per_step(self, batch_shape: tuple[int, int]) -> float:
    """Model FLOPs of a training step; a regularizer's second pass counts."""
    rows, length = batch_shape
    regularizer = self.finetuner.regularizer
    passes = 2 if regularizer is not None and regularizer.weight else 1
    forward = flops.encoder(self.finetuner.main.config, length)
    return flops.TRAINING * passes * rows * forward


def with_heads(
  pretrained: PretrainingModel | TextToTextModel | FineTuningModel,
  tasks: Mapping[str, tuple[str, int]],
  regularizer: PosteriorDifferential | None = None,
  dropout_rate: float = 0.1,
  head_dropout_rate: float = 0.1,
  head_activation: str = 'tanh',
) -> FineTuningModel:
  """Puts task heads on the main model of a pretraining run.

  Args:
    pretrained: the model of that run; its parameters load by name.
    tasks: name -> (kind, classes); kinds are those of `FORMULATIONS`.
    regularizer: see `Finetuner`; likewise the rates.
    dropout_rate: of the main model.
    head_dropout_rate: of the task layers.
    head_activation: of those that classify: 'tanh', or ELECTRA's 'gelu'.

  Returns:
    The model.
  """
  parts = ('pretrainer', 'text_to_text', 'finetuner')
  sources = (getattr(pretrained, part, None) for part in parts)
  source = next((x for x in sources if x is not None), None)
  if source is None:
    raise UserError(
      f'INITIAL_CHECKPOINT_PATH: a {type(pretrained).__name__} has no encoder'
      ' to fine-tune; give the MODEL_DIR of a pretraining run'
    )
  formulations = {
    name: _formulation(kind, classes, head_activation)
    for name, (kind, classes) in tasks.items()
  }
  module = Finetuner(
    source.config,
    source.main,
    formulations,
    regularizer,
    dropout_rate,
    head_dropout_rate,
  )
  return FineTuningModel(module)


def _formulation(kind: str, classes: int, activation: str) -> Formulation:
  if kind not in FORMULATIONS:
    raise UserError(
      f'{kind!r} tasks have no head on an encoder; it has {tuple(FORMULATIONS)}'
    )
  formulation: Any = FORMULATIONS[kind]
  if kind == 'classification':
    return formulation(classes, activation)
  return formulation()
