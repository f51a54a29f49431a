# SPDX-License-Identifier: Apache-2.0
"""AMOS: heads at several depths, their mixture, and the reversed gradient."""

import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pretrain_models
import pytest
from jax.tree_util import keystr, tree_leaves_with_path
from scipy import special

from metro_jax import losses, metrics, ops, pretrain
from metro_jax.errors import UserError
from metro_jax.pretrain import MaskedTokens
from metro_jax.pretrain.sampling import straight_through

EPS = float(np.finfo(np.float32).eps)
DEPTHS = (1, 2, 3)
OBJECTIVES = (pretrain.MLM(), pretrain.RTD())


def auxiliary(**changes) -> pretrain.Auxiliary:
  defaults = {'mlm_layers': DEPTHS, 'mixture': pretrain.LearnedMixture()}
  return pretrain.Auxiliary(pretrain_models.config(3), **(defaults | changes))


def model(scale: float = -1.0, **changes):
  defaults = {
    'auxiliary': auxiliary(),
    'sampler': pretrain.GumbelStraightThrough(gradient_scale=scale),
    'objectives': OBJECTIVES,
  }
  return pretrain_models.model(**(defaults | changes))


@pytest.fixture(scope='module')
def amos() -> types.SimpleNamespace:
  batch = pretrain_models.numbered(pretrain_models.batch())
  params = pretrain_models.init(model())

  def gradients(scale: float, term: str) -> dict[str, np.ndarray]:
    normalizers = {
      name: np.float32(1 if name == term else np.inf) for name in ('mlm', 'rtd')
    }
    key = jax.random.key(0)
    _, grads = compiled[scale](params, batch, key, normalizers)
    return {
      keystr(path, simple=True, separator='/'): np.asarray(x)
      for path, x in tree_leaves_with_path(grads)
    }

  compiled = {s: pretrain_models.gradient(model(s)) for s in (-1.0, 1.0)}
  return types.SimpleNamespace(
    params=params,
    batch=batch,
    gradient=compiled[-1.0],
    adversarial=gradients(-1.0, 'rtd'),
    cooperative=gradients(1.0, 'rtd'),
    mlm=gradients(-1.0, 'mlm'),
  )


def proposal(an_auxiliary, params, batch, progress=1.0, **rngs):
  """Of the auxiliary in a Pretrainer with these parameters."""
  pretrainer = model(auxiliary=an_auxiliary).pretrainer

  def method(pretrainer, batch):
    masked = MaskedTokens.from_batch(batch, pretrainer.max_predictions)
    return pretrainer.propose(masked, progress)

  return pretrainer.apply({'params': params}, batch, method=method, rngs=rngs)


def reached(grads: dict[str, np.ndarray], prefix: str) -> set[str]:
  return {k for k, x in grads.items() if k.startswith(prefix) and x.any()}


def test_equation_2_adds_up_the_losses_of_all_heads(amos):
  got = proposal(auxiliary(), amos.params, amos.batch)
  masked = MaskedTokens.from_batch(amos.batch, pretrain_models.SLOTS)
  targets, used = np.asarray(masked.targets), np.asarray(masked.weights) > 0
  by_head = []
  for head in got.heads:
    x = np.asarray(head.logits(), np.float64)
    loss = (
      special.logsumexp(x, -1)
      - np.take_along_axis(x, targets[..., None], -1)[..., 0]
    )
    by_head.append(loss[used].mean())
  _, values = pretrain_models.loss(model())(
    amos.params, amos.batch, jax.random.key(0), 0
  )
  values = metrics.compute(values)
  assert values['loss/mlm'] == pytest.approx(sum(by_head), rel=64 * EPS)
  for depth, expected in zip(DEPTHS, by_head, strict=True):
    got = values[f'mlm_loss/layer_{depth}']
    assert got == pytest.approx(expected, rel=64 * EPS)
  assert len({round(x, 3) for x in by_head}) == 3


def test_equation_3_mixes_the_logits_of_all_heads(amos):
  got = proposal(auxiliary(), amos.params, amos.batch)
  logits = [np.asarray(head.logits(), np.float64) for head in got.heads]
  gamma = np.asarray(got.mixture, np.float64)
  expected = sum(gamma[..., k, None] * x for k, x in enumerate(logits))
  np.testing.assert_allclose(got.sampling_logits(), expected, atol=1e-4)
  np.testing.assert_allclose(gamma.sum(-1), 1, rtol=8 * EPS)
  assert np.ptp(gamma, axis=(0, 1)).min() > 0.01  # It differs by position.
  _, values = pretrain_models.loss(model())(
    amos.params, amos.batch, jax.random.key(0), 0
  )
  values = metrics.compute(values)
  used = np.asarray(MaskedTokens.from_batch(amos.batch, 4).weights) > 0
  for k, depth in enumerate(DEPTHS):
    expected = gamma[used][:, k].mean()
    assert values[f'mixture/layer_{depth}'] == pytest.approx(expected, rel=1e-5)


