# SPDX-License-Identifier: Apache-2.0
"""Batches of tasks' examples, as a pure function of (seed, step).

Keeps the promises of `TokenDataset`: example n of the stream is example
permutation(n mod size) of epoch n div size. Several tasks at once are one
stream, in which each example knows its task.
"""

import functools
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from metro_jax.data import files, hashing, vocabularies
from metro_jax.downstream import decode, metrics, registry
from metro_jax.downstream.encode import Encoded, encode
from metro_jax.downstream.records import Record, Task
from metro_jax.errors import UserError

VERSION = 1
Tasks = str | Task | Sequence[str | Task]


class TaskDataset:
  """One split of one task, or of several.

  Attributes:
    tasks: the tasks.
    batch_size: examples of a global batch.
    length: tokens in a row.
    vocabulary: of the model.
    vocab_size: its number of ids.
    num_examples: examples (pairs, windows) in an epoch.
    fingerprint: identity of the data and its order.
    truncated: rows that were cut to `length`.
  """

  def __init__(
    self,
    task: Tasks,
    folder: str | os.PathLike | Sequence[str | os.PathLike],
    split: str = 'train',
    length: int = 128,
    batch_size: int = 32,
    vocabulary: 'str | vocabularies.Vocabulary' = '',
    seed: int = 0,
    shuffle: bool = True,
    stride: int = 128,
    task_names: Sequence[str] | None = None,
  ):
    """Reads and tokenises the split.

    Args:
      task: name or `Task`, or several, which are then trained together.
      folder: where the files are: the benchmark's folder or the task's; one
        for all tasks, or one for each.
      split: 'train', or another of the tasks' splits.
      length: tokens in a row, specials included.
      batch_size: examples of a global batch.
      vocabulary: the model's, or its path.
      seed: of the order.
      shuffle: a new order each epoch. False: examples in the order of the
        file, and a last batch filled up with empty rows - for evaluation.
      stride: tokens from one window of a passage to the next.
      task_names: all tasks of the model, by whose order `task_ids` count;
        None if it has no others than these.
    """
    if batch_size < 1 or length < 8:
      raise UserError(
        f'BATCH_SIZE = {batch_size}, TASK_LENGTH = {length}: give at least one'
        ' example of 8 tokens'
      )
    pairs = with_folders(task, folder)
    self.tasks = tuple(t for t, _ in pairs)
    self.split, self.shuffle, self.seed = split, shuffle, seed
    self.batch_size, self.length = batch_size, length
    if not isinstance(vocabulary, vocabularies.Vocabulary):
      vocabulary = vocabularies.Vocabulary(vocabulary)
    self.vocabulary, self.vocab_size = vocabulary, vocabulary.size
    parts = [
      _load(t, str(f), split, vocabulary.path, length, shuffle, stride)
      for t, f in pairs
    ]
    self.records = [records for records, _ in parts]
    self._parts = [encoded for _, encoded in parts]
    self._check()
    names = task_names or [t.name for t in self.tasks]
    self._ids = [list(names).index(t.name) for t in self.tasks]
    self._ends = np.cumsum([len(part) for part in self._parts])
    self.num_examples = int(self._ends[-1])
    self.truncated = sum(part.truncated for part in self._parts)
    self.fingerprint = hashing.short_hash(
      VERSION,
      [
        (t.name, part.digest())
        for t, part in zip(self.tasks, self._parts, strict=True)
      ],
      split,
      length,
      batch_size,
      seed,
      shuffle,
      stride,
      vocabulary.hash,
    )

  def _check(self) -> None:
    shapes = {(p.choices, p.labels.ndim) for p in self._parts}
    if len(shapes) > 1:
      raise UserError(
        f'TASK: {[t.name for t in self.tasks]} cannot be trained together:'
        ' rankings and spans have batches of another shape'
      )

  @property
  def steps_per_epoch(self) -> int:
    """Batches that show every example once."""
    return -(-self.num_examples // self.batch_size)

  def position(self, step: int) -> dict[str, int]:
    """Where the stream is before `step`: epoch, and example within it."""
    if not self.shuffle:
      step %= self.steps_per_epoch
    epoch, example = divmod(step * self.batch_size, self.num_examples)
    return {'epoch': epoch, 'example': example}

  def examples(self, step: int, rows: slice | None = None) -> np.ndarray:
    """Numbers of a batch's examples, int64 [rows]; -1 is an empty one."""
    return epoch_order(self, step, rows)

  def batch(
    self, step: int, rows: slice | None = None
  ) -> dict[str, np.ndarray]:
    """The batch of a step, or some of its rows.

    Args:
      step: which batch, from 0; any number, in any order.
      rows: which rows of the global batch; None for all.

    Returns:
      What `finetune.Finetuner` takes, [rows, length] each, or [rows, choices,
      length] for rankings.
    """
    index = self.examples(step, rows)
    first = self._parts[0]
    count, shape = len(index), (len(index), first.choices, self.length)
    tokens = np.zeros(shape, np.int32)
    segments = np.zeros(shape, np.int32)
    candidates = np.zeros(shape, np.int32)
    labels = np.zeros((count, *first.labels.shape[1:]), np.float32)
    ids = np.zeros(count, np.int32)
    for row in np.flatnonzero(index >= 0):
      part = int(np.searchsorted(self._ends, index[row], side='right'))
      encoded = self._parts[part]
      unit = int(index[row] - self._ends[part]) + len(encoded)
      labels[row], ids[row] = encoded.labels[unit], self._ids[part]
      for choice in range(encoded.choices):
        ids_of_row = encoded.rows[unit * encoded.choices + choice]
        tokens[row, choice, : len(ids_of_row)] = ids_of_row
        segments[row, choice, : len(ids_of_row)] = 1
      if encoded.windows:
        candidates[row, 0] = encoded.windows[unit].candidates(self.length)
    ranked = any(task.kind == 'ranking' for task in self.tasks)
    shape = shape if ranked else (count, self.length)
    batch = {
      'encoder_input_tokens': tokens.reshape(shape),
      'encoder_segment_ids': segments.reshape(shape),
      'encoder_positions': (
        np.arange(self.length, dtype=np.int32) * segments
      ).reshape(shape),
      'labels': labels,
      'weights': (index >= 0).astype(np.float32),
      'task_ids': ids,
    }
    if first.windows:
      batch['span_candidates'] = candidates.reshape(shape)
    return batch

  def predictions(self, outputs: Mapping[str, np.ndarray]) -> list[Any]:
    """Predictions of all records, see `decode.predictions`.

    Args:
      outputs: logits [rows, ...] by task, of all batches of an epoch.
    """
    (task,), (records,) = self.tasks, self.records
    logits = outputs[task.name][: self.num_examples]
    return decode.predictions(task, records, self._parts[0], logits)

  def score(self, outputs: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Metrics of a whole split, none of a test split: its labels are hidden.

    Args:
      outputs: as for `predictions`.
    """
    if self.split.startswith('test'):
      return {}
    (task,), (records,) = self.tasks, self.records
    said = self.predictions(outputs)
    if task.score:
      return task.score(records, said)
    labels = [record.label for record in records]
    return metrics.compute(task.metrics, labels, said)

  def save_assets(self, model_dir: str | os.PathLike) -> None:
    """Copies vocabulary.model there, with a JSON of what it is."""
    self.vocabulary.save(pathlib.Path(model_dir))


def epoch_order(
  dataset: Any, step: int, rows: slice | None = None
) -> np.ndarray:
  """Numbers of the examples of a batch, int64 [rows]; -1 is an empty one.

  Args:
    dataset: has batch_size, num_examples, steps_per_epoch, seed and shuffle.
    step: which batch.
    rows: which rows of the global batch; None for all.
  """
  size, count = dataset.batch_size, dataset.num_examples
  place = np.arange(size, dtype=np.int64)[rows or slice(None)]
  if not dataset.shuffle:
    index = step % dataset.steps_per_epoch * size + place
    return np.where(index < count, index, -1)
  epoch, within = np.divmod(np.int64(step) * size + place, count)
  return hashing.permute(within, count, dataset.seed, epoch)


def with_folders(
  task: Tasks, folder: str | os.PathLike | Sequence[str | os.PathLike]
) -> list[tuple[Task, str | os.PathLike]]:
  """(task, its folder) for each task, with its classes known."""
  tasks = [task] if isinstance(task, str | Task) else list(task)
  folders = [folder] if isinstance(folder, str | os.PathLike) else list(folder)
  if len(folders) == 1:
    folders *= len(tasks)
  if len(folders) != len(tasks) or not tasks:
    raise UserError(
      f'TASK, TASK_DIR: {len(tasks)} tasks and {len(folders)} folders; give one'
      ' folder, or one for each task'
    )
  return [
    (registry.resolve(t, f), f) for t, f in zip(tasks, folders, strict=True)
  ]


@functools.lru_cache(maxsize=16)
def _cached(
  key: '_ByName',
  folder: str,
  split: str,
  stamp: str,
  vocabulary: pathlib.Path,
  length: int,
  train: bool,
  stride: int,
) -> tuple[Sequence[Record], Encoded]:
  del stamp  # Of the files: other ones are read again.
  task = key.task
  records = registry.read(task, folder, split)
  encoded = encode(
    task, records, vocabularies.Vocabulary(vocabulary), length, train, stride
  )
  if encoded.truncated:
    files.say(
      f'{task.name} {split}: {encoded.truncated} of {len(encoded.rows)} rows'
      f' were longer than {length} tokens and were cut'
    )
  return records, encoded


class _ByName:
  """A task as a key: two of one name that read the same are the same."""

  def __init__(self, task: Task):
    parts = (task.name, task.labels, task.splits, task.read)
    self.task, self._key = task, repr(parts)

  def __eq__(self, other: object) -> bool:
    return isinstance(other, _ByName) and self._key == other._key

  def __hash__(self) -> int:
    return hash(self._key)


def _load(
  task: Task,
  folder: str,
  split: str,
  vocabulary: pathlib.Path,
  length: int,
  train: bool,
  stride: int,
) -> tuple[Sequence[Record], Encoded]:
  """Reads and encodes once a process: gin builds a dataset more than once."""
  stamp = registry.stamp(task, folder, split)
  return _cached(
    _ByName(task), folder, split, stamp, vocabulary, length, train, stride
  )
