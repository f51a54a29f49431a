# SPDX-License-Identifier: Apache-2.0
"""A two-layer encoder against an independent forward pass in NumPy."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from metro_jax import modules

POSITIONS = modules.PositionConfig(
  max_length=12, num_buckets=8, max_distance=16, reset_cls=True
)
CONFIG = modules.TransformerConfig(
  vocab_size=40,
  embed_dim=16,
  num_heads=2,
  mlp_dim=24,
  num_layers=2,
  dtype='float32',
  positions=POSITIONS,
  init_stddev=0.3,
)
# Two segments packed into row 0; a short row with padding; all padding.
TOKENS = np.array(
  [
    [2, 7, 8, 9, 3, 2, 11, 12, 13, 3],
    [2, 20, 21, 3, 0, 0, 0, 0, 0, 0],
    [0] * 10,
  ]
)
SEGMENTS = np.array(
  [
    [1, 1, 1, 1, 1, 2, 2, 2, 2, 2],
    [1, 1, 1, 1, 0, 0, 0, 0, 0, 0],
    [0] * 10,
  ]
)
PLACES = np.array(
  [
    [0, 1, 2, 3, 4, 0, 1, 2, 3, 4],
    [0, 1, 2, 3, 0, 0, 0, 0, 0, 0],
    [0] * 10,
  ]
)


class Model(nn.Module):
  config: modules.TransformerConfig

  def setup(self):
    self.embedder = modules.Embedder(self.config)
    self.main = modules.Encoder(self.config)

  def __call__(self, tokens, segments, positions, dropout=None):
    x = self.embedder(tokens, positions, segments > 0, dropout)
    return self.main(x, segments, positions, dropout).top


def initialised(config, perturb=True):
  model = Model(config)
  params = nn.unbox(
    jax.jit(model.init)(jax.random.key(0), TOKENS, SEGMENTS, PLACES)
  )
  if perturb:  # Biases and norms start at 0 and 1, which hide mistakes.
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    leaves = [
      x + 0.1 * jax.random.normal(k, x.shape)
      for x, k in zip(leaves, keys, strict=True)
    ]
    params = jax.tree.unflatten(tree, leaves)
  return model, params


def norm(x, p):
  x = x - x.mean(-1, keepdims=True)
  x = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5)
  return x * p['scale'] + p['bias']


def gelu(x):
  return x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def bias_matrix(table, places):
  """[heads, q, k] for one row of positions; metro buckets for (8, 16)."""
  n = len(places)
  magnitude = [0, 1, 2, 3] + [3] * 12  # See bucket tables in positions_test.
  out = np.zeros((table.shape[1], n, n))
  for q in range(n):
    for k in range(n):
      r = k - q
      row = int(np.sign(r)) * magnitude[abs(r)] + 3
      if places[k] == 0:
        row = 8
      if places[q] == 0:
        row = 9
      out[:, q, k] = table[row]
  return out


def attend(x, p, segments, bias):
  q, k, v = (
    np.einsum('le,ehd->lhd', x, p[n]['kernel']) + p[n]['bias']
    for n in ('query', 'key', 'value')
  )
  out = np.zeros_like(q)
  for h in range(q.shape[1]):
    logits = q[:, h] @ k[:, h].T / math.sqrt(q.shape[-1]) + bias[h]
    seen = (segments[:, None] == segments) & (segments[:, None] > 0)
    weight = np.where(seen, np.exp(logits - logits.max()), 0)
    total = weight.sum(-1, keepdims=True)
    out[:, h] = weight / np.where(total == 0, 1, total) @ v[:, h]
  return np.einsum('lhd,hde->le', out, p['out']['kernel']) + p['out']['bias']


def mlp(x, p):
  h = gelu(x @ p['wi']['kernel'] + p['wi']['bias'])
  return h @ p['wo']['kernel'] + p['wo']['bias']


def forward(params, placement):
  p = jax.tree.map(np.float64, params['params'])
  rows = []
  for tokens, segments, places in zip(TOKENS, SEGMENTS, PLACES, strict=True):
    e = p['embedder']
    x = e['token']['embedding'][tokens] + e['position']['embedding'][places]
    x = norm(x, e['norm']) * (segments > 0)[:, None]
    stack = p['main']['stack']
    bias = bias_matrix(stack['relative_bias']['embedding'], places)
    for layer in range(2):
      b = stack[f'layers_{layer}']
      if placement == 'post':
        x = norm(
          x + attend(x, b['attention'], segments, bias), b['attention_norm']
        )
        x = norm(x + mlp(x, b['mlp']), b['mlp_norm'])
      else:
        y = norm(x, b['attention_norm'])
        x = x + attend(y, b['attention'], segments, bias)
        x = x + mlp(norm(x, b['mlp_norm']), b['mlp'])
    rows.append(norm(x, stack['final_norm']) if placement == 'pre' else x)
  return np.stack(rows)


@pytest.mark.parametrize('placement', ['post', 'pre'])
def test_encoder(placement):
  config = dataclasses.replace(CONFIG, norm_placement=placement)
  model, params = initialised(config)
  got = jax.jit(model.apply)(params, TOKENS, SEGMENTS, PLACES)
  want = forward(params, placement)
  np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)


def test_packed_rows_equal_separate_rows():
  model, params = initialised(CONFIG)
  packed = jax.jit(model.apply)(params, TOKENS, SEGMENTS, PLACES)[0]
  for part in (slice(0, 5), slice(5, 10)):
    alone = jax.jit(model.apply)(
      params, TOKENS[:1, part], np.ones((1, 5), int), np.arange(5)[None]
    )[0]
    np.testing.assert_allclose(packed[part], alone, rtol=1e-5, atol=1e-5)


def test_padding_changes_nothing_and_gradients_are_finite():
  model, params = initialised(CONFIG)
  long = jax.jit(model.apply)(params, TOKENS, SEGMENTS, PLACES)[1, :4]
  short = jax.jit(model.apply)(
    params, TOKENS[1:2, :4], SEGMENTS[1:2, :4], PLACES[1:2, :4]
  )[0]
  np.testing.assert_allclose(long, short, rtol=1e-5, atol=1e-5)
  g = jax.jit(
    jax.grad(lambda p: jnp.sum(model.apply(p, TOKENS, SEGMENTS, PLACES) ** 2))
  )(params)
  assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(g))


def test_bfloat16_follows_float32():
  model, params = initialised(CONFIG)
  want = np.asarray(jax.jit(model.apply)(params, TOKENS, SEGMENTS, PLACES))
  half = Model(dataclasses.replace(CONFIG, dtype='bfloat16'))
  got = jax.jit(half.apply)(params, TOKENS, SEGMENTS, PLACES)
  assert got.dtype == jnp.bfloat16
  assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(params))
  error = np.abs(np.asarray(got, np.float32) - want)
  # About 20 roundings of 2^-9 on unit-scale values, added in quadrature.
  assert np.sqrt((error**2).mean()) < 20**0.5 * 2.0**-9 * 2 * want.std()
