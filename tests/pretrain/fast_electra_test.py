# SPDX-License-Identifier: Apache-2.0
"""Fast-ELECTRA: schedules, augmentations, and what needs no auxiliary."""

import jax
import jax.numpy as jnp
import numpy as np
import pretrain_models
import pytest
from scipy import special

from metro_jax import metrics, pretrain
from metro_jax.errors import UserError
from metro_jax.pretrain import MLM, RTD, MaskedTokens

EPS = float(np.finfo(np.float32).eps)
PROGRESS = np.array([0.0, 0.1, 0.25, 0.3, 0.5, 0.999, 1.0])
VOCAB = pretrain_models.VOCAB
COUNTS = tuple(range(0, VOCAB))  # Id 0 never comes up.

SCHEDULES = {
  pretrain.Constant(0.7): lambda u: 0.7 + 0 * u,
  pretrain.ExponentialDecay(0.7, 0.1): lambda u: 0.7 * np.exp(-u / 0.1),
  pretrain.PolynomialDecay(0.7, 3.0): lambda u: 0.7 * (1 - u) ** 3,
  pretrain.StepwiseDecay(0.7, 4): lambda u: 0.7 * (1 - np.floor(4 * u) / 4),
}


@pytest.mark.parametrize('schedule', SCHEDULES, ids=repr)
def test_schedules(schedule):
  got = jax.vmap(schedule)(PROGRESS.astype(np.float32))
  expected = SCHEDULES[schedule](PROGRESS)
  np.testing.assert_allclose(got, expected, atol=16 * EPS)
  assert schedule(0.5).dtype == jnp.float32


def test_equation_2_is_one_plus_exponential_decay():
  t_0, tau = 2.0, 0.1
  gamma = pretrain.ExponentialDecay(t_0 - 1, tau)
  expected = 1 + (t_0 - 1) * np.exp(-PROGRESS / tau)
  got = 1 + jax.vmap(gamma)(PROGRESS.astype(np.float32))
  np.testing.assert_allclose(got, expected, rtol=16 * EPS)


def model(augmentation=None, **changes):
  config = pretrain_models.config()
  defaults = {
    'auxiliary': pretrain.Auxiliary(config, augmentation=augmentation),
    'objectives': (RTD(),),
    'share': (),
  }
  return pretrain_models.model(**(defaults | changes))


@pytest.fixture(scope='module')
def params():
  return pretrain_models.init(model())


@pytest.fixture(scope='module')
def batch():
  return pretrain_models.numbered(pretrain_models.batch())


def propose(a_model, params, batch, progress, **rngs):
  def method(pretrainer, batch):
    masked = MaskedTokens.from_batch(batch, pretrainer.max_predictions)
    return pretrainer.propose(masked, progress)

  return a_model.pretrainer.apply(
    {'params': params}, batch, method=method, rngs=rngs
  )


def probabilities(proposal) -> np.ndarray:
  return special.softmax(np.asarray(proposal.sampling_logits(), np.float64), -1)


@pytest.mark.parametrize('progress', [0.0, 0.2, 1.0])
def test_equation_1_temperature(params, batch, progress):
  plain = propose(model(), params, batch, progress)
  warm = propose(model(pretrain.Temperature()), params, batch, progress)
  temperature = 1 + np.exp(-progress / 0.1)
  p = probabilities(plain) ** (1 / temperature)
  expected = p / p.sum(-1, keepdims=True)
  np.testing.assert_allclose(probabilities(warm), expected, rtol=1e-4)
  # The masked language model itself stays as it is.
  np.testing.assert_array_equal(
    warm.token_logits.features, plain.token_logits.features
  )
  assert float(warm.gamma) == pytest.approx(temperature - 1, rel=1e-6)


