# SPDX-License-Identifier: Apache-2.0
"""An encoder-decoder on a task: what it tells an evaluation."""

import jax
import numpy as np
import pytest
import seq2seq_models

from metro_jax import models
from metro_jax.errors import UserError
from metro_jax.training.state import unbox

ROWS, LENGTH, TARGET = 3, 8, 6


def build(kind='generation', **rest):
  tasks = {'t': (kind, 0)}
  return models.for_text(seq2seq_models.metro_t5(), tasks, TARGET, **rest)


def shapes(model, batch):
  params = unbox(jax.eval_shape(model.init, jax.random.key(0), batch))
  return params, jax.eval_shape(model.outputs, params, batch)


@pytest.mark.parametrize('beams', [1, 3])
def test_writes_a_text_a_row(beams):
  model = build(beams=beams)
  batch = model.build_batch_spec(ROWS, LENGTH)
  _, outputs = shapes(model, batch)
  assert outputs['tokens'].shape == (ROWS, TARGET)


@pytest.mark.slow
def test_ranks_by_the_sum_of_log_probabilities():
  """Not by their mean: T0's rule."""
  model = build('rank')
  batch = dict(model.build_batch_spec(ROWS, LENGTH))
  batch['encoder_input_tokens'] += 7
  batch['encoder_segment_ids'] += 1
  batch['decoder_target_tokens'] += np.arange(TARGET, dtype=np.int32) + 5
  batch['decoder_segment_ids'] += (np.arange(TARGET) < [[2], [4], [6]]).astype(
    np.int32
  )
  batch['decoder_loss_weights'] = batch['decoder_segment_ids'] * 1.0
  params = unbox(jax.jit(model.init)(jax.random.key(0), batch))
  scores = np.asarray(jax.jit(model.outputs)(params, batch)['score'])
  # Near uniform at the start: each token costs about log(vocabulary).
  tokens = np.array([2, 4, 6])
  np.testing.assert_allclose(scores, -tokens * np.log(64), rtol=0.6)
  assert scores[0] > scores[1] > scores[2]


def test_parameters_are_those_of_pretraining():
  pretraining = seq2seq_models.metro_t5()
  spec = pretraining.build_batch_spec(ROWS, LENGTH)
  theirs = jax.eval_shape(pretraining.init, jax.random.key(0), spec)
  model = build(dropout_rate=0.3)
  ours, _ = shapes(model, model.build_batch_spec(ROWS, LENGTH))
  assert set(ours) == {'embedder', 'main'}
  for part, tree in ours.items():
    found = jax.tree.map(np.shape, unbox(theirs[part]))
    assert jax.tree.map(np.shape, tree) == found
  assert model.text_to_text.dropout_rate == 0.3


def test_mistakes():
  tasks = {'a': ('rank', 0), 'b': ('generation', 0)}
  with pytest.raises(UserError, match='train them in two runs'):
    models.for_text(seq2seq_models.metro_t5(), tasks, TARGET)
  import pretrain_models

  with pytest.raises(UserError, match='writing text needs a decoder'):
    models.for_text(pretrain_models.model(), {'a': ('rank', 0)}, TARGET)
