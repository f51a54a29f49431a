# SPDX-License-Identifier: Apache-2.0
"""AdaMax and layer-wise rates against formulas written out in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from metro_jax import training
from metro_jax.errors import UserError


def tree(value):
  return {
    'embedder': {'token': {'embedding': jnp.array([value, -value])}},
    'heads': {'cola': {'output': {'bias': jnp.array([2 * value])}}},
    'main': {
      'stack': {
        'layers_0': {'mlp': {'kernel': jnp.array([[value]])}},
        'layers_1': {'mlp': {'kernel': jnp.array([[3 * value]])}},
        'relative_bias': jnp.array([value]),
      }
    },
  }


def leaves(params):
  return {
    jax.tree_util.keystr(path): np.asarray(x, np.float64)
    for path, x in jax.tree_util.tree_leaves_with_path(params)
  }


def run(optimizer, params, gradients):
  slots = optimizer.init(params)
  for g in gradients:
    updates, slots = optimizer.update(g, slots, params)
    params = optax.apply_updates(params, updates)
  return leaves(params)


def test_adamax():
  """Kingma and Ba, Algorithm 2, with decoupled decay, after clipping."""
  rates = [0.1, 0.05, 0.2]
  gradients = [tree(0.5), tree(-3.0), tree(0.01)]
  optimizer = training.adamax(
    lambda step: jnp.asarray(rates)[step], weight_decay=0.03, clip_norm=1.0
  )
  found = run(optimizer, tree(0.7), gradients)
  p = leaves(tree(0.7))
  m, u = ({k: np.zeros_like(x) for k, x in p.items()} for _ in range(2))
  for t, (rate, g) in enumerate(zip(rates, gradients, strict=True), 1):
    g = leaves(g)
    norm = np.sqrt(sum((x**2).sum() for x in g.values()))
    for k in p:
      clipped = g[k] / max(norm, 1.0)
      m[k] = 0.9 * m[k] + 0.1 * clipped
      u[k] = np.maximum(np.abs(clipped) + 1e-6, 0.98 * u[k])
      p[k] = p[k] - rate * (m[k] / (1 - 0.9**t) / u[k] + 0.03 * p[k])
  for k in p:
    np.testing.assert_allclose(found[k], p[k], rtol=1e-5)


@pytest.mark.parametrize('make', [training.adamw, training.adamax])
def test_layer_decay_scales_whole_updates(make):
  start, gradients = tree(0.7), [tree(0.5), tree(0.2)]
  plain = run(make(0.1, weight_decay=0.0), start, gradients[:1])
  decayed = run(
    make(0.1, weight_decay=0.0, layer_decay=0.5), start, gradients[:1]
  )
  begin = leaves(start)
  factors = {
    "['heads']": 1.0,
    "['layers_1']": 0.5,
    "['layers_0']": 0.25,
    "['relative_bias']": 0.125,
    "['embedder']": 0.125,
  }
  for key, factor in factors.items():
    (name,) = [k for k in begin if key in k]
    moved = (decayed[name] - begin[name]) / (plain[name] - begin[name])
    np.testing.assert_allclose(moved, factor, rtol=1e-4)


def test_layer_decay_of_scanned_stacks():
  params = {'main': {'stack': {'layers': {'kernel': jnp.ones((3, 2))}}}}
  scale = training.layer_decay.scale_by_depth(0.5)
  updates, _ = scale.update(params, scale.init(params))
  found = updates['main']['stack']['layers']['kernel'][:, 0]
  np.testing.assert_array_equal(found, [0.125, 0.25, 0.5])


def test_layer_decay_with_frozen_parameters():
  frozen = ('embedder/.*',)
  optimizer = training.adamw(0.1, layer_decay=0.5, frozen=frozen)
  found, begin = run(optimizer, tree(0.7), [tree(0.5)]), leaves(tree(0.7))
  still = [k for k in begin if (found[k] == begin[k]).all()]
  assert len(still) == 1
  assert 'embedder' in still[0]


def test_mistakes():
  with pytest.raises(UserError, match=r'LAYER_DECAY: 1\.5 is not a factor'):
    training.adamw(0.1, layer_decay=1.5)
