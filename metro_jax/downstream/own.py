# SPDX-License-Identifier: Apache-2.0
"""The user's own data: tables of texts and labels, .tsv or .jsonl."""

import functools
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

from metro_jax.downstream import tables
from metro_jax.downstream.records import Example, Task
from metro_jax.errors import UserError


def own_task(
  train_file: str,
  validation_file: str,
  test_file: str | None = None,
  text: str = 'text',
  second_text: str | None = None,
  label: str = 'label',
  labels: Sequence[str] | None = None,
  upper: float | None = None,
  metrics: Sequence[str] | None = None,
  name: str = 'own',
) -> Task:
  """A classification or a regression on texts or pairs.

  Args:
    train_file: .tsv with a header, or .jsonl; relative to TASK_DIR.
    validation_file: likewise.
    test_file: likewise, labels not needed; predictions are written for it.
    text: column (field) of the text.
    second_text: of the second text, for pairs.
    label: of the label.
    labels: the classes. None for those that the train file has.
    upper: for a regression: labels are numbers in 0..upper.
    metrics: see `metrics.METRICS`; the first decides. By default accuracy, or
      Spearman and Pearson correlation.
    name: what results call the task.

  Returns:
    The task. `bind(folder)` completes it where `labels` are left open.
  """
  if labels is not None and upper is not None:
    raise UserError(
      'own_task: labels are for a classification, upper is for a regression;'
      ' bind one of them'
    )
  kind = 'classification' if upper is None else 'regression'
  defaults = ('accuracy',) if upper is None else ('spearman', 'pearson')
  splits = {'train': (train_file,), 'validation': (validation_file,)}
  if test_file:
    splits['test'] = (test_file,)
  texts = (text,) if second_text is None else (text, second_text)
  return Task(
    name,
    kind,
    splits,
    functools.partial(
      _read, texts=texts, label=label, labels=labels, upper=upper
    ),
    tuple(metrics or defaults),
    tuple(labels or ()),
    upper=upper or 1.0,
  )


def _read(
  path: pathlib.Path,
  split: str,
  *,
  texts: Sequence[str],
  label: str,
  labels: Sequence[str] | None,
  upper: float | None,
) -> Iterator[Example]:
  hidden = split.startswith('test')
  for line, row in _rows(path, (*texts, *(() if hidden else (label,)))):
    value: Any = row.get(label)
    if hidden:
      value = None
    elif upper is not None:
      value = tables.number(path, line, value, upper)
    else:
      value = str(value)
      if labels is not None:
        tables.known(path, line, value, tuple(labels))
    yield Example(
      row.get('id', line), tuple(str(row[name]) for name in texts), value
    )


def _rows(path: pathlib.Path, needed: Sequence[str]):
  readers = {'.tsv': tables.tsv, '.jsonl': tables.jsonl}
  if path.suffix not in readers:
    raise UserError(f'{path}: give a .tsv file with a header, or a .jsonl file')
  return readers[path.suffix](path, needed)