def test_weights_are_a_softmax_of_v_and_f():
  rng = np.random.default_rng(0)
  hidden = [rng.normal(size=(2, 3, 5)).astype(np.float32) for _ in range(4)]
  v = rng.normal(size=5).astype(np.float32)
  got = pretrain.LearnedMixture().apply(
    {'params': {'vector': v}}, hidden, 0.5, jnp.uint32(1)
  )
  scores = np.stack([f.astype(np.float64) @ v for f in hidden], -1)
  np.testing.assert_allclose(got, special.softmax(scores, -1), rtol=1e-5)


def test_straight_through_gradient():
  """Forward the row of the drawn id; backward the softmax, turned round."""
  rng = np.random.default_rng(1)
  logits = rng.normal(0, 2, (2, 3, 20)).astype(np.float32)
  table = rng.normal(size=(20, 6)).astype(np.float32)
  g = rng.normal(size=(2, 3, 6)).astype(np.float32)
  seed, rows = jnp.uint32(5), jnp.arange(2, dtype=jnp.uint32)
  sampler = pretrain.GumbelStraightThrough(0.3, gradient_scale=-0.5)

  def read(logits, table):
    sample = sampler(logits, seed, rows)
    x = table[sample.ids] + straight_through(sample.relaxed, table)
    return jnp.sum(x * g), (x, sample.ids)

  (_, (x, ids)), grads = jax.value_and_grad(read, argnums=(0, 1), has_aux=True)(
    logits, table
  )
  np.testing.assert_array_equal(ids, pretrain.Gumbel()(logits, seed, rows).ids)
  np.testing.assert_array_equal(x, table[np.asarray(ids)])
  noise = np.asarray(ops.gumbel_noise(logits.shape, seed, rows), np.float64)
  p = special.softmax((logits + noise) / 0.3, -1)
  u = g.astype(np.float64) @ table.T
  expected = -0.5 / 0.3 * p * (u - (p * u).sum(-1, keepdims=True))
  np.testing.assert_allclose(grads[0], expected, atol=1e-5)
  # The table's is that of the lookup alone: not turned round, not softened.
  lookup = np.zeros(table.shape)
  np.add.at(lookup, np.asarray(ids), g)
  np.testing.assert_allclose(grads[1], lookup, atol=1e-6)


def test_detection_moves_the_mixture_and_what_is_below_but_not_the_head(amos):
  moved = reached(amos.adversarial, 'auxiliary/')
  assert 'auxiliary/mixture/vector' in moved
  for part in ('position/embedding', 'norm/scale', 'norm/bias'):
    assert f'auxiliary/embedder/{part}' in moved
  for layer in range(3):
    assert f'auxiliary/encoder/stack/layers_{layer}/mlp/wi/kernel' in moved
  assert 'auxiliary/encoder/stack/relative_bias/embedding' in moved
  assert not any('mlm_head' in name for name in moved)


def test_the_auxiliary_seeks_what_the_main_model_learns(amos):
  """-1 and +1 differ in the sign of the auxiliary's gradients alone."""
  assert set(amos.adversarial) == set(amos.cooperative)
  largest = max(np.abs(x).max() for x in amos.adversarial.values())
  for name, x in amos.adversarial.items():
    y, close = amos.cooperative[name], {'rtol': 0, 'atol': 64 * EPS * largest}
    if name.startswith('auxiliary/'):
      np.testing.assert_allclose(x, -y, **close, err_msg=name)
    elif name != 'embedder/token/embedding':
      np.testing.assert_allclose(x, y, **close, err_msg=name)
  # Both meet in the shared table, and the main model's part keeps its sign.
  x, y = (
    grads['embedder/token/embedding']
    for grads in (amos.adversarial, amos.cooperative)
  )
  assert np.abs(x - y).max() > 1e-3 * np.abs(x).max()
  replaced = np.setdiff1d(
    np.arange(5, pretrain_models.VOCAB), amos.batch['encoder_input_tokens']
  )
  # Ids that the auxiliary never read: only replacements have a gradient.
  np.testing.assert_allclose(
    x[replaced], y[replaced], rtol=0, atol=64 * EPS * largest
  )
  assert x[replaced].any()


