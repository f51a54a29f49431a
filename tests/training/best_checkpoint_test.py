# SPDX-License-Identifier: Apache-2.0
"""The best checkpoint stays, over restarts too; datasets may score outputs."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import optax
import pytest
import toy

from metro_jax import training
from metro_jax.training.state import TrainState

CONFIG = training.CheckpointConfig(
  period=1, keep=1, best='validation/mcc', asynchronous=False
)


def save(folder, step, value=None):
  """As a run would that starts, saves once and ends."""
  state = TrainState.create({'w': jnp.zeros(2)}, optax.identity())
  state = state.replace(step=jnp.asarray(step))
  checkpointer = training.Checkpointer(str(folder), CONFIG)
  metrics = None if value is None else {'validation/mcc': value, 'x/loss': 9.0}
  checkpointer.save(state, {}, {}, metrics)
  checkpointer.close()
  return sorted(int(p.name.split('_')[1]) for p in folder.glob('checkpoint_*'))


def test_the_best_and_the_newest_stay(tmp_path):
  values = [0.1, 0.7, 0.3, float('nan'), 0.7, None, 0.2]
  kept = [save(tmp_path, step, value) for step, value in enumerate(values)]
  assert kept == [[0], [1], [1, 2], [1, 3], [4], [4, 5], [4, 6]]


class ScoredModel(toy.ToyModel):
  def outputs(self, params, batch):
    tokens = batch['encoder_target_tokens'].astype(jnp.float32)
    return {'sum': jnp.sum(tokens, axis=1)}


@dataclasses.dataclass(frozen=True)
class ScoredDataset(toy.ToyDataset):
  def score(self, outputs):
    sums = outputs['sum'][: self.size]
    return {'range': float(np.ptp(sums)), 'rows': float(len(outputs['sum']))}


def test_a_dataset_scores_all_predictions_in_order(tmp_path):
  dataset = ScoredDataset()
  with training.Partitioner().context():
    model = ScoredModel()
    params = training.initialization.initial_state(
      model,
      optax.identity(),
      dataset,
      training.Partitioner(),
      training.initialization.make_layout(
        model, optax.identity(), dataset, training.Partitioner()
      ),
      0,
    ).params
    evaluator = training.Evaluator(model, dataset, training.Partitioner())
    metrics, outputs = evaluator.predict(params)
  wanted = np.concatenate(
    [dataset.batch(s)['encoder_target_tokens'].sum(1) for s in range(3)]
  )
  np.testing.assert_array_equal(outputs['sum'], wanted)
  assert metrics['rows'] == 48
  assert metrics['range'] == np.ptp(wanted[:40])
  assert metrics['loss'] == pytest.approx(metrics['loss/mlm'], rel=0.2)
