# SPDX-License-Identifier: Apache-2.0
"""Time of a training step without joint training of the auxiliary.

  python benchmarks/fast_electra.py

Three programs at the proportions of base, all lengths divided by --divide: a
joint step (MLM and RTD), Fast-ELECTRA's online step (a frozen auxiliary at a
temperature, RTD) and its offline step (a stream that is corrupted already,
RTD). They take turns, so that what else the machine does hits all of them.
Prints medians over the rounds, of times and of ratios to the joint step of the
same round, these with quartiles; and ratios of FLOPs.
"""

import argparse
import dataclasses
import statistics
import time

import jax
import numpy as np

from metro_jax import host_memory, models, modules, pretrain, training
from metro_jax.pretrain import MLM, RTD
from metro_jax.training.state import TrainState, unbox
from metro_jax.training.step import make_train_step

WIDTH, HEADS, VOCABULARY, LENGTH = 768, 12, 128_000, 512
LAYERS, AUXILIARY_LAYERS = 12, 4


def programs(divide: int) -> dict[str, models.PretrainingModel]:
  """The three recipes."""
  config = modules.TransformerConfig(
    vocab_size=VOCABULARY // divide,
    embed_dim=WIDTH // divide,
    mlp_dim=4 * WIDTH // divide,
    num_heads=max(1, HEADS // divide),
    num_layers=LAYERS,
    dtype='float32',
    positions=modules.PositionConfig(max_length=LENGTH // divide),
  )
  shallow = dataclasses.replace(config, num_layers=AUXILIARY_LAYERS)
  parts = {
    'joint': (pretrain.Auxiliary(shallow), (MLM(), RTD()), ('token',)),
    'online': (
      pretrain.Auxiliary(shallow, augmentation=pretrain.Temperature()),
      (RTD(),),
      (),
    ),
    'offline': (None, (RTD(),), ()),
  }
  return {
    name: models.PretrainingModel(
      pretrain.Pretrainer(
        config=config,
        main=modules.Encoder(config),
        auxiliary=auxiliary,
        objectives=objectives,
        share=share,
        max_predictions=round(0.15 * LENGTH / divide),
      ),
      curriculum_steps=1000,
    )
    for name, (auxiliary, objectives, share) in parts.items()
  }


def batch(model: models.PretrainingModel, rows: int) -> dict[str, np.ndarray]:
  """Full rows of random tokens, 15 % of them masked."""
  rng = np.random.default_rng(0)
  length = model.max_length
  original = rng.integers(5, model.vocab_size, (rows, length)).astype(np.int32)
  order = np.argsort(rng.random((rows, length)), axis=1)
  weights = (order < round(0.15 * length)).astype(np.float32)
  return {
    'encoder_input_tokens': np.where(weights > 0, 4, original),
    'encoder_target_tokens': original,
    'encoder_loss_weights': weights,
    'encoder_segment_ids': np.ones((rows, length), np.int32),
    'encoder_positions': np.tile(np.arange(length, dtype=np.int32), (rows, 1)),
  }


class Stepper:
  """A compiled training step and its state."""

  def __init__(
    self, model: models.PretrainingModel, rows: int, frozen: tuple[str, ...]
  ):
    self.batch = batch(model, rows)
    optimizer = training.adamw(1e-4, frozen=frozen)
    params = unbox(jax.jit(model.init)(jax.random.key(0), self.batch))
    self.state = TrainState.create(params, optimizer)
    step = make_train_step(model, optimizer)
    self._step = jax.jit(step, donate_argnums=0)
    self.run()

  def run(self) -> float:
    """Seconds of one step."""
    started = time.perf_counter()
    self.state, _, loss = self._step(self.state, None, self.batch)
    jax.block_until_ready((self.state, loss))
    return time.perf_counter() - started


def main() -> None:
  """Prints the table."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--divide', type=int, default=4)
  parser.add_argument('--rows', type=int, default=8)
  parser.add_argument('--rounds', type=int, default=20)
  flags = parser.parse_args()
  host_memory.keep_pages()
  recipes = programs(flags.divide)
  frozen = {'online': ('auxiliary/.*',)}
  steppers = {
    name: Stepper(model, flags.rows, frozen.get(name, ()))
    for name, model in recipes.items()
  }
  seconds: dict[str, list[float]] = {name: [] for name in steppers}
  for _ in range(flags.rounds):
    for name, stepper in steppers.items():
      seconds[name].append(stepper.run())
  shape = (flags.rows, LENGTH // flags.divide)
  flops = {name: m.flops_per_step(shape) for name, m in recipes.items()}
  print(f'{"":8} {"ms":>8} {"of joint":>9} {"quartiles":>12} {"FLOPs":>6}')
  for name, times in seconds.items():
    ratios = np.divide(times, seconds['joint'])
    low, middle, high = np.quantile(ratios, (0.25, 0.5, 0.75))
    spread = f'{low:.2f}-{high:.2f}'
    median, counted = statistics.median(times), flops[name] / flops['joint']
    print(
      f'{name:8} {1e3 * median:8.1f} {middle:9.2f} {spread:>12} {counted:6.2f}'
    )


if __name__ == '__main__':
  main()
