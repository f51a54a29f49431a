# SPDX-License-Identifier: Apache-2.0
"""Loop, scan and remat compute one function; taps, depth-scaled init."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from metro_jax import modules
from metro_jax.errors import UserError

POSITIONS = modules.PositionConfig(
  num_buckets=8, max_distance=16, reset_cls=True
)
CONFIG = modules.TransformerConfig(
  embed_dim=16,
  num_heads=2,
  mlp_dim=24,
  num_layers=3,
  dtype='float32',
  positions=POSITIONS,
  init_stddev=0.2,
)
X = jax.random.normal(jax.random.key(7), (2, 6, 16))
SEGMENTS = jnp.array([[1, 1, 1, 2, 2, 0], [1] * 6])
PLACES = jnp.array([[0, 1, 2, 0, 1, 0], [0, 1, 2, 3, 4, 5]])
DROPOUT = modules.Dropout(0.1, 0.2, 0.3, seed=jnp.uint32(5))


def change(**fields):
  return dataclasses.replace(CONFIG, **fields)


def initialised(config):
  init = jax.jit(modules.Stack(config).init)
  return nn.unbox(init(jax.random.key(0), X, SEGMENTS, PLACES))['params']


PARAMS = initialised(CONFIG)


def loss_and_gradient(config, params, dropout):
  def loss(params, x):
    y, _ = modules.Stack(config).apply(
      {'params': params}, x, SEGMENTS, PLACES, dropout
    )
    return jnp.sum(jnp.sin(y))

  return jax.jit(jax.value_and_grad(loss, (0, 1)))(params, X)


def assert_close(a, b):
  for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
    np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('dropout', [None, DROPOUT], ids=['plain', 'dropout'])
@pytest.mark.parametrize(
  'placement,per_layer', [('post', False), ('pre', True)]
)
def test_scan_equals_loop(dropout, placement, per_layer):
  """Loss and every gradient, with one set of masks for both."""
  positions = dataclasses.replace(POSITIONS, per_layer=per_layer)
  loop = change(norm_placement=placement, positions=positions)
  scan = dataclasses.replace(loop, scan_layers=True)
  params = initialised(loop)
  stacked = modules.stack_layers(params)
  assert jax.tree.map(jnp.shape, stacked) == jax.tree.map(
    jnp.shape, initialised(scan)
  )
  a, (da, dxa) = loss_and_gradient(loop, params, dropout)
  b, (db, dxb) = loss_and_gradient(scan, stacked, dropout)
  assert_close((a, modules.stack_layers(da), dxa), (b, db, dxb))


def test_unstack_undoes_stack():
  params = PARAMS
  again = modules.unstack_layers(modules.stack_layers(params))
  assert jax.tree.structure(params) == jax.tree.structure(again)
  jax.tree.map(np.testing.assert_array_equal, params, again)


@pytest.mark.parametrize('scan', [False, True])
@pytest.mark.parametrize('remat', ['dots', 'full'])
def test_remat_changes_memory_only(scan, remat):
  plain = change(scan_layers=scan)
  params = initialised(plain)
  want = loss_and_gradient(plain, params, DROPOUT)
  got = loss_and_gradient(
    change(scan_layers=scan, remat=remat), params, DROPOUT
  )
  assert_close(got, want)


def test_remat_saves_less():
  """Bytes that the backward pass is handed, without running anything."""

  def saved(remat):
    config = change(remat=remat)

    def pullback(params):
      def f(params):
        return modules.Stack(config).apply(
          {'params': params}, X, SEGMENTS, PLACES, DROPOUT
        )[0]

      return jax.vjp(f, params)[1]

    kept = jax.eval_shape(pullback, PARAMS)
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(kept))

  none, dots, full = map(saved, ('none', 'dots', 'full'))
  assert full < dots < none


def test_a_layers_masks_differ_from_the_next():
  """Equal weights in all layers: only the masks can tell layers apart."""
  config = change(norm_placement='pre')
  params = initialised(config)
  out = jax.jit(
    lambda d: modules.Stack(config).apply(
      {'params': params}, X, None, None, d, taps=(1, 2, 3)
    )[1]
  )
  seeded = out(DROPOUT)
  again = out(DROPOUT)
  other = out(dataclasses.replace(DROPOUT, seed=jnp.uint32(6)))
  for a, b, c in zip(seeded, again, other, strict=True):
    np.testing.assert_array_equal(a, b)
    assert np.any(a != c)
  layer = [DROPOUT.fold(i).seed for i in range(3)]
  assert len(set(map(int, layer))) == 3


def test_taps_are_the_outputs_of_shallower_stacks():
  params = PARAMS
  last, taps = modules.Stack(CONFIG).apply({'params': params}, X, taps=(3, 1))
  np.testing.assert_array_equal(last, taps[0])
  shallow, _ = modules.Stack(change(num_layers=1)).apply({'params': params}, X)
  np.testing.assert_allclose(taps[1], shallow, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize('depth', [1, 2])
def test_stop_gradient_parts_the_stack(depth):
  """Later blocks send nothing below `depth`; the tap there still does."""
  params = PARAMS

  def f(params, of_tap):
    last, taps = modules.Stack(CONFIG).apply(
      {'params': params}, X, taps=(depth,), stop_gradient_at=(depth,)
    )
    return jnp.sum(taps[0] ** 3 if of_tap else last**3)

  def moved(of_tap):
    g = jax.jit(jax.grad(f), static_argnums=1)(params, of_tap)
    return [
      any(np.any(x) for x in jax.tree.leaves(g[f'layers_{i}']))
      for i in range(3)
    ]

  below = [i < depth for i in range(3)]
  assert moved(True) == below
  assert moved(False) == [not b for b in below]


def test_depths_are_checked():
  def run(config, **depths):
    return modules.Stack(config).init(jax.random.key(0), X, **depths)

  with pytest.raises(UserError, match=r'num_layers: depth 4 .* 1 to 3'):
    run(CONFIG, taps=(4,))
  with pytest.raises(UserError, match=r'scan_layers: depth 2 of 3'):
    run(change(scan_layers=True), stop_gradient_at=(2,))
  _, taps = modules.Stack(change(scan_layers=True)).init_with_output(
    jax.random.key(0), X, taps=(3,)
  )[0]
  assert taps[0].shape == X.shape


@pytest.mark.parametrize('scan', [False, True])
def test_scaled_init_is_equation_10(scan):
  """Both feed-forward matrices of layer l: std / sqrt(2 (l + 1))."""
  config = change(scaled_init=True, scan_layers=scan, embed_dim=64, mlp_dim=256)
  params = nn.unbox(
    jax.jit(modules.Stack(config).init)(
      jax.random.key(0), jnp.zeros((1, 2, 64))
    )
  )['params']
  if scan:
    params = modules.unstack_layers(params)
  for layer in range(3):
    block = params[f'layers_{layer}']
    for name in ('wi', 'wo'):
      kernel = block['mlp'][name]['kernel']
      # Relative standard error of a standard deviation: 1 / sqrt(2 n).
      want = 0.2 / np.sqrt(2 * (layer + 1))
      assert abs(kernel.std() / want - 1) < 5 / (2 * kernel.size) ** 0.5
    query = block['attention']['query']['kernel']
    assert abs(query.std() / 0.2 - 1) < 5 / (2 * query.size) ** 0.5


def test_cross_attention_reads_its_context():
  config = change(positions=modules.PositionConfig(relative=None))
  stack = modules.Stack(config, cross_attention=True, causal=True)
  context = jax.random.normal(jax.random.key(1), (2, 4, 20))
  kv = jnp.array([[1, 1, 2, 0], [1, 1, 1, 1]])

  def run(x, context):
    return stack.apply(
      params, x, SEGMENTS, context=context, context_segments=kv
    )[0]

  params = nn.unbox(
    jax.jit(
      lambda k: stack.init(k, X, SEGMENTS, context=context, context_segments=kv)
    )(jax.random.key(0))
  )
  run = jax.jit(run)
  base = run(X, context)
  # A padded key is not read; one of segment 2 is read by segment 2 only.
  np.testing.assert_array_equal(base, run(X, context.at[0, 3].add(1.0)))
  moved = np.any(base != run(X, context.at[0, 2].add(1.0)), axis=-1)
  assert moved.tolist() == [[False] * 3 + [True] * 2 + [False], [False] * 6]
  # Causal: a later token does not reach an earlier one.
  moved = np.any(base != run(X.at[1, 3].add(1.0), context), axis=-1)
  assert moved[1].tolist() == [False] * 3 + [True] * 3
