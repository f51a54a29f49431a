# SPDX-License-Identifier: Apache-2.0
"""The training loop.

What makes a run repeatable to the bit, whatever happens to its process: the
batch is a function of the step and of the batches that were passed over, the
key is a function of (seed, step), and a checkpoint holds the state together
with the metrics that were summed but not yet logged. At any step the order is
log, evaluate, save; so what a checkpoint follows is on disk before it.
"""

import contextlib
import dataclasses
import functools
import pathlib
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from metro_jax import health
from metro_jax import metrics as metrics_lib
from metro_jax.training import guards, initialization, summaries
from metro_jax.training.checkpoints import Checkpoint, Checkpointer
from metro_jax.training.evaluation import Evaluation
from metro_jax.training.meter import Meter
from metro_jax.training.partitioning import Partitioner
from metro_jax.training.preemption import StopSignal
from metro_jax.training.prefetch import Dataset, device_batches
from metro_jax.training.profiling import Profiler
from metro_jax.training.progress import Progress
from metro_jax.training.recovery import Course, Watch
from metro_jax.training.state import TrainState

# Steps that the host may be ahead of the devices. Enough to keep them busy,
# few enough that a request to stop is heard at once.
IN_FLIGHT = 2


@dataclasses.dataclass(frozen=True)
class Run:
  """What does not change between the legs of a run; see `loop.train`."""

  folder: pathlib.Path
  dataset: Dataset
  identity: Mapping[str, Any]
  train_steps: int
  stats_period: int
  eval_period: int
  save_period: int
  tensorboard: bool
  train_step: Callable[..., Any]
  empty_window: Callable[[], Any]
  empty_guard: Callable[[], Any]
  guard: guards.StepGuard
  alarms: Sequence[health.Alarm]
  partitioner: Partitioner
  checkpointer: Checkpointer
  evaluation: Evaluation
  progress: Progress
  profiler: Profiler
  stop: StopSignal
  meter: Meter

  def leg(
    self, state: TrainState, restored: Checkpoint | None, course: Course
  ) -> tuple[TrainState, int]:
    """Trains from a state to the end, or to a request to stop.

    Args:
      state: Where to start; overwritten.
      restored: The checkpoint that it is from, if from one of this run.
      course: Which batches to read.

    Returns:
      The last state and its step.

    Raises:
      Rollback: If the run has to go back.
    """
    first_step, note = int(state.step), self.progress.note
    window, memory = self.empty_window(), self.empty_guard()
    if restored:
      window = initialization.refill(window, restored.window)
      memory = initialization.refill(memory, restored.guard)
    state = state.replace(guard=memory)
    with contextlib.ExitStack() as stack:
      # ----------------------------------------------------------------
      # What is written: metrics, events, alarms.
      # ----------------------------------------------------------------
      open_writer = functools.partial(
        summaries.MetricWriter,
        resume_step=first_step,
        tensorboard=self.tensorboard,
        notify=note,
      )
      writer = open_writer(self.folder / 'train')
      stack.callback(writer.close)
      self.evaluation.open(self.folder / 'training_eval', open_writer)
      stack.callback(self.evaluation.close)
      events = summaries.EventLog(
        self.folder / 'train', first_step, course.rollbacks, note
      )
      monitor = health.Monitor(self.train_steps, self.alarms)
      for line in summaries.read_jsonl(writer.path):
        monitor.see(line)
      watch = Watch(
        self.guard,
        self.dataset,
        events,
        self.checkpointer.steps,
        note,
        course,
      )
      if restored and first_step % self.eval_period == 0:
        # Does nothing if it has been done.
        self.evaluation.run(state, self.stop)

      # ----------------------------------------------------------------
      # The loop. Nothing in it waits for the devices but what is due.
      # ----------------------------------------------------------------
      ahead = course.passed_over
      batches = device_batches(
        self.dataset,
        self.partitioner.batch_sharding,
        range(first_step + ahead, self.train_steps + ahead),
      )
      stack.callback(batches.close)
      self.meter.start(first_step)
      reports: deque[tuple[int, jax.Array]] = deque()
      for index, batch in enumerate(batches, first_step):
        with jax.profiler.StepTraceAnnotation('train', step_num=index):
          state, window, report = self.train_step(state, window, batch)
        reports.append((index, report))

        step = index + 1
        last = step == self.train_steps
        stopping = self.stop.requested(step)
        logging = step % self.stats_period == 0 or last
        evaluating = (step % self.eval_period == 0 or last) and not stopping
        saving = step % self.save_period == 0 or last or stopping
        due = logging or evaluating or saving
        # What is due sees all that the guard has to say so far.
        while len(reports) > (0 if due else IN_FLIGHT):
          watch.read(*reports.popleft())
        self.profiler.advance(step)
        self.progress.advance(step)

        if logging:
          metrics = metrics_lib.compute(jax.device_get(window))
          filled = metrics.get('non_padding_fraction/overall', 1.0)
          rates = self.meter.read(step, filled)
          writer.write(step, {**metrics, **rates})
          self.progress.report(step, metrics, rates)
          for finding in monitor.see({'step': step, **metrics}):
            note(str(finding))
          self.checkpointer.poll()
          window = self.empty_window()

        if evaluating:
          with self.meter.paused():
            self.evaluation.run(state, self.stop)

        if saving:
          with self.meter.paused():
            self._save(step, state, window, course, last or stopping)

        if stopping:
          break
    return state, step

  def _save(
    self, step: int, state: TrainState, window: Any, course: Course, final: bool
  ) -> None:
    """Saves a checkpoint; the final one is waited for."""
    position = dict(self.dataset.position(step + course.passed_over))
    about = {
      **self.identity,
      'position': position,
      'course': dataclasses.asdict(course),
    }
    save = self.checkpointer.save_final if final else self.checkpointer.save
    save(state, about, window, self.evaluation.metrics(step))
