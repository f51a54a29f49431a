# SPDX-License-Identifier: Apache-2.0
"""SNLI and ANLI, which METRO-LM trains together with MNLI."""

import pathlib
from collections.abc import Iterator

from metro_jax.downstream import tables
from metro_jax.downstream.glue import ENTAILMENT
from metro_jax.downstream.records import Example, Task

_ANLI_LABELS = {'c': 'contradiction', 'n': 'neutral', 'e': 'entailment'}
_ROUNDS = ('R1', 'R2', 'R3')


def _snli(path: pathlib.Path, split: str) -> Iterator[Example]:
  """Pairs on which annotators did not agree ('-') are left out."""
  del split
  fields = ('sentence1', 'sentence2', 'gold_label')
  for line, row in tables.jsonl(path, fields):
    if row['gold_label'] != '-':
      label = tables.known(path, line, row['gold_label'], ENTAILMENT)
      pair = (row['sentence1'], row['sentence2'])
      yield Example(row.get('pairID', line), pair, label)


def _anli(path: pathlib.Path, split: str) -> Iterator[Example]:
  del split
  for line, row in tables.jsonl(path, ('context', 'hypothesis', 'label')):
    label = tables.known(path, line, row['label'], tuple(_ANLI_LABELS))
    pair = (row['context'], row['hypothesis'])
    yield Example(row.get('uid', line), pair, _ANLI_LABELS[label])


def _of_rounds(file: str) -> tuple[str, ...]:
  return tuple(f'{name}/{file}.jsonl' for name in _ROUNDS)


TASKS = (
  Task(
    'snli',
    'classification',
    {
      'train': ('snli_1.0_train.jsonl',),
      'validation': ('snli_1.0_dev.jsonl',),
      'test': ('snli_1.0_test.jsonl',),
    },
    _snli,
    ('accuracy',),
    ENTAILMENT,
    folder='snli_1.0',
  ),
  Task(
    'anli',
    'classification',
    {
      'train': _of_rounds('train'),
      'validation': _of_rounds('dev'),
      **{f'validation_{r.lower()}': (f'{r}/dev.jsonl',) for r in _ROUNDS},
      'test': _of_rounds('test'),
    },
    _anli,
    ('accuracy',),
    ENTAILMENT,
    folder='anli_v1.0',
  ),
)
