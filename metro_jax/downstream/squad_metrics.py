# SPDX-License-Identifier: Apache-2.0
"""Exact match and F1 as SQuAD's evaluation scripts define them.

For SQuAD 2.0 a model also says how sure it is that there is no answer. Scores
come twice: with its own decision, at threshold 0 (`exact`, `f1`), and at the
threshold that suits this data best (`best_exact`, `best_f1`), which is what
COCO-LM, AMOS and METRO-LM report.
"""

import collections
import dataclasses
import re
import string
from collections.abc import Callable, Sequence

import numpy as np

from metro_jax.downstream.records import Passage

_PUNCTUATION = re.compile(f'[{re.escape(string.punctuation)}]')
_ARTICLES = re.compile(r'\b(a|an|the)\b')


@dataclasses.dataclass(frozen=True)
class Answer:
  """What a model says of a passage.

  Attributes:
    text: the best piece of the passage.
    null_odds: log-odds of "there is no answer" against that piece.
  """

  text: str
  null_odds: float = -np.inf


def normalize(text: str) -> str:
  """Lower case, no punctuation, no articles, single spaces."""
  text = _PUNCTUATION.sub('', text.lower())
  return ' '.join(_ARTICLES.sub(' ', text).split())


def exact(gold: str, said: str) -> float:
  """1 if the two are the same once normalised."""
  return float(normalize(gold) == normalize(said))


def f1(gold: str, said: str) -> float:
  """Overlap of words; two empty answers agree."""
  gold_words, said_words = normalize(gold).split(), normalize(said).split()
  if not gold_words or not said_words:
    return float(gold_words == said_words)
  common = collections.Counter(gold_words) & collections.Counter(said_words)
  same = sum(common.values())
  return 2.0 * same / (len(gold_words) + len(said_words))


def best(
  measure: Callable[[str, str], float], golds: Sequence[str], said: str
) -> float:
  """Against the gold answer that it is nearest to; none is an empty one."""
  # As the script does: an answer that normalises to nothing is no answer.
  real = [gold for gold in golds if normalize(gold)] or ['']
  return max(measure(gold, said) for gold in real)


def score_answers(
  records: Sequence[Passage], answers: Sequence[Answer]
) -> dict[str, float]:
  """SQuAD 1.1: every question has an answer. Percent."""
  return {
    name: 100.0 * float(np.mean(_values(measure, records, answers)))
    for name, measure in (('exact', exact), ('f1', f1))
  }


def score_with_null(
  records: Sequence[Passage], answers: Sequence[Answer]
) -> dict[str, float]:
  """SQuAD 2.0, at threshold 0 and at the best threshold. Percent."""
  odds = np.array([answer.null_odds for answer in answers])
  silent = np.array([not _golds(record) for record in records])
  out = {}
  for name, measure in (('exact', exact), ('f1', f1)):
    said = _values(measure, records, answers)
    out[name] = 100.0 * float(np.mean(np.where(odds > 0, silent, said)))
    value, threshold = _best_threshold(odds, said, silent)
    out[f'best_{name}'] = 100.0 * value
    out[f'best_{name}_threshold'] = threshold
  return out


def _best_threshold(
  odds: np.ndarray, said: np.ndarray, silent: np.ndarray
) -> tuple[float, float]:
  """Highest mean score, and the threshold on `odds` that gives it.

  Starts with no answer at all, and lets the surest answers in one by one; like
  the script, a question without an answer only ever loses by one.
  """
  order = np.argsort(odds, kind='stable')
  gained = np.where(silent, -1.0, said)[order]
  totals = np.concatenate([[0.0], np.cumsum(gained)]) + silent.sum()
  at = int(np.argmax(totals))
  threshold = 0.0 if at == 0 else float(odds[order[at - 1]])
  return float(totals[at]) / len(odds), threshold


def _values(measure, records, answers) -> np.ndarray:
  return np.array(
    [
      best(measure, _golds(record), answer.text)
      for record, answer in zip(records, answers, strict=True)
    ]
  )


def _golds(record: Passage) -> list[str]:
  return [text for text, _ in record.answers if normalize(text)]
