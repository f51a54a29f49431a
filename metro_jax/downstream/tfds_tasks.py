# SPDX-License-Identifier: Apache-2.0
"""Benchmarks as TFDS prepares them: the same records as those of their files.

`TASK_DIR = 'tfds'` reads them so. Nothing is downloaded.
"""

import functools
import os
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from metro_jax.downstream import superglue
from metro_jax.downstream.records import Example, Passage, Record, Task
from metro_jax.downstream.text import TextPair
from metro_jax.errors import UserError

FOLDER = 'tfds'  # As TASK_DIR.

Row = Mapping[str, Any]
# row, its number, the task -> its record.
_Convert = Callable[[Row, int, Task], Record | TextPair]
_PAIR = ('sentence1', 'sentence2')


def _label(row: Row, task: Task) -> str | float | None:
  """By the name that the task has for it: TFDS's, or its number."""
  label = row['label']
  if task.kind == 'regression':
    return None if label < 0 else float(label)
  if label is None:
    return None
  name = label.name.lower()
  return name if name in task.labels else str(label.number)


def _fields(*names: str) -> _Convert:
  return _texts(lambda row: tuple(row[name] for name in names))


def _texts(texts: Callable[[Row], tuple[str, ...]]) -> _Convert:
  def convert(row: Row, number: int, task: Task) -> Example:
    del number
    return Example(row['idx'], texts(row), _label(row, task))

  return convert


def _wsc(row: Row, number: int, task: Task) -> Example:
  texts = superglue.wsc_texts({'text': row['text'], 'target': row})
  return Example(row['idx'], texts, _label(row, task))


def _multirc(row: Row, number: int, task: Task) -> Example:
  idx = row['idx']
  texts = (row['paragraph'], f'{row["question"]} {row["answer"]}')
  place = (idx['paragraph'], idx['question'], idx['answer'])
  return Example(place, texts, _label(row, task))


def _copa(row: Row, number: int, task: Task) -> Record:
  best = () if row['label'] is None else (row['label'].number,)
  return superglue.copa_question(row, row['idx'], best)


def _record(row: Row, number: int, task: Task) -> Record:
  return superglue.record_question(
    row['idx']['query'],
    row['passage'],
    row['query'],
    row['entities'],
    row['answers'],
  )


def _squad(row: Row, number: int, task: Task) -> Passage:
  answers = row['answers']
  found = zip(answers['text'], answers['answer_start'], strict=True)
  answered = not row.get('is_impossible', False)
  return Passage(
    row['id'],
    row['question'],
    row['context'],
    tuple(found) if answered else (),
  )


def _summary(source: str, target: str, row, number: int, task) -> TextPair:
  return TextPair(
    row.get('id', number), row[source], row[target], (row[target],)
  )


# Task -> dataset of TFDS, and what makes a record of a row.
_DATASETS: dict[str, tuple[str, _Convert]] = {
  'cola': ('glue/cola', _fields('sentence')),
  'sst2': ('glue/sst2', _fields('sentence')),
  'mrpc': ('glue/mrpc', _fields(*_PAIR)),
  'qqp': ('glue/qqp', _fields('question1', 'question2')),
  'stsb': ('glue/stsb', _fields(*_PAIR)),
  'mnli': ('glue/mnli', _fields('premise', 'hypothesis')),
  'qnli': ('glue/qnli', _fields('question', 'sentence')),
  'rte': ('glue/rte', _fields(*_PAIR)),
  'wnli': ('glue/wnli', _fields(*_PAIR)),
  'boolq': ('super_glue/boolq', _fields('passage', 'question')),
  'cb': ('super_glue/cb', _fields('premise', 'hypothesis')),
  'copa': ('super_glue/copa', _copa),
  'multirc': ('super_glue/multirc', _multirc),
  'record': ('super_glue/record', _record),
  'superglue_rte': ('super_glue/rte', _fields('premise', 'hypothesis')),
  'wic': ('super_glue/wic', _texts(superglue.wic_texts)),
  'wsc': ('super_glue/wsc', _wsc),
  'squad1': ('squad/v1.1', _squad),
  'squad2': ('squad/v2.0', _squad),
  'cnn_dailymail': (
    'cnn_dailymail',
    functools.partial(_summary, 'article', 'highlights'),
  ),
  'xsum': ('xsum', functools.partial(_summary, 'document', 'summary')),
}
# Splits that have another name there.
_SPLITS = {
  ('mnli', 'validation'): ('glue/mnli', 'validation_matched'),
  ('mnli', 'test'): ('glue/mnli', 'test_matched'),
  ('mnli', 'test_diagnostic'): ('glue/ax', 'test'),
}


def has(task: Task, split: str) -> bool:
  """Whether TFDS has prepared a split of a task."""
  return split in task.splits and _rows().has(*_where(task, split))


def read(task: Task, split: str) -> Sequence[Record]:
  """All records of a split, as `registry.read` has them from files."""
  name, there = _where(task, split)
  _, convert = _DATASETS[task.name]
  rows = _rows().rows(name, there)
  return [convert(row, number, task) for number, row in enumerate(rows)]


def _rows() -> types.ModuleType:
  """The reader; TensorFlow is loaded where TFDS is asked for, and quietly."""
  os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '2')
  from metro_jax.data import tfds_rows

  return tfds_rows


def _where(task: Task, split: str) -> tuple[str, str]:
  """Dataset and split of TFDS."""
  if task.name not in _DATASETS:
    raise UserError(
      f'TASK_DIR = {FOLDER!r}: {task.name} is read from files only; of TFDS are'
      f' read {", ".join(_DATASETS)}'
    )
  name, _ = _DATASETS[task.name]
  return _SPLITS.get((task.name, split), (name, split))
