# SPDX-License-Identifier: Apache-2.0
"""Checkpoints: all that a run needs to go on as if it had never stopped.

`MODEL_DIR/checkpoint_<step>/` holds four items: `state` (T5X's tree: `target`
parameters, `state` step and slots), `dataset` (what data, and where in it),
`window` (the metrics summed since they were last logged, so that a logged
value does not depend on where a run was cut) and `guard` (what the guard
remembers). Orbax writes in the background into a temporary folder; the last
file there is the seal, with checksums of the others, and then the folder gets
its name. So a folder with the final name was whole once; if it no longer
agrees with its seal, restoring falls back to the one before.
"""

import contextlib
import dataclasses
import functools
import math
import os
import pathlib
import re
import shutil
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from metro_jax.errors import UserError
from metro_jax.training import integrity, orbax_noise, restore
from metro_jax.training.restore import PREFIX
from metro_jax.training.state import TrainState, named_leaves

PyTree = Any
Notify = Callable[[str], None]
BROKEN = 'broken_checkpoint'


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
  """When to save, and what to keep.

  Attributes:
    period: Steps between checkpoints.
    keep: How many of the newest to keep; None keeps all.
    keep_period: Also keep every checkpoint whose step this divides.
    best: Also keep the checkpoint at which this metric of an evaluation was
      highest, e.g. 'validation/accuracy'; of equals, the newest.
    asynchronous: Write in the background while training goes on.
  """

  period: int = 1000
  keep: int | None = 3
  keep_period: int | None = None
  best: str | None = None
  asynchronous: bool = True

  def __post_init__(self):
    for name in ('period', 'keep', 'keep_period'):
      value = getattr(self, name)
      if value is not None and value < 1:
        raise UserError(
          f'training.CheckpointConfig.{name} is {value}; give 1 or more'
        )


@dataclasses.dataclass(frozen=True)
class Checkpoint:
  """A restored checkpoint.

  Attributes:
    state: The train state, sharded as asked.
    dataset: JSON of the data's identity and position.
    window: The metrics summed since they were last logged, as NumPy leaves.
    guard: What the guard remembers, as NumPy leaves; `state` lacks it.
  """

  state: TrainState
  dataset: Mapping[str, Any]
  window: list[np.ndarray]
  guard: list[np.ndarray]


