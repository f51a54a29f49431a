# SPDX-License-Identifier: Apache-2.0
"""From a model's logits to predictions, one a record."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from metro_jax.downstream.encode import Encoded
from metro_jax.downstream.records import Passage, Question, Record, Task
from metro_jax.downstream.squad_metrics import Answer
from metro_jax.downstream.windows import Window

_BEST = 20  # Starts and ends of a window that are combined.
_LONGEST = 30  # Tokens of an answer.


def predictions(
  task: Task,
  records: Sequence[Record],
  encoded: Encoded,
  logits: np.ndarray,
) -> list[Any]:
  """What the model says of each record.

  Args:
    task: whose records they are.
    records: of a split.
    encoded: the same as rows.
    logits: float32 [units, ...], of all rows in order.

  Returns:
    Class names, numbers, names of choices (or the choices' scores, where
    several may be right), or `Answer`s.
  """
  if task.kind == 'classification':
    return [task.labels[n] for n in np.argmax(logits, axis=-1).tolist()]
  if task.kind == 'regression':
    return [float(x) * task.upper for x in logits]
  if task.kind == 'ranking':
    return _chosen(records, encoded, logits.reshape(-1))
  return _answers(records, encoded, logits)


def _chosen(
  records: Sequence[Question], encoded: Encoded, scores: np.ndarray
) -> list[Any]:
  """The name of each question's best choice."""
  best: dict[int, tuple[float, int]] = {}
  place: dict[int, int] = {}
  for owner, score in zip(encoded.owners.tolist(), scores, strict=True):
    number = place.get(owner, 0)
    place[owner] = number + 1
    if owner not in best or score > best[owner][0]:
      best[owner] = (float(score), number)
  return [record.names[best[n][1]] for n, record in enumerate(records)]


def _answers(
  records: Sequence[Passage], encoded: Encoded, logits: np.ndarray
) -> list[Answer]:
  """The best piece over all windows, and the odds that there is none.

  A window's null score is that of [CLS] as start and end; the lowest over a
  passage's windows counts (BERT's rule).
  """
  best = [('', -np.inf)] * len(records)
  null = np.full(len(records), np.inf)
  for window, (start, end) in zip(encoded.windows, logits, strict=True):
    owner = window.owner
    null[owner] = min(null[owner], start[0] + end[0])
    found = _best_piece(window, start, end)
    if found and found[1] > best[owner][1]:
      (first, last), score = found
      piece = records[owner].context[
        window.spans[first][0] : window.spans[last][1]
      ]
      best[owner] = (piece, score)
  return [
    Answer(text, float(null[n] - score)) for n, (text, score) in enumerate(best)
  ]


def _best_piece(
  window: Window, start: np.ndarray, end: np.ndarray
) -> tuple[tuple[int, int], float] | None:
  """((first, last) token of the passage, score); None if there is none."""
  inside = slice(window.first, window.first + len(window.spans))
  start, end = start[inside], end[inside]
  firsts = np.argsort(-start)[:_BEST]
  lasts = np.argsort(-end)[:_BEST]
  sums = start[firsts][:, None] + end[lasts][None]
  gap = lasts[None] - firsts[:, None]
  starts_here = np.asarray(window.widest, bool)[firsts][:, None]
  allowed = (gap >= 0) & (gap < _LONGEST) & starts_here
  if not allowed.any():
    return None
  sums = np.where(allowed, sums, -np.inf)
  i, j = np.unravel_index(np.argmax(sums), sums.shape)
  return (int(firsts[i]), int(lasts[j])), float(sums[i, j])
