# SPDX-License-Identifier: Apache-2.0
"""Scores of sentences against one token at a time, and the command line."""

import json

import numpy as np
import pytest

from metro_jax import inference, minimal_pairs
from metro_jax.errors import UserError

pytest_plugins = ('tiny_run',)
PAIRS = [
  ('Returns the mean of the array.', 'Returns the array mean of the.'),
  ('Returns the row for each key.', 'Row for the each.'),
]


@pytest.fixture(scope='module')
def model(tiny_run):
  return inference.load(tiny_run, batch_size=8)


@pytest.mark.slow
@pytest.mark.parametrize('head', ['auxiliary', 'lm'])
def test_sums_of_masked_log_probabilities(model, head):
  """Against `fill`, which tells the probabilities of all candidates."""
  text = PAIRS[0][0]
  ids = model.vocabulary.encode(text)
  total = 0.0
  for place, token in enumerate(ids):
    row = np.array([[2, *ids, 3]], np.int32)
    row[0, place + 1] = 4
    found = model.model.predict_batch(
      model.params,
      {'encoder_input_tokens': row},
      'fill',
      head=head,
      top_k=model.model.vocab_size,
      max_fills=1,
    )
    at = np.flatnonzero(np.asarray(found.ids)[0, 0] == token)[0]
    total += np.log(float(found.probabilities[0, 0, at]))
  texts = [text, PAIRS[1][1]]
  scores = minimal_pairs.sentence_scores(model, texts, head)
  np.testing.assert_allclose(scores[0], total, rtol=1e-4)
  alone = minimal_pairs.sentence_scores(model, texts[1:], head)
  np.testing.assert_allclose(scores[1], alone[0], rtol=1e-5)


def test_the_detectors_sum(model):
  (score,) = minimal_pairs.sentence_scores(model, [PAIRS[0][0]], 'detector')
  (found,) = model.detect([PAIRS[0][0]])
  np.testing.assert_allclose(
    score, np.log(1 - found.p_replaced).sum(), rtol=1e-4
  )


def test_command_line(tiny_run, tmp_path, capsys):
  rows = [{'sentence_good': g, 'sentence_bad': b} for g, b in PAIRS]
  rows.append({'sentence_good': 'The key.', 'sentence_bad': 'The key.'})
  path = tmp_path / 'order.jsonl'
  path.write_text('\n'.join(map(json.dumps, rows)))
  words = [f'--model_dir={tiny_run}', '--head=detector']
  out = tmp_path / 'out.json'
  assert not minimal_pairs.main([*words, f'--input={path}', f'--output={out}'])
  result = json.loads(out.read_text())
  assert result['accuracy']['order'] in (0.0, 1 / 3, 2 / 3)  # A tie is wrong.
  assert 'mean of 1, by detector' in capsys.readouterr().out
  assert minimal_pairs.main([*words, '--input=/nowhere/*.jsonl']) == 2
  assert 'no file has such a name' in capsys.readouterr().err
  with pytest.raises(UserError, match='--head=rtd: give one of auxiliary'):
    minimal_pairs.sentence_scores(None, [], 'rtd')
