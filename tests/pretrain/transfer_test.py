# SPDX-License-Identifier: Apache-2.0
"""An auxiliary out of another run's checkpoint, by the real trainer."""

import dataclasses
import pathlib

import jax
import numpy as np
import pretrain_models
import pytest
from jax.tree_util import keystr, tree_leaves_with_path

from metro_jax import modules, pretrain, training
from metro_jax.errors import UserError
from metro_jax.pretrain import RTD, CorrectiveLM, auxiliary_source

FROZEN = training.adamw(1e-2, frozen=('auxiliary/.*',))


@dataclasses.dataclass(frozen=True)
class Text:
  """The batch of `pretrain_models`, at every step."""

  batch_size: int = 8  # One row for each simulated device.
  length: int = pretrain_models.LENGTH
  vocab_size: int = pretrain_models.VOCAB
  fingerprint: str = 'text'
  vocabulary: str = 'words'

  def batch(self, step, rows=None):
    del step
    return pretrain_models.rows_of(
      pretrain_models.batch(rows=8), rows or slice(None)
    )

  def position(self, step):
    return {'epoch': step, 'example': 0}

  def save_assets(self, model_dir):
    path = pathlib.Path(model_dir) / 'vocabulary.model'
    path.write_text(self.vocabulary)


def masked_lm(layers: int = 1):
  config = pretrain_models.config(layers)
  return pretrain_models.model(
    config=config,
    main=modules.Encoder(config),
    auxiliary=None,
    objectives=(CorrectiveLM(),),
    lm_head=modules.LMHead(config),
    share=(),
  )


def fast_electra(layers: int = 1):
  auxiliary = pretrain.Auxiliary(
    pretrain_models.config(layers), augmentation=pretrain.Temperature()
  )
  return pretrain_models.model(
    auxiliary=auxiliary, objectives=(RTD(),), share=()
  )


def train(model, model_dir, steps=2, source=None, dataset=None, **options):
  partial = training.PartialCheckpoint(
    source and str(source), ('auxiliary/.*',), auxiliary_source
  )
  result = training.train(
    model=model,
    model_dir=str(model_dir),
    train_dataset=dataset or Text(),
    train_steps=steps,
    stats_period=steps,
    tensorboard=False,
    partitioner=training.Partitioner(),
    partial_checkpoint=partial,
    **({'optimizer': training.adamw(1e-2)} | options),
  )
  return {
    keystr(path, simple=True, separator='/'): np.asarray(x)
    for path, x in tree_leaves_with_path(jax.device_get(result.state.params))
  }


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
  root = tmp_path_factory.mktemp('runs')
  return root, train(masked_lm(), root / 'mlm')


def test_a_masked_lm_becomes_the_auxiliary_and_stays_as_it_is(runs):
  root, source = runs
  after = train(
    fast_electra(), root / 'fast', source=root / 'mlm', optimizer=FROZEN
  )
  renamed = {'encoder': 'main', 'mlm_head': 'lm_head'}
  own = [name for name in after if name.startswith('auxiliary/')]
  assert len(own) > 20
  for name in own:
    _, part, *rest = name.split('/')
    there = '/'.join([renamed.get(part, part), *rest])
    np.testing.assert_array_equal(after[name], source[there], err_msg=name)
  # Going on needs the checkpoint no more: the run's own has it.
  more = train(
    fast_electra(), root / 'fast', 3, source=root / 'mlm', optimizer=FROZEN
  )
  for name in own:
    np.testing.assert_array_equal(more[name], after[name])


def test_what_does_not_fit_is_refused_in_a_line(runs):
  root, _ = runs
  deep = fast_electra(layers=2)
  with pytest.raises(UserError, match=r'layers_1\S* is absent there'):
    train(deep, root / 'deep', source=root / 'mlm', optimizer=FROZEN)
  other = Text(vocabulary='other words')
  with pytest.raises(UserError, match='not the vocabulary'):
    train(
      fast_electra(),
      root / 'other',
      source=root / 'mlm',
      optimizer=FROZEN,
      dataset=other,
    )
  with pytest.raises(UserError, match='does not exist'):
    train(fast_electra(), root / 'none', source=root / 'nowhere')


WANTED = (
  'auxiliary/embedder/token/embedding',
  'auxiliary/encoder/stack/layers_0/mlp/wi/kernel',
  'auxiliary/mlm_head/bias',
)


def test_an_auxiliary_is_taken_with_what_it_shared():
  saved = (
    'embedder/token/embedding',
    'auxiliary/encoder/stack/layers_0/mlp/wi/kernel',
    'auxiliary/mlm_head/bias',
    'main/stack/layers_0/mlp/wi/kernel',
    'main/stack/layers_1/mlp/wi/kernel',
  )
  assert auxiliary_source(WANTED, saved) == {
    WANTED[0]: 'embedder/token/embedding',
    WANTED[1]: WANTED[1],
    WANTED[2]: WANTED[2],
  }


def test_a_deeper_model_is_not_taken_in_part():
  saved = (
    'embedder/token/embedding',
    'lm_head/bias',
    'main/stack/layers_0/mlp/wi/kernel',
    'main/stack/layers_1/mlp/wi/kernel',
  )
  with pytest.raises(UserError, match=r'layers_1.*AUX_LAYERS'):
    auxiliary_source(WANTED, saved)
  with pytest.raises(UserError, match='mixture/vector is not one'):
    auxiliary_source(('auxiliary/mixture/vector',), saved)