@pytest.mark.parametrize('progress', [0.0, 0.2, 1.0])
def test_logarithmic_interpolation_with_term_frequency(params, batch, progress):
  easy = pretrain.TermFrequency(lambda: COUNTS)
  augmentation = pretrain.Interpolate(easy, pretrain.ExponentialDecay(0.9))
  got = probabilities(propose(model(augmentation), params, batch, progress))
  gamma = 0.9 * np.exp(-progress / 0.1)
  hard = probabilities(propose(model(), params, batch, progress))
  expected = (np.array(COUNTS) / sum(COUNTS)) ** gamma * hard ** (1 - gamma)
  expected /= expected.sum(-1, keepdims=True)
  np.testing.assert_allclose(got, expected, rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize('kind', ['hidden', 'attention'])
def test_dropout_makes_the_proposal_another_at_the_start(params, batch, kind):
  schedule = pretrain.StepwiseDecay(0.5, 1)  # 0.5, and 0 at the end.
  dropping = model(pretrain.AuxiliaryDropout(kind, schedule))
  keys = [{'dropout': jax.random.key(i)} for i in range(2)]
  plain = probabilities(propose(model(), params, batch, 0.0))
  a, b = (
    probabilities(propose(dropping, params, batch, 0.0, **k)) for k in keys
  )
  assert np.abs(a - b).max() > 0.01 and np.abs(a - plain).max() > 0.01
  end = probabilities(propose(dropping, params, batch, 1.0, **keys[0]))
  np.testing.assert_allclose(end, plain, rtol=1e-4)


def test_drop_token_hides_tokens_that_are_not_special(batch):
  masked = MaskedTokens.from_batch(batch, 4)
  many = jax.tree.map(lambda x: np.repeat(x, 200, axis=0), masked.tokens)
  rows = np.arange(len(many), dtype=np.uint32)
  masked = masked.replace(tokens=many, row_ids=rows)
  got = np.asarray(
    pretrain.DropToken().tokens(masked, jnp.float32(0.3), jnp.uint32(1))
  )
  ordinary = many > 4
  np.testing.assert_array_equal(got[~ordinary], many[~ordinary])
  hidden = got[ordinary] == 1
  np.testing.assert_array_equal(got[ordinary][~hidden], many[ordinary][~hidden])
  sigma = (0.3 * 0.7 / hidden.size) ** 0.5
  assert hidden.mean() == pytest.approx(0.3, abs=5 * sigma)


def test_drop_token_reaches_the_proposal_and_not_the_main_model(params, batch):
  dropping = model(pretrain.DropToken(pretrain.Constant(1.0)))
  key = {'sample': jax.random.key(0)}
  got = propose(dropping, params, batch, 0.0, **key)
  blind = {**batch}
  tokens = batch['encoder_input_tokens']
  blind['encoder_input_tokens'] = np.where(tokens > 4, 1, tokens)
  blind['encoder_target_tokens'] = np.where(
    batch['encoder_loss_weights'] > 0, batch['encoder_target_tokens'], 1
  )
  expected = probabilities(propose(model(), params, blind, 0.0))
  used = np.asarray(MaskedTokens.from_batch(batch, 4).weights) > 0
  np.testing.assert_allclose(
    probabilities(got)[used], expected[used], rtol=1e-4
  )


def test_a_frozen_auxiliary_has_no_gradient_and_the_main_model_does(
  params, batch
):
  augmentations = (
    pretrain.Temperature(),
    pretrain.AuxiliaryDropout('hidden', pretrain.Constant(0.2)),
  )
  for augmentation in augmentations:
    gradient = pretrain_models.gradient(model(augmentation))
    (_, values), grads = gradient(params, batch, jax.random.key(0))
    assert not any(
      np.asarray(x).any() for x in jax.tree.leaves(grads['auxiliary'])
    )
    for part in ('embedder', 'main', 'rtd_head'):
      assert any(np.asarray(x).any() for x in jax.tree.leaves(grads[part]))
    assert 'curriculum/gamma' in values and 'loss/mlm' not in values


def test_flops_of_a_frozen_auxiliary_are_those_of_one_pass(batch):
  shape = (1, pretrain_models.LENGTH)
  main = pretrain_models.model(auxiliary=None, objectives=(RTD(),))
  main = main.flops_per_step(shape)
  frozen = model(pretrain.Temperature()).flops_per_step(shape) - main
  joint = model(objectives=(MLM(), RTD())).flops_per_step(shape) - main
  assert frozen * 3 == joint
  dropping = model(pretrain.AuxiliaryDropout()).flops_per_step(shape) - main
  assert dropping == frozen


# --- Without an auxiliary --------------------------------------------------


def expected_distribution(name: str, targets: np.ndarray) -> np.ndarray:
  """float64 [batch, slots, vocabulary] at gamma 0.4."""
  shape = (*targets.shape, VOCAB)
  uniform = np.full(shape, 1 / VOCAB)
  frequency = np.broadcast_to(np.array(COUNTS) / sum(COUNTS), shape)
  smoothed = np.full(shape, 0.35 / (VOCAB - 1))
  np.put_along_axis(smoothed, targets[..., None], 0.65, axis=-1)
  if name == 'uniform':
    return uniform
  if name == 'frequency':
    return frequency
  if name == 'smoothed':
    return smoothed
  easy = uniform if name == 'unf_to_soh' else frequency
  mixed = easy**0.4 * smoothed**0.6
  return mixed / mixed.sum(-1, keepdims=True)


def distribution(name: str):
  frequency = pretrain.TermFrequency(COUNTS)
  schedule = pretrain.Constant(0.4)
  return {
    'uniform': pretrain.Uniform(),
    'frequency': frequency,
    'smoothed': pretrain.SmoothedOneHot(),
    'unf_to_soh': pretrain.Interpolated(schedule=schedule),
    'tf_to_soh': pretrain.Interpolated(easy=frequency, schedule=schedule),
  }[name]


NAMES = ('uniform', 'frequency', 'smoothed', 'unf_to_soh', 'tf_to_soh')


@pytest.mark.parametrize('name', NAMES)
def test_distributions_without_an_auxiliary(batch, name):
  a_model = model(auxiliary=distribution(name))
  params = jax.eval_shape(a_model.init, jax.random.key(0), batch)
  assert set(params) == {'embedder', 'main', 'rtd_head'}
  params = pretrain_models.init(
    pretrain_models.model(auxiliary=None, objectives=(RTD(),))
  )
  got = propose(a_model, params, batch, 0.5)
  targets = np.asarray(MaskedTokens.from_batch(batch, 4).targets)
  np.testing.assert_allclose(
    probabilities(got),
    expected_distribution(name, targets),
    rtol=1e-4,
    atol=1e-12,
  )


def test_smoothed_one_hot_replaces_alpha_of_the_masked_tokens():
  many = pretrain_models.numbered(pretrain_models.batch(rows=400))
  a_model = pretrain_models.model(
    auxiliary=pretrain.SmoothedOneHot(0.35), objectives=(RTD(),)
  )
  params = pretrain_models.init(a_model)
  _, values = pretrain_models.loss(a_model)(params, many, jax.random.key(0), 0)
  masks = float(many['encoder_loss_weights'].sum())
  tokens = (many['encoder_segment_ids'] > 0).sum()
  rate = metrics.compute(values)['replace_rate'] * tokens / masks
  assert rate == pytest.approx(0.35, abs=5 * (0.35 * 0.65 / masks) ** 0.5)


@pytest.mark.parametrize(
  'make, says',
  [
    (lambda: pretrain.ExponentialDecay(rate=0.0), 'ExponentialDecay.rate'),
    (lambda: pretrain.StepwiseDecay(steps=0), 'StepwiseDecay.steps'),
    (lambda: pretrain.AuxiliaryDropout('all'), 'AuxiliaryDropout.kind'),
    (lambda: pretrain.SmoothedOneHot(1.0), 'SmoothedOneHot.alpha'),
    (
      lambda: pretrain.TermFrequency((1, 2, 3)).log_probabilities(2),
      'TermFrequency.counts',
    ),
  ],
)
def test_values_out_of_range_are_refused(make, says):
  with pytest.raises(UserError) as error:
    make()
  assert str(error.value).startswith(says)


def test_an_auxiliary_without_parameters_is_not_trained(batch):
  a_model = model(auxiliary=pretrain.Uniform(), objectives=(MLM(), RTD()))
  with pytest.raises(UserError, match='Uniform has nothing to train'):
    jax.eval_shape(a_model.init, jax.random.key(0), batch)
