# SPDX-License-Identifier: Apache-2.0
"""SuperGLUE's eight tasks as METRO-LM puts them (appendix A), from .jsonl.

BoolQ, CB, MultiRC, RTE, WiC and WSC classify a text or a pair; COPA and ReCoRD
rank choices. MultiRC's and ReCoRD's scores are over groups of records.
"""

import collections
import functools
import json
import pathlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from metro_jax.downstream import metrics, squad_metrics, tables
from metro_jax.downstream.glue import ENTAILMENT
from metro_jax.downstream.records import Example, Question, Record, Task

_BOOLEAN = ('false', 'true')
_TWO_WAY = ('not_entailment', 'entailment')
_CONNECTIVE = {'cause': 'because', 'effect': 'so'}


def _label(path, line: int, row: Mapping[str, Any], labels: Sequence[str]):
  """A label as a class's name; None where the file has none."""
  if 'label' not in row:
    return None
  return tables.known(path, line, str(row['label']).lower(), labels)


def _pairs(
  path: pathlib.Path,
  split: str,
  *,
  fields: Sequence[str],
  texts: Callable[[Mapping[str, Any]], tuple[str, ...]],
  labels: Sequence[str],
) -> Iterator[Example]:
  """One example a line."""
  del split
  for line, row in tables.jsonl(path, fields):
    label = _label(path, line, row, labels)
    yield Example(row.get('idx', line - 1), texts(row), label)


def wic_texts(row: Mapping[str, Any]) -> tuple[str, ...]:
  """The marked word and the first sentence; the second sentence."""
  return (f'{row["word"]} {row["sentence1"]}', row['sentence2'])


def wsc_texts(row: Mapping[str, Any]) -> tuple[str, ...]:
  """The text with the pronoun marked; what it may stand for."""
  target = row['target']
  words = row['text'].split(' ')
  at = target['span2_index']
  words[at] = f'*{words[at]}*'
  return (' '.join(words), target['span1_text'])


def copa_question(
  row: Mapping[str, Any], idx: Any, best: tuple[int, ...]
) -> Question:
  """The premise with "because" or "so", and each alternative."""
  premise = f'{row["premise"].rstrip(" .")} {_CONNECTIVE[row["question"]]}'
  choices = ((premise, row['choice1']), (premise, row['choice2']))
  return Question(idx, choices, (0, 1), best)


def _copa(path: pathlib.Path, split: str) -> Iterator[Question]:
  del split
  fields = ('premise', 'choice1', 'choice2', 'question')
  for line, row in tables.jsonl(path, fields):
    tables.known(path, line, row['question'], tuple(_CONNECTIVE))
    best = (int(row['label']),) if 'label' in row else ()
    yield copa_question(row, row.get('idx', line - 1), best)


def _multirc(path: pathlib.Path, split: str) -> Iterator[Example]:
  """One example an answer; its id is (passage, question, answer)."""
  del split
  for line, row in tables.jsonl(path, ('passage', 'idx')):
    passage = row['passage']
    for question in passage['questions']:
      for answer in question['answers']:
        label = None
        if 'label' in answer:
          label = str(answer['label'])
          tables.known(path, line, label, ('0', '1'))
        yield Example(
          (row['idx'], question['idx'], answer['idx']),
          (passage['text'], f'{question["question"]} {answer["text"]}'),
          label,
        )


def record_question(
  idx: Any,
  passage: str,
  query: str,
  entities: Iterable[str],
  answers: Iterable[str],
) -> Question:
  """The query with each entity of the passage in the placeholder's place."""
  names, right = sorted(set(entities)), tuple(sorted(set(answers)))
  shown = re.sub(r'\s*@highlight\s*', ' ', passage)
  choices = tuple(
    (shown, query.replace('@placeholder', entity)) for entity in names
  )
  best = tuple(n for n, name in enumerate(names) if name in right)
  return Question(idx, choices, tuple(names), best, right)


def _record(path: pathlib.Path, split: str) -> Iterator[Question]:
  del split
  for _, row in tables.jsonl(path, ('passage', 'qas')):
    text = row['passage']['text']
    entities = [
      text[e['start'] : e['end'] + 1] for e in row['passage']['entities']
    ]
    for query in row['qas']:
      answers = [a['text'] for a in query.get('answers', ())]
      yield record_question(
        query['idx'], text, query['query'], entities, answers
      )


