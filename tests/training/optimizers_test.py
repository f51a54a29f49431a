# SPDX-License-Identifier: Apache-2.0
"""Optimizers and schedules against formulas written out in NumPy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from metro_jax import training
from metro_jax.errors import UserError

PARAMS = {
  'auxiliary': {'kernel': jnp.array([0.5, -1.0])},
  'main': {
    'kernel': jnp.array([[1.0, 2.0], [3.0, -4.0]]),
    'bias': jnp.array([0.1, 0.2]),
  },
}
GRADIENTS = {
  'auxiliary': {'kernel': jnp.array([30.0, 40.0])},
  'main': {
    'kernel': jnp.array([[0.3, -0.1], [0.2, 0.4]]),
    'bias': jnp.array([1.0, -2.0]),
  },
}


def run(optimizer, steps=3):
  params, slots = PARAMS, optimizer.init(PARAMS)
  for step in range(steps):
    gradients = jax.tree.map(lambda g, s=step: g * (1 + s), GRADIENTS)
    updates, slots = optimizer.update(gradients, slots, params)
    params = optax.apply_updates(params, updates)
  return params, slots


def oracle(
  name,
  rates,
  decay,
  clip,
  trained,
  factor=1.0,
  b1=0.9,
  b2=0.98,
  eps=1e-6,
):
  """AdamW of Loshchilov and Hutter after clipping, float64."""
  part, leaf = name.split('/')
  p = np.asarray(PARAMS[part][leaf], np.float64)
  m = v = np.zeros_like(p)
  for t, rate in enumerate(rates, 1):
    g = np.asarray(GRADIENTS[part][leaf], np.float64) * t
    norm = np.sqrt(
      sum(
        np.sum(np.square(np.asarray(GRADIENTS[a][b], np.float64) * t))
        for a, b in trained
      )
    )
    g = g * min(1.0, clip / norm)
    m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
    step = (m / (1 - b1**t)) / (np.sqrt(v / (1 - b2**t)) + eps)
    p = p - rate * (factor * step + decay * p)
  return p


ALL = [('auxiliary', 'kernel'), ('main', 'kernel'), ('main', 'bias')]


@pytest.mark.parametrize('frozen', [False, True])
def test_adamw_is_the_formula(frozen):
  schedule = training.linear_warmup_decay(1e-2, 2, 10)
  rates = [0.005, 0.01, 0.01]
  optimizer = training.adamw(
    schedule,
    weight_decay=0.1,
    clip_norm=0.5,
    no_decay=('.*/bias',),
    frozen=('auxiliary/.*',) if frozen else (),
  )
  params, slots = run(optimizer)
  trained = ALL[1:] if frozen else ALL
  for part, leaf in trained:
    expected = oracle(
      f'{part}/{leaf}', rates, 0.0 if leaf == 'bias' else 0.1, 0.5, trained
    )
    # Three fp32 updates of at most 1e-2 each, on values of at most 4.
    np.testing.assert_allclose(
      params[part][leaf],
      expected,
      rtol=4 * np.finfo(np.float32).eps,
      atol=1e-7,
      err_msg=f'{part}/{leaf}',
    )
  held = params['auxiliary']['kernel']
  unchanged = np.array_equal(held, PARAMS['auxiliary']['kernel'])
  assert unchanged == frozen
  # Two moments of each trained number, the count of Adam and of the schedule.
  numbers = sum(x.size for x in jax.tree.leaves(slots))
  assert numbers == 2 * (6 if frozen else 8) + 2


def test_no_clipping_and_constant_rate():
  params, _ = run(training.adamw(1e-3, clip_norm=None, weight_decay=0.0))
  expected = oracle('main/bias', [1e-3] * 3, 0.0, np.inf, ALL)
  np.testing.assert_allclose(params['main']['bias'], expected, rtol=1e-6)
  assert training.adamw(1e-3).learning_rate(7) == 1e-3


@pytest.mark.parametrize('frozen', [(), ('auxiliary/.*',)])
def test_parts_are_clipped_by_their_own_norms(frozen):
  """The auxiliary's gradient of norm 50 takes nothing from the main model."""
  params, _ = run(
    training.adamw(
      1e-2,
      weight_decay=0.1,
      clip_norm=None,
      clip_norm_of_parts=0.5,
      frozen=frozen,
    )
  )
  for part, leaf in ALL[1:] if frozen else ALL:
    own = [(a, b) for a, b in ALL if a == part]
    expected = oracle(f'{part}/{leaf}', [1e-2] * 3, 0.1, 0.5, own)
    np.testing.assert_allclose(params[part][leaf], expected, rtol=1e-6)


def test_rate_factors_are_of_the_first_pattern_and_not_of_the_decay():
  params, _ = run(
    training.adamw(
      1e-2,
      weight_decay=0.1,
      clip_norm=None,
      rate_factors={
        'main/kernel': 0.25,
        'main/.*': 3.0,
      },
    )
  )
  factors = {'main/kernel': 0.25, 'main/bias': 3.0, 'auxiliary/kernel': 1.0}
  for name, factor in factors.items():
    part, leaf = name.split('/')
    expected = oracle(name, [1e-2] * 3, 0.1, np.inf, ALL, factor)
    # Three fp32 updates of at most 3e-2 each, on values of at most 4.
    np.testing.assert_allclose(
      params[part][leaf], expected, rtol=4 * np.finfo(np.float32).eps, atol=1e-7
    )


