# SPDX-License-Identifier: Apache-2.0
"""The same joint step here: `training.step` around a model of `pretrain`."""

import dataclasses
from collections.abc import Sequence

import jax
import numpy as np

from benchmarks.shapes import Shape
from metro_jax import flops, models, modules, pretrain
from metro_jax.training import guards, optimizers, state, step

CLIP_NORM = 1.0
DROPOUT = 0.1


def electra(shape: Shape, dtype: str, kernels: str) -> pretrain.Pretrainer:
  """ELECTRA with shared embeddings and an auxiliary of the main width."""
  main, auxiliary = _configs(shape, dtype, kernels, relative=None)
  return pretrain.Pretrainer(
    main,
    modules.Encoder(main),
    pretrain.Auxiliary(auxiliary, dropout_rate=DROPOUT, second_pass=False),
    objectives=(pretrain.MLM(), pretrain.RTD()),
    share=('token', 'position', 'norm'),
    dropout_rate=DROPOUT,
    max_predictions=shape.slots,
    rtd_head=modules.RTDHead(main, hidden=True),
  )


def metro_lm(shape: Shape, dtype: str, kernels: str) -> pretrain.Pretrainer:
  """METRO-LM: relative positions, CLM, an auxiliary without dropout."""
  main, auxiliary = _configs(shape, dtype, kernels, relative='metro')
  return pretrain.Pretrainer(
    main,
    modules.Encoder(main),
    pretrain.Auxiliary(auxiliary),
    dropout_rate=DROPOUT,
    max_predictions=shape.slots,
  )


RECIPES = {'electra': electra, 'metro_lm': metro_lm}


class Step:
  """A model, its AdamW, and the compiled step that trains it."""

  def __init__(self, recipe: str, shape: Shape, dtype: str, kernels: str):
    """Initialises on JAX's default device."""
    self.shape = shape
    self.model = models.PretrainingModel(RECIPES[recipe](shape, dtype, kernels))
    self.optimizer = optimizers.adamw(1e-4, clip_norm=CLIP_NORM)
    spec = self.model.build_batch_spec(shape.batch_size, shape.length)
    params = jax.jit(self.model.init)(jax.random.key(0), spec)
    self.state = state.TrainState.create(state.unbox(params), self.optimizer)
    # Donated: a step overwrites the state that it reads, as in training.
    self.step = jax.jit(
      step.make_train_step(self.model, self.optimizer), donate_argnums=0
    )

  def batches(
    self, batches: Sequence[dict[str, np.ndarray]]
  ) -> list[dict[str, jax.Array]]:
    """Batches on the device."""
    return [jax.device_put(batch) for batch in batches]

  def __call__(self, batch: dict[str, jax.Array]) -> jax.Array:
    """Starts one update; its report."""
    self.state, _, report = self.step(self.state, None, batch)
    return report

  def wait(self, report: jax.Array) -> float:
    """Waits for a step that was started; its loss."""
    return guards.StepReport.unpack(report).loss

  @property
  def flops(self) -> float:
    """Model FLOPs of a step."""
    return self.model.flops_per_step((self.shape.batch_size, self.shape.length))

  @property
  def peak(self) -> float | None:
    """FLOP/s of the device at its best in bfloat16, where known."""
    return flops.peak(jax.devices()[0].device_kind)

  def memory(self) -> float | None:
    """Bytes that the device held at most, where it tells."""
    stats = jax.devices()[0].memory_stats() or {}
    return stats.get('peak_bytes_in_use')


def _configs(
  shape: Shape, dtype: str, kernels: str, relative: str | None
) -> tuple[modules.TransformerConfig, modules.TransformerConfig]:
  main = modules.TransformerConfig(
    vocab_size=shape.vocab_size,
    embed_dim=shape.width,
    mlp_dim=4 * shape.width,
    num_heads=shape.heads,
    num_layers=shape.layers,
    dtype=dtype,
    positions=modules.PositionConfig(
      max_length=shape.length, relative=relative, reset_cls=relative is not None
    ),
    layer_norm_backend=kernels,
    attention_backend=kernels,
    vocab_backend=kernels,
  )
  return main, dataclasses.replace(main, num_layers=shape.auxiliary_layers)
