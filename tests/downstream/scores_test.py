# SPDX-License-Identifier: Apache-2.0
"""Metrics against published definitions and worked examples."""

import numpy as np
import pytest

from metro_jax.downstream import metrics, squad_metrics, superglue
from metro_jax.downstream.records import Example, Passage, Question
from metro_jax.downstream.squad_metrics import Answer
from metro_jax.errors import UserError


def test_binary_metrics_by_hand():
  labels = list('1' * 6 + '0' * 4)
  said = list('111100' + '0001')  # TP 4, FN 2, TN 3, FP 1.
  found = metrics.compute(('accuracy', 'f1', 'mcc'), labels, said)
  assert found['accuracy'] == pytest.approx(0.7)
  assert found['f1'] == pytest.approx(2 * 4 / (2 * 4 + 1 + 2))
  mcc = (4 * 3 - 1 * 2) / np.sqrt((4 + 1) * (4 + 2) * (3 + 1) * (3 + 2))
  assert found['mcc'] == pytest.approx(mcc)


def test_one_class_only_is_no_error():
  found = metrics.compute(('f1', 'mcc'), list('0011'), list('0000'))
  assert found == {'f1': 0.0, 'mcc': 0.0}


def test_correlations_by_hand():
  x, y = [1.0, 2.0, 3.0, 4.0], [1.0, 4.0, 9.0, 8.0]
  found = metrics.compute(('spearman', 'pearson'), x, y)
  # Ranks differ by 0, 0, 1, 1: 1 - 6 * 2 / (4 * 15).
  assert found['spearman'] == pytest.approx(1 - 6 * 2 / 60)
  assert found['pearson'] == pytest.approx(np.corrcoef(x, y)[0, 1])
  assert metrics.compute(('spearman',), x, [2.0] * 4) == {'spearman': 0.0}
  with pytest.raises(UserError, match="'rouge' is none of"):
    metrics.compute(('rouge',), x, y)


@pytest.mark.parametrize(
  'gold, said, exact, f1',
  [
    ('The Cat!', 'cat', 1.0, 1.0),
    ('a red car', 'the red, fast car', 0.0, 2 * 2 / (2 + 3)),
    ('', 'x', 0.0, 0.0),
    ('the', '', 1.0, 1.0),
    ('dog', 'cat', 0.0, 0.0),
    ("it's 3.5", 'its 35', 1.0, 1.0),
  ],
)
def test_squad_pairs(gold, said, exact, f1):
  assert squad_metrics.exact(gold, said) == exact
  assert squad_metrics.f1(gold, said) == pytest.approx(f1)


def passages(*answers):
  return [
    Passage(str(n), '?', 'c', tuple((a, 0) for a in golds))
    for n, golds in enumerate(answers)
  ]


def test_squad_takes_the_nearest_answer():
  records = passages(('red', 'red car'))
  found = squad_metrics.score_answers(records, [Answer('the red car')])
  assert found == {'exact': 100.0, 'f1': 100.0}


def test_squad_null_thresholds():
  records = passages(('cat',), ('dog',), (), ())
  answers = [
    Answer('cat', -2.0),
    Answer('bird', -1.0),
    Answer('x', 0.5),
    Answer('x', -0.5),
  ]
  found = squad_metrics.score_with_null(records, answers)
  # At 0: cat right, bird wrong, third right (silent), fourth wrong.
  assert found['exact'] == 50.0
  # Best: answer only the surest: cat, and two silent ones; dog is missed.
  assert found['best_exact'] == 75.0
  assert found['best_exact_threshold'] == -2.0


def test_squad_best_threshold_is_the_best_of_all():
  """Against a search over every threshold."""
  rng = np.random.default_rng(0)
  odds = rng.normal(size=40)
  silent = rng.random(40) < 0.5
  said = np.where(silent, 0.0, rng.random(40))
  value, _ = squad_metrics._best_threshold(odds, said, silent)
  all_of_them = [
    np.mean(np.where(odds > t, silent, said)) for t in [*odds, -np.inf]
  ]
  assert value == pytest.approx(max(all_of_them))


def test_multirc():
  ids = [(0, 0, 0), (0, 0, 1), (0, 1, 0), (1, 0, 0)]
  labels = ['1', '0', '1', '0']
  records = [
    Example(i, ('p', 'q'), label) for i, label in zip(ids, labels, strict=True)
  ]
  found = superglue.score_multirc(records, ['1', '1', '1', '0'])
  assert found['em'] == pytest.approx(2 / 3)  # The first question fails.
  assert found['f1a'] == pytest.approx(2 * 2 / (2 * 2 + 1))


def test_record():
  question = Question(0, (('a',),), ('x',), (), ('New York', 'NYC'))
  found = superglue.score_record([question] * 2, ['the New York', 'York'])
  assert found['em'] == 0.5
  assert found['f1'] == pytest.approx((1 + 2 / 3) / 2)
