# SPDX-License-Identifier: Apache-2.0
"""A training step whose arrays can be told apart by their sizes.

Sizes are such that only logits have two dimensions as long as a sequence, and
whole squares of it (attention), or as many elements as tokens x vocabulary
(language model).
"""

import functools
import math
import re

import jax
import optax

from metro_jax import models, modules, pretrain
from metro_jax.training.state import TrainState, unbox
from metro_jax.training.step import make_train_step

ROWS, LENGTH, SLOTS, VOCAB, WIDTH, HEADS = 2, 512, 77, 20000, 32, 2
_OPTIMIZER = optax.adam(1e-3)


def on(backend: str) -> dict[str, str]:
  """Fields of TransformerConfig that choose kernels."""
  ops = ('layer_norm', 'attention', 'softmax', 'vocab')
  return {f'{op}_backend': backend for op in ops}


def train_step(backend: str):
  """The step of METRO-LM's recipe, and the shapes of its arguments."""
  return make_train_step(_model(backend), _OPTIMIZER), _shapes_of_arguments()


@functools.cache
def _shapes_of_arguments():
  model = _model('xla')  # Kernels do not change parameters.
  batch = model.build_batch_spec(ROWS, LENGTH)

  def start():
    params = unbox(model.init(jax.random.key(0), batch))
    return TrainState.create(params, _OPTIMIZER)

  return jax.eval_shape(start), None, jax.eval_shape(lambda: batch)


def _model(backend):
  config = modules.TransformerConfig(
    vocab_size=VOCAB,
    embed_dim=WIDTH,
    num_heads=HEADS,
    mlp_dim=2 * WIDTH,
    num_layers=1,
    positions=modules.PositionConfig(reset_cls=True),
    **on(backend),
  )
  return models.PretrainingModel(
    pretrain.Pretrainer(
      config=config,
      main=modules.Encoder(config),
      auxiliary=pretrain.Auxiliary(config),
      sampler=pretrain.Gumbel(),
      max_predictions=SLOTS,
    )
  )


def matrices(text: str) -> list[tuple[int, ...]]:
  """Shapes in a program's text that hold queries x keys.

  Two long dimensions alone do not tell: XLA reshapes what it adds up.
  """
  return [
    s
    for s in _shapes(text)
    if sum(n >= LENGTH for n in s) > 1 and math.prod(s) % LENGTH**2 == 0
  ]


def logits(text: str) -> list[tuple[int, ...]]:
  """Shapes in a program's text that hold tokens x vocabulary."""
  return [s for s in _shapes(text) if math.prod(s) >= ROWS * SLOTS * VOCAB]


def _shapes(text: str) -> set[tuple[int, ...]]:
  """Of all arrays, in StableHLO as in HLO."""
  found = re.findall(r'tensor<((?:\d+x)+)', text)
  found += re.findall(r'\b[a-z]+\d+\[([\d,]+)\]', text)
  return {tuple(map(int, re.findall(r'\d+', shape))) for shape in found}
