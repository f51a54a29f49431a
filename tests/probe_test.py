# SPDX-License-Identifier: Apache-2.0
"""Linear probes: the states of a layer, spans of words, the command line."""

import json

import numpy as np
import pytest

from metro_jax import inference, probe

pytest_plugins = ('tiny_run',)

TEXTS = ['Returns the mean of the array .', 'Returns the row for each key .']


@pytest.fixture(scope='module')
def model(tiny_run):
  return inference.load(tiny_run, batch_size=4)


def test_the_last_layer_is_what_encode_gives(model):
  ids = [model.vocabulary.encode(text) for text in TEXTS]
  found = probe.hidden_states(model, ids, 'main', 2)
  for h, wanted in zip(found, model.encode(TEXTS), strict=True):
    # Rows of other lengths: sums of up to 64 terms in another order.
    np.testing.assert_allclose(h, wanted.hidden, atol=2e-4)
  below = probe.hidden_states(model, ids, 'auxiliary', 1)
  assert below[0].shape == found[0].shape
  assert np.abs(below[0] - found[0]).max() > 0.1


@pytest.mark.slow
def test_a_span_is_the_mean_of_its_tokens(model):
  targets = [
    {'span1': [2, 4], 'label': 'x'},
    {'span1': [0, 1], 'span2': [2, 4], 'label': 'y'},
  ]
  records = [{'text': TEXTS[0], 'targets': targets[:1]}]
  rows, labels = probe.features(model, records, 'main', 2)
  (encoding,) = model.encode(TEXTS[:1])
  start, end = TEXTS[0].index('mean'), TEXTS[0].index(' the array')
  inside = [
    n for n, t in enumerate(encoding.tokens) if t.start < end and t.end > start
  ]
  wanted = encoding.hidden[inside].mean(0)
  np.testing.assert_allclose(rows[0], wanted, atol=2e-4)
  assert labels == ['x']
  records = [{'text': TEXTS[0], 'targets': targets[1:]}]
  pair, _ = probe.features(model, records, 'main', 2)
  np.testing.assert_allclose(pair[0, len(wanted) :], wanted, atol=2e-4)


def test_a_linear_task_is_learnt():
  rng = np.random.default_rng(0)
  x = rng.normal(size=(300, 8))
  labels = ['up' if v > 0 else 'down' for v in x @ rng.normal(size=8)]
  found = probe.probe((x[:200], labels[:200]), (x[200:], labels[200:]))
  assert found['accuracy'] > 0.9
  shuffled = rng.permutation(labels).tolist()
  found = probe.probe((x[:200], shuffled[:200]), (x[200:], shuffled[200:]))
  assert found['accuracy'] < 0.7


@pytest.mark.slow
def test_command_line(tiny_run, tmp_path, capsys):
  rows = []
  for text in TEXTS * 4:
    words = text.split(' ')
    targets = [
      {'span1': [n, n + 1], 'label': 'short' if len(w) < 4 else 'long'}
      for n, w in enumerate(words)
    ]
    rows.append({'text': text, 'targets': targets})
  path = tmp_path / 'words.jsonl'
  path.write_text('\n'.join(map(json.dumps, rows)))
  words = [f'--model_dir={tiny_run}', f'--train={path}', f'--test={path}']
  out = tmp_path / 'out.json'
  assert not probe.main([*words, '--layers=2', f'--output={out}'])
  assert json.loads(out.read_text())['layers']['2']['accuracy'] > 0.9
  assert probe.main([*words, '--layers=7']) == 2
  assert '7 is not one of the 2 layers of the main' in capsys.readouterr().err
  bad = rows[0] | {'targets': [{'span1': [3, 99], 'label': 'x'}]}
  path.write_text(json.dumps(bad))
  assert probe.main(words) == 2
  assert 'needs span1 within 7 words' in capsys.readouterr().err