def test_the_loss_of_the_heads_does_not_reach_the_mixture(amos):
  moved = reached(amos.mlm, '')
  assert 'auxiliary/mixture/vector' not in moved
  assert 'auxiliary/mlm_head/dense/kernel' in moved
  assert not reached(amos.mlm, 'main/')


@pytest.mark.parametrize('stop', [True, False])
def test_heads_train_the_layers_above_the_last_head(amos, stop):
  def deepest(params):
    got = proposal(auxiliary(stop_gradient=stop), params, amos.batch)
    loss, *_ = losses.token_cross_entropy(
      got.token_logits, jnp.zeros(got.token_logits.features.shape[:-1], int)
    )
    return jnp.sum(loss)

  stack = jax.jit(jax.grad(deepest))(amos.params)['auxiliary']['encoder'][
    'stack'
  ]
  moved = [
    np.asarray(stack[f'layers_{i}']['mlp']['wi']['kernel']).any()
    for i in range(3)
  ]
  assert moved == ([False, False, True] if stop else [True] * 3)


def test_adversarial_mlm_scales_what_enters_the_head(amos):
  def head_gradient(multiplier: float) -> np.ndarray:
    mixture = pretrain.LearnedMixture(mlm_gradient=multiplier)

    def total(params):
      got = proposal(auxiliary(mixture=mixture), params, amos.batch)
      x = got.sampling_logits()
      return jnp.sum(x * jnp.cos(jnp.arange(x.shape[-1])))

    head = jax.jit(jax.grad(total))(amos.params)['auxiliary']['mlm_head']
    # The table and the bias only multiply out what has been mixed.
    assert not np.asarray(head['bias']).any()
    return np.asarray(head['dense']['kernel'])

  full = head_gradient(1.0)
  assert not head_gradient(0.0).any()
  np.testing.assert_allclose(
    head_gradient(0.1), 0.1 * full, rtol=0, atol=64 * EPS * np.abs(full).max()
  )


def test_microbatches_add_up(amos):
  """Through the sample too: noise follows the row."""
  key = jax.random.key(3)
  normalizers = model().normalizers(amos.batch)
  whole = amos.gradient(amos.params, amos.batch, key)[1]
  parts = [
    amos.gradient(
      amos.params,
      pretrain_models.rows_of(amos.batch, slice(i, i + 1)),
      key,
      normalizers,
    )[1]
    for i in range(pretrain_models.BATCH)
  ]
  grads = functools.reduce(metrics.merge, parts)
  for pick in (
    lambda g: g['auxiliary']['mixture']['vector'],
    lambda g: g['embedder']['token']['embedding'],
  ):
    expected = np.asarray(pick(whole))
    atol = 512 * EPS * np.abs(expected).max()
    np.testing.assert_allclose(pick(grads), expected, rtol=0, atol=atol)


HIDDEN = [np.zeros((2, 4, 8), np.float32)] * 3


def weights_of(mixture, progress=0.5, seed=0) -> np.ndarray:
  got = mixture(HIDDEN, jnp.float32(progress), jnp.uint32(seed))
  return np.broadcast_to(got, (2, 4, 3))[0, 0]


def test_mixtures_that_do_not_learn():
  np.testing.assert_allclose(weights_of(pretrain.UniformMixture()), [1 / 3] * 3)
  fixed = pretrain.FixedMixture((0.2, 0.3, 0.5))
  np.testing.assert_allclose(weights_of(fixed), [0.2, 0.3, 0.5])


@pytest.mark.parametrize(
  'progress, layer', [(0.0, 0), (0.333, 0), (0.334, 1), (0.667, 2), (1.0, 2)]
)
def test_layer_switch_goes_from_shallow_to_deep(progress, layer):
  got = weights_of(pretrain.LayerSwitch(), progress)
  np.testing.assert_array_equal(got, np.eye(3)[layer])


def test_random_layer_takes_one_layer_at_a_time_and_all_in_turn():
  seeds = np.random.default_rng(0).integers(0, 2**32, 600, dtype=np.uint32)
  mixture = pretrain.RandomLayer()
  got = jax.vmap(lambda seed: mixture(HIDDEN, 0.5, seed))(seeds)[:, 0, 0]
  assert set(np.unique(got)) == {0.0, 1.0}
  np.testing.assert_array_equal(got.sum(-1), 1)
  # Three binomials of 600 draws, within five standard deviations.
  np.testing.assert_allclose(got.mean(0), 1 / 3, atol=5 * (2 / 9 / 600) ** 0.5)