@pytest.mark.parametrize(
  'arguments, words',
  [
    ({'clip_norm_of_parts': -1.0}, 'clip_norm_of_parts is -1'),
    (
      {'rate_factors': {'mian/.*': 2.0}},
      "rate_factors: 'mian/.\\*' matches no",
    ),
    ({'clip_norm': 0.0}, 'clip_norm is 0.0; give a positive norm'),
    ({'frozen': ('axiliary/.*',)}, 'matches no parameter'),
    ({'no_decay': ('(',)}, 'not a regular expression'),
  ],
)
def test_mistakes(arguments, words):
  with pytest.raises(UserError, match=words):
    run(training.adamw(1e-3, **arguments))


def test_width_factors_mistake():
  with pytest.raises(UserError, match='must be positive'):
    training.width_factors(0, 128)


def values(schedule, steps):
  return [float(jax.jit(schedule)(step)) for step in steps]


def test_schedules_by_hand():
  linear = training.linear_warmup_decay(1.0, 4, 12, end=0.2)
  np.testing.assert_allclose(
    values(linear, [0, 1, 3, 4, 8, 12, 99]),
    [0.25, 0.5, 1.0, 1.0, 0.6, 0.2, 0.2],
    rtol=1e-6,
  )
  rsqrt = training.rsqrt(0.5, 4)
  np.testing.assert_allclose(
    values(rsqrt, [0, 3, 15]), [0.125, 0.5, 0.25], rtol=1e-6
  )
  constant = training.constant(0.3, 3)
  np.testing.assert_allclose(
    values(constant, [0, 2, 50]), [0.1, 0.3, 0.3], rtol=1e-6
  )


def test_schedule_mistakes():
  with pytest.raises(UserError, match='warmup_steps=5 must be less'):
    training.linear_warmup_decay(1.0, 5, 5)
  with pytest.raises(UserError, match='must not be negative'):
    training.constant(-1.0)
  with pytest.raises(UserError, match='give 0 or more'):
    training.constant(1.0, -1)


def kernels(*shape):
  return jax.random.normal(jax.random.key(len(shape)), shape)


def test_muon_orthogonalises_what_a_projection_maps():
  shapes = {'query': (8, 2, 3), 'out': (2, 3, 8), 'wi': (8, 16)}
  fans = {'query': (8, 6), 'out': (6, 8), 'wi': (8, 16)}
  params = {name: {'kernel': kernels(*s)} for name, s in shapes.items()}
  params = {'main': {'stack': {'layers_0': params}}}
  optimizer = training.muon(
    1e-2, update_rms=0.3, weight_decay=0.0, clip_norm=None
  )
  updates, _ = optimizer.update(params, optimizer.init(params), params)
  for name, update in updates['main']['stack']['layers_0'].items():
    gradient = params['main']['stack']['layers_0'][name]['kernel']
    u, _, v = np.linalg.svd(
      np.reshape(gradient, fans[name]), full_matrices=False
    )
    matrix = -np.reshape(update['kernel'], fans[name])
    size = 1e-2 * 0.3 * np.sqrt(max(fans[name]))
    # The first momentum is along the gradient. Five Newton-Schulz steps bring
    # singular values near one, not to it: 0.68 to 1.13 (Jordan et al.).
    values = u.T @ matrix @ v.T / size
    assert (np.diag(values) > 0.65).all() and (np.diag(values) < 1.16).all()
    np.testing.assert_allclose(
      values - np.diag(np.diag(values)), 0, atol=1e-4, err_msg=name
    )


def test_muon_takes_scanned_layers_as_matrices_side_by_side():
  looped = {
    f'layers_{i}': {'out': {'kernel': kernels(2, 3, 8) * (i + 1) + i}}
    for i in range(2)
  }
  scanned = jax.tree.map(lambda *x: jnp.stack(x), *looped.values())
  optimizer = training.muon(1e-2)
  results = []
  for layers in (looped, {'layers': scanned}):
    params = {'main': {'stack': layers}}
    updates, _ = optimizer.update(params, optimizer.init(params), params)
    results.append(updates['main']['stack'])
  for i in range(2):
    np.testing.assert_allclose(
      results[1]['layers']['out']['kernel'][i],
      results[0][f'layers_{i}']['out']['kernel'],
      rtol=1e-4,
      atol=1e-8,
    )


def test_muon_leaves_all_else_to_adam_and_the_frozen_alone():
  muon = functools.partial(training.muon, 1e-2, matrices='main/kernel')
  params, _ = run(muon(frozen=('auxiliary/.*',)), steps=1)
  np.testing.assert_array_equal(
    params['auxiliary']['kernel'], PARAMS['auxiliary']['kernel']
  )
  moved = params['main']['bias'] - PARAMS['main']['bias']
  # Adam's first step is about the learning rate, against the gradient.
  np.testing.assert_array_equal(np.sign(moved), [-1, 1])
  with pytest.raises(UserError, match=r'training\.muon\.frozen'):
    run(muon(frozen=('decoder/.*',)), steps=1)
  for pattern in ('.*/stak/.*', '*'):  # All to Adam; no regular expression.
    with pytest.raises(UserError, match=r'training\.muon\.matrices'):
      run(muon(matrices=pattern), steps=1)
