# SPDX-License-Identifier: Apache-2.0
"""The training loop, to be read from top to bottom.

What makes a run repeatable to the bit, whatever happens to its process: the
batch is a function of the step, the key is a function of (seed, step), and a
checkpoint holds the state together with the metrics that were summed but not
yet logged. At any step the order is log, evaluate, save; so what a checkpoint
follows is on disk before it.
"""

import contextlib
import dataclasses
import functools
import pathlib
import signal as signals
import time
from collections import deque
from collections.abc import Mapping, Sequence

import jax
import optax

from metro_jax import flops as flops_lib
from metro_jax import metrics as metrics_lib
from metro_jax.models.base import Model
from metro_jax.training import checks, info, initialization, restore
from metro_jax.training.checkpoints import (
  Checkpoint,
  CheckpointConfig,
  Checkpointer,
)
from metro_jax.training.evaluation import Evaluation
from metro_jax.training.meter import Meter
from metro_jax.training.partial import PartialCheckpoint
from metro_jax.training.partitioning import Partitioner
from metro_jax.training.preemption import StopSignal
from metro_jax.training.prefetch import Dataset, device_batches
from metro_jax.training.profiling import Profiler
from metro_jax.training.progress import DEFAULT_COLUMNS, Progress
from metro_jax.training.state import TrainState
from metro_jax.training.summaries import MetricWriter

# Steps that the host may be ahead of the devices. Enough to keep them busy,
# few enough that a request to stop is heard at once.
IN_FLIGHT = 2


@dataclasses.dataclass(frozen=True)
class TrainResult:
  """How a call of `train` ended.

  Attributes:
    state: The train state; None after a dry run.
    step: Finished steps.
    signal: The signal that ended the run before its time, or None.
  """

  state: TrainState | None
  step: int
  signal: int | None = None


