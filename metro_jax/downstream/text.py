# SPDX-License-Identifier: Apache-2.0
"""Tasks cast as text to text: summarisation, and T0's rendered examples.

A record has an input and a target. One with answer choices is scored by rank
classification: the choice that the decoder finds likeliest is the prediction,
by the sum of its tokens' log-probabilities (T0's rule, no length
normalisation). One without is written by the decoder and scored by ROUGE.
"""

import dataclasses
import functools
import json
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from metro_jax.downstream import tables
from metro_jax.downstream.records import Task
from metro_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class TextPair:
  """A text to be read and one to be written.

  Attributes:
    id: what predictions call it.
    source: the input.
    target: what should be written.
    references: texts that a prediction is compared with; the nearest counts.
    choices: the texts that may be written; none: any.
  """

  id: Any
  source: str
  target: str
  references: tuple[str, ...] = ()
  choices: tuple[str, ...] = ()


def _read(
  path: pathlib.Path,
  split: str,
  *,
  source: str,
  target: str,
  choices: str | None = None,
  prefix: str = '',
) -> Iterator[TextPair]:
  """Pairs of a .jsonl or .tsv file; lists of sentences are joined."""
  readers = {'.tsv': tables.tsv, '.jsonl': tables.jsonl, '.json': tables.jsonl}
  if path.suffix not in readers:
    raise UserError(f'{path}: give a .tsv file with a header, or a .jsonl file')
  hidden = split.startswith('test')
  needed = (source, *(() if hidden else (target,)))
  for line, row in readers[path.suffix](path, needed):
    targets = row.get(target, '')
    targets = targets if isinstance(targets, list) else [targets]
    # P3 has white space around its targets, and none around its choices.
    references = tuple(text.strip() for text in targets)
    options = (
      tuple(o.strip() for o in row.get(choices) or ()) if choices else ()
    )
    text = (
      ' '.join(row[source]) if isinstance(row[source], list) else (row[source])
    )
    if options and not hidden and references[0] not in options:
      raise UserError(
        f'{path}, line {line}: {references[0]!r} is none of {list(options)}'
      )
    yield TextPair(
      row.get('id', line), prefix + text, references[0], references, options
    )


def score_rouge(
  records: Sequence[TextPair], predictions: Sequence[str]
) -> dict[str, float]:
  """Mean ROUGE F1 with the nearest reference, percent (rouge-score)."""
  from rouge_score import rouge_scorer

  names = ('rouge1', 'rouge2', 'rougeL')
  scorer = rouge_scorer.RougeScorer(names, use_stemmer=True)
  found = [
    scorer.score_multi(list(record.references), said)
    for record, said in zip(records, predictions, strict=True)
  ]
  return {
    name: 100.0 * float(np.mean([f[name].fmeasure for f in found]))
    for name in names
  }


def score_rank(
  records: Sequence[TextPair], predictions: Sequence[str]
) -> dict[str, float]:
  """Share of the records whose likeliest choice is the target."""
  right = [
    said == record.target
    for record, said in zip(records, predictions, strict=True)
  ]
  return {'accuracy': float(np.mean(right))}


def text_task(
  train_file: str,
  validation_file: str,
  test_file: str | None = None,
  source: str = 'inputs_pretokenized',
  target: str = 'targets_pretokenized',
  choices: str | None = None,
  prefix: str = '',
  name: str = 'text',
) -> Task:
  """The user's own texts, or P3's rendered examples, as .jsonl or .tsv.

  Args:
    train_file: relative to TASK_DIR.
    validation_file: likewise.
    test_file: likewise, targets not needed.
    source: field of the input, a text or a list of sentences.
    target: field of the target; a list is several references, of which the
      first is learnt.
    choices: field of the answer choices, for rank classification; None to
      have texts written and scored by ROUGE.
    prefix: put before every input, e.g. 'summarize: '.
    name: what results call the task.

  Returns:
    The task.
  """
  splits = {'train': (train_file,), 'validation': (validation_file,)}
  if test_file:
    splits['test'] = (test_file,)
  fields = {'source': source, 'target': target, 'choices': choices}
  return Task(
    name,
    'rank' if choices else 'generation',
    splits,
    functools.partial(_read, prefix=prefix, **fields),
    ('accuracy',) if choices else ('rouge2', 'rougeL', 'rouge1'),
    write=write,
    score=score_rank if choices else score_rouge,
  )


def write(
  path: pathlib.Path,
  task: Task,
  records: Sequence[TextPair],
  predictions: Sequence[str],
) -> None:
  """One prediction a line, as JSON."""
  del task
  lines = [
    json.dumps({'id': record.id, 'text': said}, ensure_ascii=False)
    for record, said in zip(records, predictions, strict=True)
  ]
  path.write_text('\n'.join(lines) + '\n', encoding='utf-8')


def _summaries(name: str, source: str, target: str) -> Task:
  task = text_task(
    'train.jsonl',
    'validation.jsonl',
    'test.jsonl',
    source,
    target,
    name=name,
  )
  return dataclasses.replace(task, folder=name)


TASKS = (
  _summaries('cnn_dailymail', 'article', 'highlights'),
  _summaries('xsum', 'document', 'summary'),
)
