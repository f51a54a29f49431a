# SPDX-License-Identifier: Apache-2.0
"""Bucket functions against literal tables, and the bias modules."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from hypothesis import given
from hypothesis import strategies as st

from metro_jax import modules
from metro_jax.errors import UserError
from metro_jax.modules.positions import UntiedPositions, attention_scale

# First distance of each bucket beyond the exact ones, for (32, 128).
T5_STARTS = [8, 12, 16, 23, 32, 46, 64, 91]


def starts(magnitude):
  return [int(np.flatnonzero(magnitude == m)[0]) for m in np.unique(magnitude)]


def test_metro_buckets_for_32_128():
  r = np.arange(-511, 512)
  bucket = modules.metro_bucket(r, 32, 128)
  assert bucket.min() == 0 and bucket.max() == 30 and bucket[511] == 15
  np.testing.assert_array_equal(bucket + bucket[::-1], 30)  # Signed.
  magnitude = bucket[511:] - 15
  assert starts(magnitude) == METRO_TABLE


METRO_TABLE = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 12, 18, 27, 39, 58, 86]


def test_t5_buckets_for_32_128():
  r = np.arange(-511, 512)
  bucket = modules.t5_bucket(r, 32, 128)
  left, right = bucket[511::-1], bucket[511:]
  assert starts(left) == list(range(8)) + T5_STARTS
  np.testing.assert_array_equal(right[1:], left[1:] + 16)
  assert bucket[511] == 0


def test_the_two_differ_where_the_public_code_does():
  n = np.arange(512)
  metro = modules.metro_bucket(n, 32, 128) - 15
  t5 = modules.t5_bucket(-n, 32, 128)
  assert int(np.sum(metro != t5)) == 35
  assert int(np.flatnonzero(metro == 15)[0]) == 86
  assert int(np.flatnonzero(t5 == 15)[0]) == 91


@pytest.mark.parametrize('name', ['metro_bucket', 't5_bucket'])
@given(half=st.integers(2, 128), extra=st.integers(2, 600))
def test_buckets_grow_with_distance_and_stay_inside(name, half, extra):
  buckets, distance = 4 * half // 2, half // 2 + extra
  buckets -= buckets % 4
  f = getattr(modules, name)
  r = np.arange(-2 * distance, 2 * distance + 1)
  bucket = f(r, buckets, distance)
  assert bucket.min() >= 0 and bucket.max() < buckets
  right = bucket[2 * distance + 1 :]
  left = bucket[: 2 * distance][::-1]
  assert np.all(np.diff(right) >= 0)
  step = np.diff(left)
  assert np.all(step <= 0) if name == 'metro_bucket' else np.all(step >= 0)
  assert not set(left.tolist()) & set(right.tolist())


def config(**positions):
  return modules.TransformerConfig(
    vocab_size=8,
    embed_dim=8,
    num_heads=2,
    mlp_dim=8,
    num_layers=2,
    dtype='float32',
    init_stddev=0.5,
    positions=modules.PositionConfig(
      max_length=16, num_buckets=8, max_distance=16, **positions
    ),
  )


@pytest.mark.parametrize('relative', ['metro', 't5'])
def test_relative_bias_reads_its_table(relative):
  c = config(relative=relative, reset_cls=True)
  first = jnp.array([[True] + [False] * 4])
  empty = modules.PositionBias(5, 5, q_first=first, k_first=first)
  module = modules.RelativeBias(c)
  params = nn.unbox(module.init(jax.random.key(0), empty))
  table = params['params']['embedding']
  assert table.shape == (10, 2)
  dense = module.apply(params, empty).dense()
  bucket = getattr(modules, f'{relative}_bucket')
  for q in range(5):
    for k in range(5):
      row = int(bucket(np.array(k - q), 8, 16))
      row = 9 if q == 0 else 8 if k == 0 else row
      np.testing.assert_allclose(dense[0, :, q, k], table[row], rtol=1e-6)


@pytest.mark.parametrize(
  ('relative', 'causal', 'offsets'),
  [('metro', False, (-1, 1)), ('t5', False, (-1, 1)), ('t5', True, (-1, -2))],
)
def test_heads_may_start_with_a_neighbour_each(relative, causal, offsets):
  empty = modules.PositionBias(5, 5)
  dense = []
  for more in (0.0, 5.0):
    c = config(relative=relative, neighbour_bias=more)
    module = modules.RelativeBias(c, causal=causal)
    params = nn.unbox(module.init(jax.random.key(0), empty))
    dense.append(module.apply(params, empty).dense()[0])
  expected = np.zeros((2, 5, 5))
  for head, offset in enumerate(offsets):
    expected[head] = 5.0 * np.eye(5, k=offset)
  np.testing.assert_allclose(dense[1] - dense[0], expected, atol=1e-6)


@pytest.mark.parametrize('reset', [False, True])
def test_untied_positions(reset):
  c = config(relative=None, absolute=False, untied=True, reset_cls=reset)
  positions = jnp.array([[0, 1, 2, 0, 1]])
  module = UntiedPositions(c)
  params = nn.unbox(module.init(jax.random.key(0), positions))
  got = module.apply(params, positions)
  p = jax.tree.map(np.float64, params['params'])
  x = p['position']['embedding']
  x = x - x.mean(-1, keepdims=True)
  x = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5)
  q, k = (np.einsum('pe,ehd->phd', x, p[n]['kernel']) for n in ('query', 'key'))
  score = np.einsum('phd,rhd->hpr', q, k) / np.sqrt(2 * 4)
  want = score[:, positions[0]][:, :, positions[0]]
  if reset:
    first = np.asarray(positions[0]) == 0
    want[:, :, first] = score[:, 16, 16][:, None, None]
    want[:, first, :] = score[:, 17, 17][:, None, None]
  np.testing.assert_allclose(got[0], want, rtol=1e-4, atol=1e-5)


def stack_params(c):
  x = jnp.zeros((1, 4, 8))
  return nn.unbox(modules.Stack(c).init(jax.random.key(0), x))['params']


def test_where_the_tables_live():
  assert 'relative_bias' in stack_params(config())
  layered = stack_params(config(per_layer=True))
  assert 'relative_bias' not in layered
  assert layered['layers_1']['relative_bias']['embedding'].shape == (8, 2)
  none = stack_params(config(relative=None))
  assert 'relative_bias' not in none and 'untied_positions' not in none
  assert 'untied_positions' in stack_params(config(untied=True))


def test_untied_scale_and_no_added_positions():
  c = config(untied=True)
  tokens = jnp.array([[1, 1, 1]])
  embedder = modules.Embedder(c)
  params = nn.unbox(embedder.init(jax.random.key(0), tokens))
  assert 'position' not in params['params']
  out = embedder.apply(params, tokens)
  np.testing.assert_array_equal(out[0, 0], out[0, 2])
  assert attention_scale(c) == pytest.approx(8**-0.5)
  assert attention_scale(config()) == pytest.approx(4**-0.5)


def test_too_long_a_sequence_names_the_parameter():
  long = jnp.zeros((1, 17), jnp.int32)
  with pytest.raises(UserError, match=r'PositionConfig.max_length: 16 .* 17'):
    modules.Embedder(config()).init(jax.random.key(0), long)
  untied = modules.Stack(config(untied=True))
  with pytest.raises(UserError, match=r'PositionConfig.max_length'):
    untied.init(jax.random.key(0), jnp.zeros((1, 17, 8)))
  # A relative bias alone has no longest sequence.
  c = config(absolute=False)
  modules.Stack(c).init(jax.random.key(0), jnp.zeros((1, 17, 8)))


def test_reset_uses_every_segments_cls():
  """Row and column of both [CLS] of a packed row lose their offsets."""
  c = config(reset_cls=True)
  first = jnp.array([[True, False, True, False]])
  empty = modules.PositionBias(4, 4, q_first=first, k_first=first)
  module = modules.RelativeBias(c)
  params = nn.unbox(module.init(jax.random.key(0), empty))
  dense = module.apply(params, empty).dense()[0]
  reset = params['params']['embedding'][8:]
  for k in (0, 2):
    np.testing.assert_allclose(dense[:, 1, k], reset[0])
    np.testing.assert_allclose(dense[:, k, 3], reset[1])
