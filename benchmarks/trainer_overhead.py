# SPDX-License-Identifier: Apache-2.0
"""What the trainer costs beside the step that it compiles.

  python -m benchmarks.trainer_overhead --shape=mini

The real trainer runs with logging every --steps steps and a save, in the
background, at every second log line. After each line its compiled step runs
as often again with nothing around it, so both see the same machine, each time
beside a step that was compiled without a guard. The table has medians, and
between which numbers they lie with 95 % certainty:

  loop    time of a step in the loop, without saves, over that of a bare step
  save    what a save adds to the steps after it, in steps; with one save in
          100 steps, a hundredth of it is what saving costs
  guard   a bare step that is guarded, over a bare step that is not, pair by
          pair
  guard of few rows
          1 and what a guard adds to a step of --guard_rows rows, pair by pair,
          over the bare step of the whole batch: a guard works on parameters
          and slots alone, and against a short step its milliseconds show
"""

import argparse
import dataclasses
import itertools
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from scipy import stats

from benchmarks import native, shapes
from metro_jax import health, host_memory, models, training
from metro_jax.training import guards, initialization


@dataclasses.dataclass(frozen=True)
class StaticDataset:
  """One batch of random tokens, again and again: no work for the host."""

  shape: shapes.Shape
  made: Mapping[str, np.ndarray]
  fingerprint: str = 'static'

  @property
  def batch_size(self) -> int:
    """Of the shape."""
    return self.shape.batch_size

  @property
  def length(self) -> int:
    """Of the shape."""
    return self.shape.length

  @property
  def vocab_size(self) -> int:
    """Of the shape."""
    return self.shape.vocab_size

  def batch(
    self, step: int, rows: slice | None = None
  ) -> Mapping[str, np.ndarray]:
    """The batch, whatever the step."""
    if rows is None:
      return self.made
    return {name: value[rows] for name, value in self.made.items()}

  def position(self, step: int) -> Mapping[str, int]:
    """Where the data of a step would start."""
    return {'epoch': 0, 'example': step * self.batch_size}

  def save_assets(self, model_dir: str) -> None:
    """There is nothing to save."""


def main() -> None:
  """Entry point."""
  flags = _flags()
  host_memory.keep_pages()
  shape = shapes.SHAPES[flags.shape]
  model = models.PretrainingModel(
    native.metro_lm(shape, flags.dtype, flags.kernels)
  )
  dataset = StaticDataset(shape, shapes.batches(shape, 1)[0])
  optimizer = training.adamw(1e-4, clip_norm=native.CLIP_NORM)
  guard = guards.Guard()
  steps = flags.steps
  contenders = {
    'guarded': _bare(model, optimizer, dataset, guard),
    'plain': _bare(model, optimizer, dataset, None),
  }
  few = dataclasses.replace(shape, batch_size=flags.guard_rows)
  short = StaticDataset(few, shapes.batches(few, 1)[0])
  short_contenders = {
    'guarded': _bare(model, optimizer, short, guard),
    'plain': _bare(model, optimizer, short, None),
  }
  marks: list[tuple[float, float]] = []
  times: dict[str, list[float]] = {name: [] for name in contenders}
  short_times = _pairs(short_contenders, flags.guard_pairs)

  def look(history: health.History) -> None:
    ended = time.perf_counter()
    for name, more in _pairs(contenders, steps).items():
      times[name] += more
    marks.append((ended, time.perf_counter()))

  with tempfile.TemporaryDirectory() as folder:
    training.train(
      model=model,
      model_dir=folder,
      train_dataset=dataset,
      train_steps=steps * (2 * flags.turns + 1),
      optimizer=optimizer,
      guard=guard,
      stats_period=steps,
      eval_period=10**9,
      checkpoints=training.CheckpointConfig(period=2 * steps),
      alarms=[health.Alarm('bare steps', look, '')],
    )
  looped = [b[0] - a[1] for a, b in itertools.pairwise(marks)]
  # Line n (from 1) ends window n; the save at an even line falls into the
  # window after it.
  quiet, saving = looped[0::2], looped[1::2]
  _print(shape, flags, times, short_times, quiet, saving)


def _pairs(
  contenders: Mapping[str, Callable[[], float]], count: int
) -> dict[str, list[float]]:
  """Seconds of each, in turn; neither is always the first."""
  times: dict[str, list[float]] = {name: [] for name in contenders}
  for number in range(count):
    for name in sorted(contenders, reverse=number % 2 == 1):
      times[name].append(contenders[name]())
  return times


def _flags() -> argparse.Namespace:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  add = parser.add_argument
  add('--shape', default='mini', choices=tuple(shapes.SHAPES))
  add('--dtype', default='float32', choices=('float32', 'bfloat16'))
  add('--kernels', default='auto', choices=('auto', 'xla', 'pallas'))
  add('--turns', type=int, default=10)
  add('--steps', type=int, default=10, help='steps in a turn')
  add('--guard_rows', type=int, default=2, help='rows of the short steps')
  add('--guard_pairs', type=int, default=500, help='pairs of short steps')
  return parser.parse_args()


def _bare(
  model: Any, optimizer: Any, dataset: Any, guard: Any
) -> Callable[[], float]:
  """A function that runs the compiled step once, and returns seconds."""
  partitioner = training.Partitioner()
  with partitioner.context():
    layout = initialization.make_layout(
      model, optimizer, dataset, partitioner, guard
    )
    state = initialization.initial_state(
      model, optimizer, dataset, partitioner, layout, 0
    )
    step, empty_window = initialization.compile_step(
      model, optimizer, dataset, partitioner, layout, 1, 0, guard
    )
    memory = initialization.empty_guard(layout, partitioner)()
    batch = jax.device_put(dataset.batch(0), partitioner.batch_sharding)
  state = state.replace(guard=memory)
  window = empty_window()

  def run() -> float:
    nonlocal state, window
    start = time.perf_counter()
    state, window, report = step(state, window, batch)
    report.block_until_ready()
    return time.perf_counter() - start

  for _ in range(2):
    run()  # The first ones touch new memory.
  return run


def _print(
  shape: shapes.Shape,
  flags: argparse.Namespace,
  times: dict[str, list[float]],
  short_times: dict[str, list[float]],
  quiet: list[float],
  saving: list[float],
) -> None:
  step = statistics.median(times['guarded'])
  turns = np.reshape(times['guarded'], (-1, flags.steps)).sum(axis=1)
  rows = {
    'loop': _ratios(quiet, turns[1::2]),
    'guard': _ratios(times['guarded'], times['plain']),
    'guard of few rows': [
      1 + (a - b) / step
      for a, b in zip(short_times['guarded'], short_times['plain'], strict=True)
    ],
    'save, in steps': [
      (a - b) / step for a, b in zip(saving, quiet, strict=False)
    ],
  }
  few = 1e3 * statistics.median(short_times['guarded'])
  print(
    f'{flags.shape}: {shape}, bare step {1e3 * step:.1f} ms,'
    f' of {flags.guard_rows} rows {few:.1f} ms'
  )
  print('| what | median | between | and | measured |')
  print('| --- | --- | --- | --- | --- |')
  for name, values in rows.items():
    median = stats.quantile_test(values, p=0.5)
    low, high = median.confidence_interval(0.95)
    print(
      f'| {name} | {statistics.median(values):.3f} | {low:.3f} | {high:.3f}'
      f' | {len(values)} times |'
    )


def _ratios(ours: Sequence[float], bare: Sequence[float]) -> list[float]:
  return [a / b for a, b in zip(ours, bare, strict=False)]


if __name__ == '__main__':
  main()
