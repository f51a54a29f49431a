# SPDX-License-Identifier: Apache-2.0
"""Tasks by name, and their files in a folder."""

import dataclasses
import difflib
import functools
import os
import pathlib
from collections.abc import Iterator, Sequence

from metro_jax.downstream import (
  glue,
  nli,
  squad,
  superglue,
  t0,
  tables,
  text,
  tfds_tasks,
)
from metro_jax.downstream.records import Example, Passage, Record, Task
from metro_jax.errors import UserError

TASKS = {
  task.name: task
  for module in (glue, nli, superglue, squad, text, t0)
  for task in module.TASKS
}
Folder = str | os.PathLike


def resolve(task: str | Task, folder: Folder) -> Task:
  """A task by name, with what only its folder tells filled in.

  Args:
    task: name or task.
    folder: where its files are; read for classes that were left open, looked
      through for the templates of a mixture.
  """
  if isinstance(task, str):
    if task not in TASKS:
      near = difflib.get_close_matches(task, TASKS, n=1)
      hint = f'; did you mean {near[0]}?' if near else ''
      raise UserError(
        f'TASK: there is no task {task!r}{hint} It is one of {sorted(TASKS)},'
        ' or @downstream.own_task()'
      )
    task = TASKS[task]
  if isinstance(task, t0.Mixture):
    return task.in_folder(folder)
  if task.kind != 'classification' or task.labels:
    return task
  found = {str(record.label) for record in read(task, folder, 'train')}
  labels = tuple(sorted(found))
  bound = functools.partial(task.read, labels=labels)
  return dataclasses.replace(task, labels=labels, read=bound)


def paths(task: Task, folder: Folder, split: str) -> list[pathlib.Path]:
  """Files of a split, in the task's folder or in the benchmark's."""
  root = pathlib.Path(folder).expanduser()
  if not root.is_dir():
    raise UserError(f'TASK_DIR: {root} is not a folder')
  if split not in task.splits:
    raise UserError(
      f'{task.name} has no split {split!r}; it has {list(task.splits)}'
    )
  inside = root / task.folder
  chosen = inside if task.folder and inside.is_dir() else root
  return [chosen / name for name in task.splits[split]]


def has(task: Task, folder: Folder, split: str) -> bool:
  """Whether all of a split is there."""
  if folder == tfds_tasks.FOLDER:
    return tfds_tasks.has(task, split)
  return split in task.splits and all(
    path.is_file() for path in paths(task, folder, split)
  )


def stamp(task: Task, folder: Folder, split: str) -> str:
  """Another where the files of a split are other ones; '' without files."""
  if folder == tfds_tasks.FOLDER or not has(task, folder, split):
    return ''  # A file that is not there is for its reader to tell.
  stats = [path.stat() for path in paths(task, folder, split)]
  return repr([(s.st_size, s.st_mtime_ns) for s in stats])


def read(task: Task, folder: Folder, split: str) -> Sequence[Record]:
  """All records of a split, from its files or from TFDS.

  Raises:
    UserError: if a file is absent, broken, or of another layout.
  """
  if folder == tfds_tasks.FOLDER:
    return tfds_tasks.read(task, split)
  records: list[Record] = []
  for path in paths(task, folder, split):
    try:
      found = list(task.read(path, split))
    except UserError:
      raise
    except tables.OTHER_LAYOUT as error:
      raise UserError(
        f'{path}: not in the layout of {task.name}: {error!r}'
      ) from error
    for record in found:
      if not all(isinstance(text, str) for text in _texts(record)):
        raise UserError(f'{path}: what should be text in {record!r} is none')
    records += found
  if not records:
    files = ', '.join(map(str, paths(task, folder, split)))
    raise UserError(f'{task.name}: split {split!r} is empty ({files})')
  return records


def _texts(record: Record) -> Iterator[str]:
  """All that a model reads of a record."""
  if isinstance(record, Example):
    yield from record.texts
  elif isinstance(record, Passage):
    yield from (record.question, record.context)
    yield from (text for text, _ in record.answers)
  else:
    yield from (text for choice in record.choices for text in choice)