def test_random_layer_samples_from_the_layer_that_it_names(amos):
  chosen = auxiliary(mixture=pretrain.RandomLayer())
  params = dict(amos.params)
  params['auxiliary'] = {
    k: x for k, x in amos.params['auxiliary'].items() if k != 'mixture'
  }
  seen = set()
  for i in range(8):
    got = proposal(chosen, params, amos.batch, sample=jax.random.key(i))
    layer = int(np.argmax(got.mixture))
    np.testing.assert_allclose(
      got.sampling_logits(), got.heads[layer].logits(), atol=1e-5
    )
    seen.add(layer)
  assert len(seen) > 1


def test_ensemble_is_a_mixture_of_separate_auxiliaries():
  ensemble = pretrain.AuxiliaryEnsemble(
    pretrain_models.config(), (1, 2), pretrain.LearnedMixture()
  )
  a_model = model(auxiliary=ensemble)
  params = pretrain_models.init(a_model)
  assert set(params['auxiliary']) == {'members_0', 'members_1', 'mixture'}
  assert len(params['auxiliary']['members_1']['encoder']['stack']) == 3
  batch = pretrain_models.batch()
  got = proposal(ensemble, params, batch)
  alone = []
  for i in range(2):
    member = pretrain.Auxiliary(pretrain_models.config(i + 1))
    own = params | {'auxiliary': params['auxiliary'][f'members_{i}']}
    x = proposal(member, own, batch).sampling_logits()
    np.testing.assert_allclose(got.heads[i].logits(), x, atol=1e-5)
    alone.append(np.asarray(x))
  gamma = np.asarray(got.mixture)
  expected = sum(gamma[..., i, None] * x for i, x in enumerate(alone))
  np.testing.assert_allclose(got.sampling_logits(), expected, atol=1e-4)
  _, values = pretrain_models.loss(a_model)(params, batch, jax.random.key(0), 0)
  values = metrics.compute(values)
  names = ('member_0_layer_1', 'member_1_layer_2')
  assert sum(values[f'mixture/{x}'] for x in names) == pytest.approx(1)
  total = sum(values[f'mlm_loss/{x}'] for x in names)
  assert values['loss/mlm'] == pytest.approx(total, rel=64 * EPS)


@pytest.mark.parametrize(
  'changes, parameter, says',
  [
    ({'auxiliary': auxiliary(mlm_layers=(1, 4))}, 'mlm_layers', 'is 3'),
    ({'auxiliary': auxiliary(mlm_layers=(1, 2))}, 'mlm_layers', 'AUX_LAYERS'),
    ({'auxiliary': auxiliary(mlm_layers=(2, 1, 3))}, 'mlm_layers', 'ascending'),
    ({'auxiliary': auxiliary(dropout_rate=0.1)}, 'dropout_rate', 'learn'),
    ({'sampler': pretrain.Categorical()}, 'sampler', 'GumbelStraightThrough'),
    (
      {'auxiliary': auxiliary(mixture=pretrain.FixedMixture((0.5, 0.5)))},
      'FixedMixture.weights',
      '2 weights for 3 heads',
    ),
    (
      {'auxiliary': auxiliary(mixture=pretrain.LayerSwitch((0.5,)))},
      'LayerSwitch.at',
      'one fewer',
    ),
  ],
)
def test_what_does_not_fit_is_refused(changes, parameter, says):
  a_model = model(**changes)
  batch = a_model.build_batch_spec(1, 8)
  with pytest.raises(UserError) as error:
    jax.eval_shape(a_model.init, jax.random.key(0), batch)
  message = str(error.value)
  assert parameter in message.split(':')[0] and says in message
  assert '\n' not in message


def test_values_out_of_range_are_refused():
  with pytest.raises(UserError, match=r'FixedMixture\.weights'):
    pretrain.FixedMixture((0.5, 0.6))
  with pytest.raises(UserError, match='temperature'):
    pretrain.GumbelStraightThrough(temperature=0.0)


def test_flops_count_a_head_for_every_depth():
  """Against one head on top: two heads more, and the mixture's product."""
  shape = (1, pretrain_models.LENGTH)
  one = model(auxiliary=auxiliary(mlm_layers=None, mixture=None))
  width, vocab = pretrain_models.WIDTH, pretrain_models.VOCAB
  heads = 2 * pretrain_models.SLOTS * (width**2 + width * vocab)
  product = 2 * pretrain_models.SLOTS * width * vocab
  added = model().flops_per_step(shape) - one.flops_per_step(shape)
  assert added == 3 * 2 * heads + 3 * product
