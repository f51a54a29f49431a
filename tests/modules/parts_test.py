# SPDX-License-Identifier: Apache-2.0
"""Config checks, embeddings, heads, dropout as data, parameter names."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import traverse_util
from scipy import special

from metro_jax import modules, ops
from metro_jax.errors import UserError

CONFIG = modules.TransformerConfig(
  vocab_size=30,
  embed_dim=8,
  num_heads=2,
  mlp_dim=12,
  num_layers=1,
  dtype='float32',
  init_stddev=0.5,
  positions=modules.PositionConfig(
    max_length=6, num_buckets=8, max_distance=16, reset_cls=True
  ),
)


@pytest.mark.parametrize(
  'fields,message',
  [
    (dict(num_heads=7), r'TransformerConfig.num_heads: 7 heads .* 768'),
    (dict(num_layers=0), r'TransformerConfig.num_layers: 0'),
    (dict(activation='swish'), r"TransformerConfig.activation: 'swish'"),
    (dict(norm_placement='mid'), r'TransformerConfig.norm_placement'),
    (dict(dtype='float16'), r"TransformerConfig.dtype: 'float16'"),
    (dict(remat=True), r'TransformerConfig.remat: True'),
    (dict(vocab_backend='triton'), r'TransformerConfig.vocab_backend'),
    (dict(table_dim=0), r'TransformerConfig.table_dim'),
  ],
)
def test_bad_config_names_the_parameter(fields, message):
  with pytest.raises(UserError, match=message):
    modules.TransformerConfig(**fields)


@pytest.mark.parametrize(
  'fields,message',
  [
    (dict(num_buckets=33), r'PositionConfig.num_buckets: 33'),
    (dict(max_distance=4), r'PositionConfig.max_distance: 4'),
    (dict(relative='alibi'), r"PositionConfig.relative: 'alibi'"),
    (dict(relative=None, per_layer=True), r'PositionConfig.per_layer'),
    (dict(relative=None, reset_cls=True), r'PositionConfig.reset_cls'),
    (
      dict(relative=None, neighbour_bias=5.0),
      r'PositionConfig.neighbour_bias',
    ),
    (dict(max_length=0), r'PositionConfig.max_length'),
  ],
)
def test_bad_positions_name_the_parameter(fields, message):
  with pytest.raises(UserError, match=message):
    modules.PositionConfig(**fields)


def test_config_is_hashable_and_paper_sizes_are_accepted():
  assert hash(CONFIG) == hash(dataclasses.replace(CONFIG))
  for heads, width, buckets, distance in (
    (12, 768, 64, 128),
    (16, 1024, 128, 256),
    (40, 2560, 512, 512),
  ):
    positions = modules.PositionConfig(
      num_buckets=buckets, max_distance=distance
    )
    modules.TransformerConfig(
      num_heads=heads, embed_dim=width, positions=positions
    )


class Whole(nn.Module):
  config: modules.TransformerConfig

  def setup(self):
    self.embedder = modules.Embedder(self.config)
    self.main = modules.Encoder(self.config)
    self.lm_head = modules.LMHead(self.config)
    self.rtd_head = modules.RTDHead(self.config)

  def __call__(self, tokens):
    h = self.main(self.embedder(tokens)).top
    logits = self.lm_head(h, self.embedder.table()).logits()
    return logits, self.rtd_head(h)


LAYER = """
attention/key/bias (2, 4) heads,kv
attention/key/kernel (8, 2, 4) embed,heads,kv
attention/out/bias (8,) embed
attention/out/kernel (2, 4, 8) heads,kv,embed
attention/query/bias (2, 4) heads,kv
attention/query/kernel (8, 2, 4) embed,heads,kv
attention/value/bias (2, 4) heads,kv
attention/value/kernel (8, 2, 4) embed,heads,kv
attention_norm/bias (8,) embed
attention_norm/scale (8,) embed
mlp/wi/bias (12,) mlp
mlp/wi/kernel (8, 12) embed,mlp
mlp/wo/bias (8,) embed
mlp/wo/kernel (12, 8) mlp,embed
mlp_norm/bias (8,) embed
mlp_norm/scale (8,) embed
"""
REST = """
embedder/norm/bias (8,) embed
embedder/norm/scale (8,) embed
embedder/position/embedding (6, 8) position,embed
embedder/token/embedding (30, 8) vocab,embed
lm_head/bias (30,) vocab
lm_head/dense/bias (8,) None
lm_head/dense/kernel (8, 8) embed,None
lm_head/norm/bias (8,) embed
lm_head/norm/scale (8,) embed
main/stack/relative_bias/embedding (10, 2) relpos_buckets,heads
rtd_head/output/bias (1,) None
rtd_head/output/kernel (8, 1) embed,None
"""


def table(config):
  boxed = jax.eval_shape(
    Whole(config).init, jax.random.key(0), jnp.zeros((1, 4), jnp.int32)
  )['params']
  specs = traverse_util.flatten_dict(nn.get_partition_spec(boxed), sep='/')
  shapes = traverse_util.flatten_dict(nn.unbox(boxed), sep='/')
  assert all(len(s.shape) == len(specs[n]) for n, s in shapes.items())
  assert all(s.dtype == jnp.float32 for s in shapes.values())
  return sorted(
    f'{n} {s.shape} {",".join(map(str, specs[n]))}' for n, s in shapes.items()
  )


def test_parameter_table():
  layer = [f'main/stack/layers_0/{s}' for s in LAYER.split('\n') if s]
  assert table(CONFIG) == sorted([*layer, *filter(None, REST.split('\n'))])


def test_parameter_table_under_scan():
  scanned = table(dataclasses.replace(CONFIG, scan_layers=True))
  rows = [s.split(' ', 1) for s in LAYER.split('\n') if s]
  layer = []
  for name, row in rows:
    shape, axes = row.rsplit(' ', 1)
    shape = shape.replace('(', '(1, ').replace(',)', ')')
    layer.append(f'main/stack/layers/{name} {shape} layers,{axes}')
  assert scanned == sorted([*layer, *filter(None, REST.split('\n'))])


def test_gelu_is_exact():
  x = np.linspace(-6, 6, 400)
  want = x * 0.5 * (1 + special.erf(x / np.sqrt(2)))
  np.testing.assert_allclose(modules.gelu(jnp.float32(x)), want, atol=2e-6)
  slope = jax.vmap(jax.grad(modules.gelu))(jnp.float32(x))
  density = np.exp(-(x**2) / 2) / np.sqrt(2 * np.pi)
  want = 0.5 * (1 + special.erf(x / np.sqrt(2))) + x * density
  np.testing.assert_allclose(slope, want, atol=2e-6)


def test_initial_weights():
  config = dataclasses.replace(
    CONFIG, vocab_size=5000, init_stddev=0.02, embed_dim=64
  )
  params = nn.unbox(
    jax.jit(Whole(config).init)(jax.random.key(0), jnp.zeros((1, 4), jnp.int32))
  )['params']
  for name, x in traverse_util.flatten_dict(params, sep='/').items():
    if name.endswith('bias'):
      assert not np.any(x), name
    elif name.endswith('scale'):
      assert np.all(x == 1), name
    else:
      assert abs(x.std() / 0.02 - 1) < 5 / (2 * x.size) ** 0.5, name


def test_embedder_steps_and_lazy_parameters():
  tokens = jnp.array([[2, 5, 3, 0]])
  embedder = modules.Embedder(CONFIG)
  init = jax.jit(embedder.init, static_argnames='method')
  params = nn.unbox(init(jax.random.key(0), tokens))
  valid = tokens > 0
  got = embedder.apply(params, tokens, None, valid)
  p = params['params']
  x = p['token']['embedding'][tokens] + p['position']['embedding'][:4]
  want = x - x.mean(-1, keepdims=True)
  want = want / np.sqrt((want**2).mean(-1, keepdims=True) + 1e-5)
  np.testing.assert_allclose(got[0, :3], want[0, :3], rtol=1e-4, atol=1e-5)
  assert not np.any(got[0, 3])
  only = init(jax.random.key(0), tokens, method='lookup')['params']
  assert set(only) == {'token'}
  x = jnp.zeros((1, 4, 8))
  assert set(init(jax.random.key(0), x, method='normalize')['params']) == {
    'norm'
  }


def test_narrow_tables_are_projected():
  config = dataclasses.replace(CONFIG, table_dim=5)
  params = jax.eval_shape(
    Whole(config).init, jax.random.key(0), jnp.zeros((1, 4), jnp.int32)
  )['params']
  shapes = jax.tree.map(jnp.shape, nn.unbox(params))
  assert shapes['embedder']['token']['embedding'] == (30, 5)
  assert shapes['main']['embed_projection']['kernel'] == (5, 8)
  assert shapes['lm_head']['dense']['kernel'] == (8, 5)


def test_lm_head():
  h = jax.random.normal(jax.random.key(0), (2, 3, 8))
  words = jax.random.normal(jax.random.key(1), (30, 8))
  head = modules.LMHead(CONFIG, projection=False)
  params = nn.unbox(head.init(jax.random.key(2), h, words))
  assert set(params['params']) == {'bias'}
  params['params']['bias'] = jnp.arange(30.0)
  logits = head.apply(params, h, words)
  want = np.einsum('bpe,ve->bpv', h, words) + np.arange(30)
  np.testing.assert_allclose(logits.logits(), want, rtol=1e-5, atol=1e-5)
  loss, lse, best = ops.token_cross_entropy(logits, jnp.zeros((2, 3), int))
  np.testing.assert_allclose(lse, special.logsumexp(want, -1), rtol=1e-5)
  np.testing.assert_allclose(loss, lse - want[..., 0], rtol=1e-4, atol=1e-4)
  np.testing.assert_array_equal(best, want.argmax(-1))


def test_lm_head_with_projection():
  h = jax.random.normal(jax.random.key(0), (2, 3, 8))
  words = jax.random.normal(jax.random.key(1), (30, 8))
  head = modules.LMHead(CONFIG)
  params = nn.unbox(head.init(jax.random.key(2), h, words))
  p = jax.tree.map(np.float64, params['params'])
  x = np.asarray(h) @ p['dense']['kernel']
  x = x * 0.5 * (1 + special.erf(x / np.sqrt(2)))
  x = x - x.mean(-1, keepdims=True)
  x = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5)
  got = head.apply(params, h, words).logits()
  np.testing.assert_allclose(got, x @ np.asarray(words).T, rtol=1e-4, atol=1e-4)


def test_rtd_head():
  h = jax.random.normal(jax.random.key(0), (2, 3, 8))
  head = modules.RTDHead(CONFIG)
  params = nn.unbox(head.init(jax.random.key(2), h))
  kernel = params['params']['output']['kernel']
  got = head.apply(params, h.astype(jnp.bfloat16))
  assert got.dtype == jnp.float32 and got.shape == (2, 3)
  want = np.asarray(h.astype(jnp.bfloat16), np.float32) @ kernel[:, 0]
  np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)
  zero = modules.RTDHead(CONFIG, hidden=True, zero_init=True)
  params = nn.unbox(zero.init(jax.random.key(2), h))
  assert set(params['params']) == {'dense', 'output'}
  assert not np.any(zero.apply(params, h))


def test_dropout_keeps_python_rates_static():
  seen = []

  @jax.jit
  def f(dropout):
    seen.append(
      [
        isinstance(r, float)
        for r in (dropout.hidden, dropout.attention, dropout.mlp)
      ]
    )
    return dropout.rows

  f(modules.Dropout(0.1, jnp.float32(0.2), 0.0, jnp.arange(3)))
  assert seen == [[True, False, True]]


def model_output(dropout, rows=slice(None), rngs=None):
  tokens = jnp.array([[2, 5, 6, 3], [2, 7, 8, 3], [2, 9, 1, 3]])
  return FORWARD(tokens[rows], dropout, rngs)


class Body(nn.Module):
  config: modules.TransformerConfig

  @nn.compact
  def __call__(self, tokens, dropout):
    x = modules.Embedder(self.config)(tokens, None, None, dropout)
    return modules.Encoder(self.config)(x, None, None, dropout).top


BODY = Body(CONFIG)


@jax.jit
def FORWARD(tokens, dropout, rngs):
  params = BODY.init(jax.random.key(0), jnp.zeros((1, 4), jnp.int32), None)
  return BODY.apply(nn.unbox(params), tokens, dropout, rngs=rngs)


def test_traced_rates_equal_static_ones():
  key = {'dropout': jax.random.key(4)}
  static = model_output(modules.Dropout(0.1, 0.2, 0.3), rngs=key)
  traced = model_output(
    modules.Dropout(*map(jnp.float32, (0.1, 0.2, 0.3))), rngs=key
  )
  np.testing.assert_allclose(static, traced, rtol=1e-6, atol=1e-6)
  none = model_output(None)
  zero = model_output(modules.Dropout(*[jnp.float32(0)] * 3), rngs=key)
  np.testing.assert_allclose(none, zero, rtol=1e-6, atol=1e-6)
  assert np.any(np.abs(static - none) > 1e-3)


def test_dropout_follows_row_ids_not_places():
  """Microbatches with the row ids of the whole batch repeat its masks."""
  key = {'dropout': jax.random.key(4)}

  def drop(rows):
    return modules.Dropout(0.2, 0.2, 0.2, jnp.arange(3, dtype=jnp.uint32)[rows])

  whole = model_output(drop(slice(None)), rngs=key)
  for rows in (slice(0, None, 2), slice(1, 2)):
    part = model_output(drop(rows), rows, rngs=key)
    np.testing.assert_allclose(whole[rows], part, rtol=1e-5, atol=1e-5)