def train(
  *,
  model: Model,
  model_dir: str,
  train_dataset: Dataset,
  train_steps: int,
  optimizer: optax.GradientTransformation,
  eval_datasets: Mapping[str, Dataset] | None = None,
  eval_period: int = 1000,
  eval_steps: int | None = None,
  stats_period: int = 100,
  partitioner: Partitioner | None = None,
  checkpoints: CheckpointConfig | None = None,
  num_microbatches: int = 1,
  random_seed: int = 0,
  initial_checkpoint_path: str | None = None,
  initial_parameters: Sequence[str] = ('.*',),
  partial_checkpoint: PartialCheckpoint | None = None,
  columns: Sequence[tuple[str, str, str]] = DEFAULT_COLUMNS,
  tensorboard: bool = True,
  profile_steps: int = 0,
  dry_run: bool = False,
) -> TrainResult:
  """Trains a model, from the newest checkpoint in `model_dir` if there is one.

  Args:
    model: Loss function and its parameters.
    model_dir: Where everything about this run goes.
    train_dataset: Batches by step.
    train_steps: Steps of the whole run, those of earlier calls included.
    optimizer: An optax transformation, see `optimizers`.
    eval_datasets: Data to evaluate on, by name.
    eval_period: Steps between evaluations.
    eval_steps: Batches of an evaluation; None for all.
    stats_period: Steps between log lines.
    partitioner: Mesh and ZeRO stage; all devices on `data` by default.
    checkpoints: When to save and what to keep.
    num_microbatches: Parts of a batch whose gradients are added up.
    random_seed: Of initial values and dropout. Data have their own.
    initial_checkpoint_path: Where to take parameters from when `model_dir`
      has no checkpoint.
    initial_parameters: Names (regular expressions) of those to take.
    partial_checkpoint: Parameters to take from another model's checkpoint, at
      the same time.
    columns: What a progress line shows after the losses.
    tensorboard: Whether to write TensorBoard events beside metrics.jsonl.
    profile_steps: How many steps to trace for a profiler, after ten others.
    dry_run: Plan everything, print it, and stop.

  Returns:
    The final state, and whether a signal ended the run.
  """
  partitioner = partitioner or Partitioner()
  checkpoints = checkpoints or CheckpointConfig()
  checks.check_periods(train_steps, stats_period, eval_period)
  checks.check_fits(model, train_dataset, 'train_dataset')
  partitioner.check_batch(train_dataset.batch_size, num_microbatches)

  with contextlib.ExitStack() as stack:
    stack.enter_context(partitioner.context())
    progress = stack.enter_context(Progress(train_steps, columns))
    stop = stack.enter_context(StopSignal())

    # ------------------------------------------------------------------
    # What there is to train, and how it lies on the devices.
    # ------------------------------------------------------------------
    layout = initialization.make_layout(
      model, optimizer, train_dataset, partitioner
    )
    evaluation = Evaluation(
      model, eval_datasets or {}, partitioner, eval_steps, progress
    )
    page = info.model_info(layout, partitioner)
    if dry_run:
      progress.note(page)
      return TrainResult(None, 0)
    checks.check_assets(train_dataset, model_dir)
    checkpointer = Checkpointer(model_dir, checkpoints, progress.note)
    stack.callback(checkpointer.close)

    # ------------------------------------------------------------------
    # Where to start: own checkpoint, given parameters, scratch.
    # ------------------------------------------------------------------
    restored = checkpointer.restore(layout.state)
    identity = {'fingerprint': train_dataset.fingerprint, 'seed': random_seed}
    if restored:
      checks.check_same_data(restored.dataset, identity, model_dir)
      state = restored.state
    else:
      state = initialization.initial_state(
        model, optimizer, train_dataset, partitioner, layout, random_seed
      )
      if initial_checkpoint_path:
        state = restore.load_initial(
          state, initial_checkpoint_path, initial_parameters
        )
      if partial_checkpoint:
        state = partial_checkpoint.load(state, train_dataset)
    first_step = int(state.step)
    if first_step >= train_steps:
      progress.note(
        f'{model_dir} is at step {first_step} of {train_steps}:'
        ' nothing to do; raise TRAIN_STEPS to go on'
      )
      return TrainResult(state, first_step)
    progress.note(_start_line(first_step, train_steps, restored, model_dir))

    # ------------------------------------------------------------------
    # What is written: parameter table, vocabulary, metrics.
    # ------------------------------------------------------------------
    checks.write_assets(train_dataset, model_dir, page)
    open_writer = functools.partial(
      MetricWriter,
      resume_step=first_step,
      tensorboard=tensorboard,
      notify=progress.note,
    )
    writer = open_writer(pathlib.Path(model_dir) / 'train')
    stack.callback(writer.close)
    evaluation.open(pathlib.Path(model_dir) / 'training_eval', open_writer)
    stack.callback(evaluation.close)

    # ------------------------------------------------------------------
    # The compiled step, the clock and the stream of batches.
    # ------------------------------------------------------------------
    started = time.monotonic()
    train_step, empty_window = initialization.compile_step(
      model,
      optimizer,
      train_dataset,
      partitioner,
      layout,
      num_microbatches,
      random_seed,
    )
    progress.note(f'compiled in {time.monotonic() - started:.1f} s')
    window = empty_window()
    if restored:
      window = initialization.restore_window(window, restored.window)
      if first_step % eval_period == 0:
        evaluation.run(state, stop)  # Does nothing if it has been done.
    batches = device_batches(
      train_dataset, partitioner.batch_sharding, range(first_step, train_steps)
    )
    stack.callback(batches.close)
    profiler = Profiler(model_dir, first_step, profile_steps)
    stack.callback(profiler.close)
    meter = Meter(
      train_dataset.batch_size,
      train_dataset.batch_size * train_dataset.length,
      _flops_per_step(model, train_dataset),
      _peak_flops(),
    )

    # ------------------------------------------------------------------
    # The loop. Nothing in it waits for the devices but what is due.
    # ------------------------------------------------------------------
    meter.start(first_step)
    losses: deque[jax.Array] = deque()
    for index, batch in enumerate(batches, first_step):
      with jax.profiler.StepTraceAnnotation('train', step_num=index):
        state, window, loss = train_step(state, window, batch)
      losses.append(loss)
      if len(losses) > IN_FLIGHT:
        losses.popleft().block_until_ready()

      step = index + 1
      last = step == train_steps
      stopping = stop.requested(step)
      profiler.advance(step)
      progress.advance(step)

      if step % stats_period == 0 or last:
        metrics = metrics_lib.compute(jax.device_get(window))
        filled = metrics.get('non_padding_fraction/overall', 1.0)
        rates = meter.read(step, filled)
        writer.write(step, {**metrics, **rates})
        progress.report(step, metrics, rates)
        checkpointer.poll()
        window = empty_window()

      if (step % eval_period == 0 or last) and not stopping:
        with meter.paused():
          evaluation.run(state, stop)

      if step % checkpoints.period == 0 or last or stopping:
        with meter.paused():
          position = dict(train_dataset.position(step))
          save = (
            checkpointer.save_final if last or stopping else (checkpointer.save)
          )
          save(state, {**identity, 'position': position}, window)

      if stopping:
        break

    signal = stop.received if step < train_steps else None
    progress.note(_end_line(step, train_steps, signal, model_dir))
    return TrainResult(state, step, signal)


def _start_line(
  step: int, total: int, restored: Checkpoint | None, model_dir: str
) -> str:
  devices = jax.devices()
  where = f'{len(devices)} x {devices[0].device_kind}'
  if restored is None:
    return f'training {model_dir} from scratch to step {total} on {where}'
  position = restored.dataset.get('position', {})
  place = ', '.join(f'{k} {v}' for k, v in position.items())
  return f'resuming {model_dir} at step {step} of {total} ({place}) on {where}'


def _end_line(step: int, total: int, signal: int | None, model_dir: str) -> str:
  if signal is None:
    return f'done: {step} steps, everything is in {model_dir}'
  return (
    f'stopped by {signals.Signals(signal).name} at step {step} of {total};'
    f' {model_dir}/{restore.PREFIX}_{step} is saved: the same command goes on'
  )


def _flops_per_step(model: Model, dataset: Dataset) -> float | None:
  """Model FLOPs of a step, if the model tells."""
  count = getattr(model, 'flops_per_step', None)
  return count((dataset.batch_size, dataset.length)) if count else None


def _peak_flops() -> float | None:
  return flops_lib.peak(jax.devices()[0].device_kind)
