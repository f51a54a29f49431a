# SPDX-License-Identifier: Apache-2.0
"""What a fine-tuning run takes from its tasks: heads, lengths, evaluations."""

import functools
from collections.abc import Callable, Sequence

from metro_jax.downstream import registry
from metro_jax.downstream.dataset import TaskDataset, Tasks, with_folders
from metro_jax.errors import UserError

# Arguments of TaskDataset but task, folder, split, shuffle and task_names.
MakeDataset = Callable[..., TaskDataset]


def heads(task: Tasks, folder: str | Sequence[str]) -> dict:
  """Task name -> (kind, classes), for the model."""
  found = {
    t.name: (t.kind, len(t.labels)) for t, _ in with_folders(task, folder)
  }
  for name, (kind, classes) in found.items():
    if kind == 'classification' and classes < 2:
      raise UserError(f'{name}: {classes} classes; a classification needs two')
  return found


def train_steps(
  dataset: TaskDataset, epochs: float, max_steps: int | None = None
) -> int:
  """Steps of so many epochs; at most `max_steps`."""
  if epochs <= 0:
    raise UserError(f'EPOCHS: {epochs} is not over 0')
  steps = max(1, round(dataset.num_examples * epochs / dataset.batch_size))
  return min(steps, max_steps or steps)


def warmup_steps(warmup: float, train_steps: int) -> int:
  """`warmup` steps, or that fraction of all steps where it is less than 1."""
  if warmup < 0:
    raise UserError(f'WARMUP: {warmup} is negative')
  steps = round(warmup * train_steps) if warmup < 1 else int(warmup)
  return min(steps, train_steps - 1)


def period(train_steps: int, times: int) -> int:
  """Steps between `times` evaluations, the last of them at the end."""
  return max(1, -(-train_steps // times))


def eval_datasets(
  task: Tasks, folder: str | Sequence[str], dataset: MakeDataset
) -> dict[str, TaskDataset]:
  """All validation splits that the folder has, each by its name.

  Args:
    task: name or task, or several; names then start with the task's.
    folder: as in `TaskDataset`.
    dataset: makes one, given task, folder, split, shuffle and task_names.
  """
  return _datasets(task, folder, dataset, 'validation', needed=True)


def test_datasets(
  task: Tasks, folder: str | Sequence[str], dataset: MakeDataset
) -> dict[str, TaskDataset]:
  """The same of test splits, whose labels are not told; may be none."""
  return _datasets(task, folder, dataset, 'test', needed=False)


def _datasets(task, folder, dataset, start, needed) -> dict[str, TaskDataset]:
  pairs = with_folders(task, folder)
  names = [t.name for t, _ in pairs]
  out = {}
  for a_task, a_folder in pairs:
    prefix = f'{a_task.name}/' if len(pairs) > 1 else ''
    make = functools.partial(
      dataset, a_task, a_folder, shuffle=False, task_names=names
    )
    splits = a_task.splits_like(start)
    present = [s for s in splits if registry.has(a_task, a_folder, s)]
    # The first is asked for anyway, so that its absence is told by name.
    for split in present or (splits[:1] if needed else ()):
      out[f'{prefix}{split}'] = make(split=split)
  return out


def best_metric(task: Tasks, folder: str | Sequence[str]) -> str:
  """The metric that decides which checkpoint is best: evaluation/metric."""
  pairs = with_folders(task, folder)
  first = pairs[0][0]
  prefix = f'{first.name}/' if len(pairs) > 1 else ''
  return f'{prefix}validation/{first.metrics[0]}'
