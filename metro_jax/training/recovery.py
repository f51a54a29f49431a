# SPDX-License-Identifier: Apache-2.0
"""What the run does about refused steps: note them, go back, give up.

Every decision is a function of the run's past and not of its process: a run
that is killed in the middle of a recovery takes the same decisions again.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

from metro_jax.errors import UserError
from metro_jax.training import guards
from metro_jax.training.checkpoints import Checkpoint
from metro_jax.training.guards import StepReport
from metro_jax.training.prefetch import Dataset
from metro_jax.training.summaries import EventLog

# A run has recovered when it is so many times `max_refused` steps past the
# step at which it turned back.
_RECOVERED = 10


@dataclasses.dataclass(frozen=True)
class Course:
  """Where a run has left the straight path; part of a checkpoint.

  Attributes:
    passed_over: batches that were left out: step s reads batch
      s + passed_over.
    rollbacks: how often the run went back, in all.
    attempts: how often because of the trouble at hand.
    trouble: the step at which it went back last.
    target: the checkpoint to which it did.
  """

  passed_over: int = 0
  rollbacks: int = 0
  attempts: int = 0
  trouble: int = -1
  target: int = -1

  @classmethod
  def of(cls, checkpoint: Checkpoint | None) -> 'Course':
    """The course of a checkpoint; without one, the straight path."""
    return cls(**checkpoint.dataset['course']) if checkpoint else cls()


class Rollback(Exception):
  """The run must go back.

  Attributes:
    course: from there on.
  """

  def __init__(self, course: Course):
    super().__init__(course)
    self.course = course


class Watch:
  """Reads what the guard made of each step.

  Attributes:
    course: of the run, now.
  """

  def __init__(
    self,
    guard: guards.StepGuard,
    dataset: Dataset,
    events: EventLog,
    steps_saved: Callable[[], list[int]],
    notify: Callable[[str], None],
    course: Course,
  ):
    """Prepares to watch.

    Args:
      guard: decides when refusing does not help.
      dataset: names the examples of a batch.
      events: where they are written.
      steps_saved: the steps that have a checkpoint, ascending.
      notify: told, in one line, what happened.
      course: of the run so far.
    """
    self.course = course
    self._guard = guard
    self._dataset = dataset
    self._events = events
    self._steps_saved = steps_saved
    self._notify = notify

  def read(self, step: int, packed: Any) -> None:
    """Reads the report of a step.

    Args:
      step: which, counted from 0.
      packed: a `guards.StepReport` on the device.

    Raises:
      Rollback: if the run must go back.
      UserError: if there is no way on.
    """
    report = StepReport.unpack(packed)
    if report.verdict == guards.GOOD:
      return
    batch = step + self.course.passed_over
    reason = guards.REASONS[report.verdict]
    self._events.write(
      step + 1,
      self.course.rollbacks,
      {
        'event': 'refused',
        'reason': reason,
        'loss': report.loss,
        'grad_norm': report.grad_norm,
        'batch': batch,
        'examples': example_ids(self._dataset, batch),
      },
    )
    if report.refused == 1:  # The first in a row.
      self._notify(
        f'warning: step {step + 1} was skipped: {reason} (loss'
        f' {report.loss:.4g}, gradient norm {report.grad_norm:.4g}); its'
        f' examples are in {self._events.path}'
      )
    if report.refused >= self._guard.max_refused:
      self._go_back(step, report)

  def _go_back(self, step: int, report: StepReport) -> None:
    """Raises Rollback, or UserError if that has been tried enough."""
    course = self.course
    begun = step + 1 - report.refused  # Steps done before the first refusal.
    # Trouble again before the run got well past the last: the checkpoint was
    # not good, so an older one is taken.
    soon = step <= course.trouble + _RECOVERED * self._guard.max_refused
    again = course.attempts > 0 and soon
    newest = course.target - 1 if again else begun
    attempts = course.attempts + 1 if again else 1
    saved = self._steps_saved()
    good = [s for s in saved if s <= newest] or saved[:1]
    if not good or attempts > self._guard.max_rollbacks:
      raise UserError(self._give_up(step, report, attempts - 1))
    target = good[-1]
    passed_over = course.passed_over + step + 1 - target
    after = Course(passed_over, course.rollbacks + 1, attempts, step, target)
    self._events.write(
      step + 1,
      course.rollbacks,
      {'event': 'rollback', 'to': target, 'next_batch': target + passed_over},
    )
    self._notify(
      f'warning: step {step + 1}: {_trouble(report)}; going back to'
      f' checkpoint_{target}, and past the {step + 1 - target} batches seen'
      ' since'
    )
    raise Rollback(after)

  def _give_up(self, step: int, report: StepReport, attempts: int) -> str:
    spiked = report.verdict in (guards.LOSS_SPIKE, guards.NORM_SPIKE)
    advice = (
      'lower LEARNING_RATE or CLIP_NORM, raise WARMUP_STEPS, or raise'
      ' training.Guard.sigmas if this is no harm'
      if spiked
      else 'lower LEARNING_RATE, raise WARMUP_STEPS, or compute in float32'
      " (DTYPE='float32')"
    )
    tried = (
      f'going back {attempts} times did not help'
      if attempts
      else 'there is no checkpoint to go back to'
      if self._guard.max_rollbacks
      else 'training.Guard.max_rollbacks is 0'
    )
    return (
      f'stopped at step {step + 1}: {_trouble(report)} (loss'
      f' {report.loss:.4g}, gradient norm {report.grad_norm:.4g}), and {tried};'
      f' {advice}; {self._events.path} names the examples'
    )


def _trouble(report: StepReport) -> str:
  reason = guards.REASONS[report.verdict]
  return f'{report.refused} steps in a row were skipped because {reason}'


def example_ids(dataset: Dataset, batch: int) -> dict[str, Any]:
  """Which rows of the corpus are in a batch, as plain values."""
  examples = getattr(dataset, 'examples', None)
  if examples is None:
    return dict(dataset.position(batch))
  epochs, rows = examples(batch)
  return {'epochs': sorted(set(epochs.tolist())), 'rows': rows.tolist()}
