# SPDX-License-Identifier: Apache-2.0
"""GLUE's nine tasks, from the .tsv files of its own distribution.

Every file has its quirks: CoLA's have no header but for the test file, MNLI
has two validation sets, QQP has rows with missing cells. Diagnostics (AX) are
a test split of MNLI, whose model answers them.
"""

import functools
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

from metro_jax.downstream import tables
from metro_jax.downstream.records import Example, Record, Task
from metro_jax.errors import UserError

ENTAILMENT = ('contradiction', 'neutral', 'entailment')
_BINARY = ('0', '1')
_TWO_WAY = ('not_entailment', 'entailment')
_ACCURACY_F1 = ('accuracy', 'f1')


def _columns(
  path: pathlib.Path,
  split: str,
  *,
  texts: Sequence[str],
  label: str,
  labels: Sequence[str] = (),
  upper: float = 0.0,
  lenient: bool = False,
) -> Iterator[Example]:
  """Records of a file with a header; test files have no label column."""
  hidden = split.startswith('test')
  needed = (*texts, *(() if hidden else (label,)))
  for index, (line, row) in enumerate(tables.tsv(path, needed, lenient)):
    value: str | float | None = None
    if not hidden:
      value = (
        tables.known(path, line, row[label], labels)
        if labels
        else tables.number(path, line, row[label], upper)
      )
    id_ = row.get('index', row.get('id', index)) if hidden else index
    yield Example(id_, tuple(row[name] for name in texts), value)


def _cola(path: pathlib.Path, split: str) -> Iterator[Example]:
  """No header: source, label, mark of the source, sentence."""
  if split == 'test':
    yield from _columns(path, split, texts=('sentence',), label='')
    return
  for number, line in enumerate(tables.lines(path), 1):
    cells = line.split('\t')
    if len(cells) < 4:
      raise UserError(
        f'{path}, line {number}: {len(cells)} cells; CoLA has four and no'
        ' header: source, label, mark, sentence'
      )
    label = tables.known(path, number, cells[1], _BINARY)
    yield Example(number - 1, (cells[3],), label)


def write(
  path: pathlib.Path,
  task: Task,
  records: Sequence[Record],
  predictions: Sequence[Any],
) -> None:
  """A submission file: `index`, `prediction`."""
  rows = ['index\tprediction']
  for record, value in zip(records, predictions, strict=True):
    if task.kind == 'regression':
      value = f'{min(max(value, 0.0), task.upper):.3f}'
    rows.append(f'{record.id}\t{value}')
  path.write_text('\n'.join(rows) + '\n', encoding='utf-8')


def _task(
  name: str,
  folder: str,
  texts: Sequence[str],
  label: str,
  labels: tuple[str, ...],
  metrics: tuple[str, ...],
  **read: Any,
) -> Task:
  return Task(
    name,
    'classification' if labels else 'regression',
    {
      'train': ('train.tsv',),
      'validation': ('dev.tsv',),
      'test': ('test.tsv',),
    },
    functools.partial(
      _columns, texts=texts, label=label, labels=labels, **read
    ),
    metrics,
    labels,
    upper=read.get('upper', 1.0),
    folder=folder,
    submissions={'test': f'{folder}.tsv'},
    write=write,
  )


COLA = Task(
  'cola',
  'classification',
  {'train': ('train.tsv',), 'validation': ('dev.tsv',), 'test': ('test.tsv',)},
  _cola,
  ('mcc', 'accuracy'),
  _BINARY,
  folder='CoLA',
  submissions={'test': 'CoLA.tsv'},
  write=write,
)
MNLI = Task(
  'mnli',
  'classification',
  {
    'train': ('train.tsv',),
    'validation': ('dev_matched.tsv',),
    'validation_mismatched': ('dev_mismatched.tsv',),
    'test': ('test_matched.tsv',),
    'test_mismatched': ('test_mismatched.tsv',),
    'test_diagnostic': ('diagnostic.tsv',),
  },
  functools.partial(
    _columns,
    texts=('sentence1', 'sentence2'),
    label='gold_label',
    labels=ENTAILMENT,
  ),
  ('accuracy',),
  ENTAILMENT,
  folder='MNLI',
  submissions={
    'test': 'MNLI-m.tsv',
    'test_mismatched': 'MNLI-mm.tsv',
    'test_diagnostic': 'AX.tsv',
  },
  write=write,
)
_PAIR = ('sentence1', 'sentence2')
TASKS = (
  COLA,
  _task('sst2', 'SST-2', ('sentence',), 'label', _BINARY, ('accuracy',)),
  _task(
    'mrpc', 'MRPC', ('#1 String', '#2 String'), 'Quality', _BINARY, _ACCURACY_F1
  ),
  _task('stsb', 'STS-B', _PAIR, 'score', (), ('spearman', 'pearson'), upper=5),
  _task(
    'qqp',
    'QQP',
    ('question1', 'question2'),
    'is_duplicate',
    _BINARY,
    _ACCURACY_F1,
    lenient=True,
  ),
  MNLI,
  _task(
    'qnli', 'QNLI', ('question', 'sentence'), 'label', _TWO_WAY, ('accuracy',)
  ),
  _task('rte', 'RTE', _PAIR, 'label', _TWO_WAY, ('accuracy',)),
  _task('wnli', 'WNLI', _PAIR, 'label', _BINARY, ('accuracy',)),
)
