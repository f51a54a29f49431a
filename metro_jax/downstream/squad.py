# SPDX-License-Identifier: Apache-2.0
"""SQuAD 1.1 and 2.0, and data in their layout: answers as pieces of a text.

A task is any folder with `train` and `dev` files of SQuAD's own names. The
scores are those of SQuAD's evaluation scripts, see `squad_metrics`.
"""

import json
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

from metro_jax.downstream import squad_metrics
from metro_jax.downstream.records import Passage, Record, Task
from metro_jax.errors import UserError


def read(path: pathlib.Path, split: str) -> Iterator[Passage]:
  """Records of a file in SQuAD's layout, 1.1 or 2.0."""
  del split
  try:
    articles = json.loads(path.read_text(encoding='utf-8'))['data']
    for article in articles:
      for paragraph in article['paragraphs']:
        for question in paragraph['qas']:
          impossible = question.get('is_impossible', False)
          answers = () if impossible else question.get('answers', ())
          yield Passage(
            str(question['id']),
            question['question'],
            paragraph['context'],
            tuple((a['text'], a['answer_start']) for a in answers),
          )
  except FileNotFoundError:
    raise UserError(
      f"{path} does not exist; TASK_DIR must hold SQuAD's own files"
    ) from None
  except (OSError, ValueError, KeyError, TypeError) as error:
    raise UserError(f"{path}: not in SQuAD's layout: {error!r}") from None


def write(
  path: pathlib.Path,
  task: Task,
  records: Sequence[Record],
  predictions: Sequence[Any],
) -> None:
  """predictions.json as the official script takes it: id -> text."""
  del task
  texts = {
    record.id: prediction.text
    for record, prediction in zip(records, predictions, strict=True)
  }
  path.write_text(json.dumps(texts, ensure_ascii=False) + '\n', 'utf-8')


def _task(name: str, version: str, metrics: tuple[str, ...], score) -> Task:
  return Task(
    name,
    'span',
    {
      'train': (f'train-{version}.json',),
      'validation': (f'dev-{version}.json',),
    },
    read,
    metrics,
    submissions={'validation': 'predictions.json'},
    write=write,
    score=score,
  )


TASKS = (
  _task('squad1', 'v1.1', ('f1', 'exact'), squad_metrics.score_answers),
  _task(
    'squad2', 'v2.0', ('best_f1', 'best_exact'), squad_metrics.score_with_null
  ),
)
