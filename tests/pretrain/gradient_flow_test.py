# SPDX-License-Identifier: Apache-2.0
"""Which objective moves which parameters.

A loss term is switched off by an infinite normalizer: its gradient is then
exactly zero, and one compiled function serves every combination.
"""

import jax
import numpy as np
import pretrain_models
import pytest

TERMS = ('mlm', 'rtd', 'clm')


def gradient_of(term: str, gradient, params, batch) -> dict[str, float]:
  """Largest entry of the gradient of one term, by parameter path."""
  normalizers = {t: np.float32(1 if t == term else np.inf) for t in TERMS}
  _, grads = gradient(params, batch, jax.random.key(0), normalizers)
  return {
    jax.tree_util.keystr(path, simple=True, separator='/'): np.abs(x).max()
    for path, x in jax.tree_util.tree_leaves_with_path(grads)
  }


def reached(grads: dict[str, float]) -> set[str]:
  return {path for path, largest in grads.items() if largest > 0}


def below(paths, *prefixes: str) -> set[str]:
  return {path for path in paths if path.startswith(prefixes)}


# What never has a gradient: a key's bias shifts all logits of a query alike,
# as does the relative bias that replaces a [CLS] row.
def expected_to_move(paths) -> set[str]:
  return {path for path in paths if not path.endswith('key/bias')}


@pytest.fixture(scope='module')
def constrained(tiny) -> dict[str, dict[str, float]]:
  """Gradients by term, with METRO-LM's sharing: the token table only."""
  return {
    term: gradient_of(term, tiny.gradient, tiny.params, tiny.batch)
    for term in TERMS
  }


@pytest.fixture(scope='module')
def full() -> dict[str, dict[str, float]]:
  """The same with everything shared, and the second auxiliary pass."""
  model = pretrain_models.model(
    aux_dropout=0.1, share=('token', 'position', 'norm', 'lm_bias')
  )
  params = pretrain_models.init(model)
  gradient = pretrain_models.gradient(model)
  batch = pretrain_models.numbered(pretrain_models.batch())
  return {term: gradient_of(term, gradient, params, batch) for term in TERMS}


@pytest.mark.parametrize('term', ['rtd', 'clm'])
def test_main_objectives_never_reach_the_auxiliary(constrained, term):
  moved = reached(constrained[term])
  assert not below(moved, 'auxiliary/')
  assert 'embedder/token/embedding' in moved
  assert below(moved, 'embedder/position') and below(moved, 'embedder/norm')
  own = below(constrained[term], 'main/')
  assert below(moved, 'main/') >= expected_to_move(own)


def test_each_main_objective_moves_its_own_head(constrained):
  assert below(reached(constrained['rtd']), 'rtd_head', 'lm_head') == {
    'rtd_head/output/kernel',
    'rtd_head/output/bias',
  }
  assert below(reached(constrained['clm']), 'rtd_head', 'lm_head') == {
    'lm_head/bias'
  }


def test_the_auxiliary_loss_reaches_the_auxiliary_and_the_table(constrained):
  moved = reached(constrained['mlm'])
  own = below(constrained['mlm'], 'auxiliary/')
  assert below(moved, 'auxiliary/') >= expected_to_move(own)
  assert moved - own == {'embedder/token/embedding'}


def test_shared_parts_exist_once(full):
  paths = set(full['mlm'])
  assert not below(paths, 'auxiliary/embedder', 'lm_head')
  assert below(paths, 'auxiliary/encoder') and below(
    paths, 'auxiliary/mlm_head'
  )


def test_full_sharing_reaches_the_shared_parts_and_no_others(full):
  shared = below(full['mlm'], 'embedder/')
  assert shared == {
    'embedder/token/embedding',
    'embedder/position/embedding',
    'embedder/norm/scale',
    'embedder/norm/bias',
  }
  bias = {'auxiliary/mlm_head/bias'}
  assert not below(reached(full['mlm']), 'main/', 'rtd_head')
  for term, of_auxiliary in (('mlm', None), ('rtd', set()), ('clm', bias)):
    moved = reached(full[term])
    assert shared <= moved
    if of_auxiliary is not None:
      assert below(moved, 'auxiliary/') == of_auxiliary


@pytest.mark.parametrize(
  'share, own',
  [
    ((), {'token', 'position', 'norm'}),
    (('token', 'norm'), {'position'}),
    (('position',), {'token', 'norm'}),
  ],
)
def test_the_auxiliary_owns_what_it_does_not_share(share, own):
  model = pretrain_models.model(share=share)
  params = jax.eval_shape(
    model.init, jax.random.key(0), pretrain_models.batch()
  )
  assert set(params['auxiliary']['embedder']) == own
  assert set(params['embedder']) == {'token', 'position', 'norm'}