class Checkpointer:
  """Saves to and restores from one MODEL_DIR."""

  def __init__(
    self, model_dir: str, config: CheckpointConfig, notify: Notify = print
  ):
    """Opens a folder, and removes what a killed writer left unfinished.

    Args:
      model_dir: The folder; it is made if need be.
      config: When to save, and what to keep.
      notify: Told, in one line, what went wrong.
    """
    self.directory = pathlib.Path(os.path.abspath(model_dir))
    self._config = config
    self._notify = notify
    orbax_noise.silence()
    self._failure: OSError | None = None  # Of the last save that failed.
    self._manager = self._open()

  def _open(self) -> ocp.CheckpointManager:
    options = ocp.CheckpointManagerOptions(
      step_prefix=PREFIX,
      preservation_policy=_what_to_keep(self._config),
      best_fn=_quality if self._config.best else None,  # Writes metrics down.
      async_options=ocp.AsyncOptions(post_finalization_callback=self._seal),
      cleanup_tmp_directories=True,
    )
    return ocp.CheckpointManager(self.directory, options=options)

  def _seal(self) -> None:
    # Called on the first host, when the temporary folder is complete.
    for folder in self.directory.glob(f'{PREFIX}_*.orbax-checkpoint-tmp*'):
      integrity.seal(folder)

  def save(
    self,
    state: TrainState,
    dataset: Mapping[str, Any],
    window: PyTree,
    metrics: Mapping[str, float] | None = None,
  ) -> None:
    """Starts writing a checkpoint. A failure is told, and training goes on.

    The state may be overwritten (donated) as soon as this returns.

    Args:
      state: The train state.
      dataset: JSON of the data's identity and position.
      window: Metrics summed since they were last logged.
      metrics: Those of the evaluations of this state, by evaluation/metric.
    """
    self.wait()
    step = int(state.step)
    needed = sum(x.nbytes for x in jax.tree.leaves(state))
    free = shutil.disk_usage(self.directory).free
    if free < needed and jax.process_count() == 1:
      # Not even begun: half a checkpoint would only fill the disk further.
      self._tell_failure(step, f'{_size(needed)} needed, {_size(free)} free')
      return
    items = ocp.args.Composite(
      state=ocp.args.StandardSave(state.to_tree()),
      dataset=ocp.args.JsonSave(dict(dataset)),
      window=ocp.args.JsonSave(_encode(window)),
      guard=ocp.args.JsonSave(_encode(state.guard)),
    )
    try:
      best = (metrics or {}).get(self._config.best or '')
      scored = {} if best is None else {'metrics': {'best': best}}
      self._manager.save(step, args=items, force=True, **scored)
    except (OSError, ValueError) as error:
      self._recover(step, error)
    if not self._config.asynchronous:
      self.wait()

  def save_final(
    self,
    state: TrainState,
    dataset: Mapping[str, Any],
    window: PyTree,
    metrics: Mapping[str, float] | None = None,
  ) -> None:
    """Writes the last checkpoint, unless it is there, and waits for it.

    Raises:
      UserError: if it is not on disk.
    """
    step = int(state.step)
    self.wait()

    def attempt() -> None:
      self._failure = None
      if step not in self.steps():
        self.save(state, dataset, window, metrics)
        self.wait()
      if self._failure:
        raise self._failure

    with contextlib.suppress(OSError):
      integrity.persistently(attempt, self._notify)
    if step not in self.steps():
      raise UserError(
        f'{PREFIX}_{step}, the last of this run, is not in {self.directory};'
        ' make room and run the same command to go on from the one before'
      )

  def wait(self) -> None:
    """Waits for the write under way, and tells if it failed."""
    step = self._manager.latest_step()
    try:
      self._manager.wait_until_finished()
    except (OSError, ValueError) as error:
      self._recover(step, error)

  def poll(self) -> None:
    """Tells of a write that has failed; does not wait for one under way."""
    if not self._manager.is_saving_in_progress():
      self.wait()

  def _recover(self, step: int | None, error: Exception) -> None:
    self._failure = error if isinstance(error, OSError) else None
    # The manager has lost count of what it was to delete. A new one reads the
    # folder afresh, and removes the unfinished checkpoint.
    with contextlib.suppress(OSError, ValueError):
      self._manager.close()
    self._manager = self._open()
    known = re.search(
      'No space left[a-z ]*|File too large|[Qq]uota', str(error)
    )
    self._tell_failure(
      step, known.group() if known else restore.first_line(error)
    )

  def _tell_failure(self, step: int | None, reason: str) -> None:
    last = self._manager.latest_step()
    good = (
      'there is no older one'
      if last is None
      else (f'{PREFIX}_{last} stays good')
    )
    self._notify(
      f'warning: {PREFIX}_{step} was not saved in {self.directory}: {reason};'
      f' {good}, and the next save tries again'
    )

  def steps(self) -> list[int]:
    """Steps that have a checkpoint, ascending."""
    return sorted(self._manager.all_steps())

  def restore(self, like: TrainState) -> Checkpoint | None:
    """The newest checkpoint that can be read, or None if there is none at all.

    Broken ones are renamed out of the way, with a warning each, but only when
    an older one is good.

    Args:
      like: Shapes, types and shardings of the state to restore.
    """
    broken: dict[int, Exception] = {}
    for step in reversed(self.steps()):
      try:
        checkpoint = integrity.persistently(
          functools.partial(self._restore_step, step, like), self._notify
        )
      except (UserError, MemoryError, jax.errors.JaxRuntimeError):
        raise  # Not the checkpoint's fault.
      except Exception as error:
        broken[step] = error
        continue
      for bad, error in broken.items():
        self._put_aside(bad, step, error)
      return checkpoint
    if broken:
      step, error = next(iter(broken.items()))
      raise UserError(
        f'{self.directory}: no checkpoint can be read ({PREFIX}_{step}:'
        f' {restore.first_line(error)}); bring one back from a copy, or start'
        ' anew in another MODEL_DIR'
      )
    return None

  def _restore_step(self, step: int, like: TrainState) -> Checkpoint:
    # Another model must not be taken for a broken checkpoint.
    folder = self.directory / f'{PREFIX}_{step}'
    integrity.check(folder)
    saved = restore.saved_params(folder)
    restore.check_matches(folder, saved, named_leaves(like.params))
    texts = ['dataset', 'window', 'guard']
    items = ocp.args.Composite(
      state=ocp.args.StandardRestore(like.to_tree()),
      **{name: ocp.args.JsonRestore() for name in texts},
    )
    restored = self._manager.restore(step, args=items)
    # Read errors may come late, when an array is first used.
    state = jax.block_until_ready(TrainState.from_tree(restored.state))
    window, guard = _decode(restored.window), _decode(restored.guard)
    return Checkpoint(state, restored.dataset, window, guard)

  def go_back(self, step: int) -> None:
    """Removes the checkpoints after a step: the run has left that path."""
    self.wait()
    for later in self.steps():
      if later > step:
        self._manager.delete(later)

  def _put_aside(self, step: int, good: int, error: Exception) -> None:
    if jax.process_index() == 0:
      aside = self.directory / f'{BROKEN}_{step}'
      shutil.rmtree(aside, ignore_errors=True)
      (self.directory / f'{PREFIX}_{step}').rename(aside)
    self._manager.reload()
    self._notify(
      f'warning: {PREFIX}_{step} in {self.directory} is broken and was renamed'
      f' {BROKEN}_{step} ({restore.first_line(error)}); falling back to'
      f' {PREFIX}_{good}'
    )

  def close(self) -> None:
    """Waits for the write under way."""
    self.wait()
    self._manager.close()


def _what_to_keep(
  config: CheckpointConfig,
) -> ocp.checkpoint_managers.PreservationPolicy:
  managers = ocp.checkpoint_managers
  policies = [managers.LatestN(n=config.keep)]
  if config.keep_period:
    policies.append(managers.EveryNSteps(interval_steps=config.keep_period))
  if config.best:
    best = managers.BestN(
      get_metric_fn=_quality, n=1, keep_checkpoints_without_metrics=False
    )
    policies.append(best)
  return managers.AnyPreservationPolicy(policies)


def _quality(metrics: Mapping[str, float]) -> float:
  """NaN, of a run that has diverged, is the worst."""
  value = metrics['best']
  return value if value == value else -math.inf


def _encode(window: PyTree) -> list[dict[str, Any]]:
  """Leaves as JSON; decimal float64 holds every float32 to the last bit."""
  leaves = [np.asarray(x) for x in jax.device_get(jax.tree.leaves(window))]
  return [{'dtype': str(x.dtype), 'value': x.tolist()} for x in leaves]


def _decode(leaves: list[Mapping[str, Any]]) -> list[np.ndarray]:
  return [np.asarray(x['value'], x['dtype']) for x in leaves]


def _size(count: int) -> str:
  return f'{count / 1e9:.2f} GB' if count > 1e8 else f'{count / 1e6:.2f} MB'