def score_multirc(
  records: Sequence[Example], predictions: Sequence[str]
) -> dict[str, float]:
  """F1 over all answers (F1a), and questions with every answer right (EM)."""
  labels = [record.label for record in records]
  right: dict[Any, bool] = collections.defaultdict(lambda: True)
  for record, said in zip(records, predictions, strict=True):
    right[record.id[:2]] &= record.label == said
  return {
    'f1a': metrics.METRICS['f1'](labels, list(predictions)),
    'em': float(np.mean(list(right.values()))),
  }


def score_record(
  records: Sequence[Question], predictions: Sequence[str]
) -> dict[str, float]:
  """Word F1 and exact match with the nearest answer, by SQuAD's rules."""
  both = {'f1': squad_metrics.f1, 'em': squad_metrics.exact}
  return {
    name: float(
      np.mean(
        [
          squad_metrics.best(measure, record.answers, said)
          for record, said in zip(records, predictions, strict=True)
        ]
      )
    )
    for name, measure in both.items()
  }


def score_copa(
  records: Sequence[Question], predictions: Sequence[int]
) -> dict[str, float]:
  """Share of the questions with the right choice."""
  right = [
    said == record.best[0]
    for record, said in zip(records, predictions, strict=True)
  ]
  return {'accuracy': float(np.mean(right))}


def write(
  path: pathlib.Path,
  task: Task,
  records: Sequence[Record],
  predictions: Sequence[Any],
) -> None:
  """A submission file: `idx` and `label` a line."""
  rows = []
  for record, said in zip(records, predictions, strict=True):
    rows.append({'idx': record.id, 'label': said})
  if task.name == 'multirc':
    rows = _nested(rows)
  if task.name == 'wsc':  # "True" and "False", unlike BoolQ and WiC.
    rows = [row | {'label': row['label'].capitalize()} for row in rows]
  path.write_text(''.join(json.dumps(row) + '\n' for row in rows), 'utf-8')


def _nested(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
  """MultiRC: passages of questions of answers."""
  passages: dict[Any, dict[Any, list]] = {}
  for row in rows:
    passage, question, answer = row['idx']
    answers = passages.setdefault(passage, {}).setdefault(question, [])
    answers.append({'idx': answer, 'label': int(row['label'])})
  return [
    {
      'idx': idx,
      'passage': {
        'questions': [{'idx': q, 'answers': a} for q, a in questions.items()]
      },
    }
    for idx, questions in passages.items()
  ]


def _task(name: str, folder: str, kind: str, read, **rest: Any) -> Task:
  return Task(
    name,
    kind,
    {
      'train': ('train.jsonl',),
      'validation': ('val.jsonl',),
      'test': ('test.jsonl',),
    },
    read,
    folder=folder,
    submissions={'test': f'{folder}.jsonl'},
    write=write,
    **rest,
  )


def _classification(
  name: str, folder: str, fields, texts, labels, scores=('accuracy',)
) -> Task:
  read = functools.partial(_pairs, fields=fields, texts=texts, labels=labels)
  return _task(
    name, folder, 'classification', read, metrics=scores, labels=labels
  )


def _field_pair(*fields: str):
  return fields, lambda row: tuple(row[name] for name in fields)


TASKS = (
  _classification(
    'boolq', 'BoolQ', *_field_pair('passage', 'question'), _BOOLEAN
  ),
  _classification(
    'cb',
    'CB',
    *_field_pair('premise', 'hypothesis'),
    ENTAILMENT,
    ('accuracy', 'macro_f1'),
  ),
  _task(
    'copa', 'COPA', 'ranking', _copa, metrics=('accuracy',), score=score_copa
  ),
  _task(
    'multirc',
    'MultiRC',
    'classification',
    _multirc,
    metrics=('f1a', 'em'),
    labels=('0', '1'),
    score=score_multirc,
  ),
  _task(
    'record',
    'ReCoRD',
    'ranking',
    _record,
    metrics=('f1', 'em'),
    score=score_record,
  ),
  _classification(
    'superglue_rte', 'RTE', *_field_pair('premise', 'hypothesis'), _TWO_WAY
  ),
  _classification(
    'wic', 'WiC', ('word', 'sentence1', 'sentence2'), wic_texts, _BOOLEAN
  ),
  _classification('wsc', 'WSC', ('text', 'target'), wsc_texts, _BOOLEAN),
)
