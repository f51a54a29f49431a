# SPDX-License-Identifier: Apache-2.0
"""METRO-T5's architecture against NumPy; decoding token by token."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from metro_jax import modules
from metro_jax.errors import UserError

# METRO-T5: a relative bias in every encoder layer and none in the decoder,
# absolute positions in both, ReLU, post-LN.
CONFIG = modules.TransformerConfig(
  vocab_size=40,
  embed_dim=16,
  num_heads=2,
  mlp_dim=24,
  num_layers=2,
  activation='relu',
  dtype='float32',
  init_stddev=0.3,
  positions=modules.PositionConfig(
    max_length=12, num_buckets=8, max_distance=16, per_layer=True
  ),
)
DECODER = dataclasses.replace(
  CONFIG,
  num_layers=1,
  positions=modules.PositionConfig(max_length=12, relative=None),
)
START = 4

# Two packed pairs in row 0; a short pair with padding in row 1.
BATCH = {
  'tokens': [[2, 7, 8, 9, 3, 2, 11, 12, 3, 0], [2, 20, 21, 3] + [0] * 6],
  'segments': [[1, 1, 1, 1, 1, 2, 2, 2, 2, 0], [1, 1, 1, 1] + [0] * 6],
  'places': [[0, 1, 2, 3, 4, 0, 1, 2, 3, 0], [0, 1, 2, 3] + [0] * 6],
  'targets': [[9, 7, 3, 30, 31, 32, 3], [22, 3, 0, 0, 0, 0, 0]],
  'target_segments': [[1, 1, 1, 2, 2, 2, 2], [1, 1, 0, 0, 0, 0, 0]],
  'target_places': [[0, 1, 2, 0, 1, 2, 3], [0, 1, 0, 0, 0, 0, 0]],
}
BATCH = {name: np.array(x, np.int32) for name, x in BATCH.items()}


class Model(nn.Module):
  config: modules.TransformerConfig = CONFIG
  decoder_config: modules.TransformerConfig = DECODER

  def setup(self):
    self.embedder = modules.Embedder(self.config)
    self.main = modules.EncoderDecoder(self.config, self.decoder_config)

  def encode(self, tokens, segments, places=None, dropout=None):
    x = self.embedder(tokens, places, segments > 0, dropout)
    return self.main.encode(x, segments, places, dropout)

  def __call__(
    self, tokens, segments, places, targets, target_segments, target_places,
    dropout=None,
  ):  # fmt: skip
    x = self.embedder(tokens, places, segments > 0, dropout)
    return self.main(
      x,
      segments,
      places,
      dropout,
      decoder_x=self.embedder.lookup(
        modules.shift_right(targets, target_segments, START)
      ),
      decoder_segment_ids=target_segments,
      decoder_positions=target_places,
    )

  def step(self, encoded, segments, tokens, step):
    return self.main.decode(
      self.embedder.lookup(tokens),
      encoded,
      encoded_segment_ids=segments,
      step=step,
    )


def initialised(model):
  """Weights of about the size of CONFIG.init_stddev, biases too."""
  init = functools.partial(model.init, jax.random.key(0))
  shapes = nn.unbox(jax.eval_shape(init, **BATCH))
  rng = np.random.default_rng(0)
  return jax.tree.map(
    lambda x: rng.normal(0.1, 0.3, x.shape).astype(np.float32), shapes
  )


@pytest.fixture(scope='module')
def params():
  return initialised(Model())


def norm(x, p):
  x = x - x.mean(-1, keepdims=True)
  x = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5)
  return x * p['scale'] + p['bias']


def attend(x, context, p, seen, bias=0.0):
  q, k, v = (
    np.einsum('le,ehd->hld', y, p[n]['kernel']) + p[n]['bias'][:, None]
    for y, n in ((x, 'query'), (context, 'key'), (context, 'value'))
  )
  logits = q @ k.transpose(0, 2, 1) / math.sqrt(q.shape[-1]) + bias
  weight = np.where(seen, np.exp(logits), 0.0)
  total = weight.sum(-1, keepdims=True)
  y = weight / np.where(total == 0, 1, total) @ v
  return np.einsum('hld,hde->le', y, p['out']['kernel']) + p['out']['bias']


def feed(x, p):
  h = np.maximum(x @ p['wi']['kernel'] + p['wi']['bias'], 0)
  return h @ p['wo']['kernel'] + p['wo']['bias']


def relative(table, n):
  """[heads, n, n]; metro buckets for (8, 16)."""
  magnitude = [0, 1, 2, 3] + [3] * 12
  rows = [
    [int(np.sign(k - q)) * magnitude[abs(k - q)] + 3 for k in range(n)]
    for q in range(n)
  ]
  return table[np.array(rows)].transpose(2, 0, 1)


def embed(tokens, places, valid, table, p):
  x = table[tokens] + p['position']['embedding'][places]
  return norm(x, p['norm']) * valid[:, None]


def oracle(params):
  p = jax.tree.map(np.float64, params['params'])
  table, main = p['embedder']['token']['embedding'], p['main']
  out = []
  for row in range(2):
    b = {name: x[row] for name, x in BATCH.items()}
    s, t = b['segments'], b['target_segments']
    x = embed(b['tokens'], b['places'], s > 0, table, p['embedder'])
    seen = (s[:, None] == s) & (s[:, None] > 0)
    for layer in range(2):
      q = main['encoder']['stack'][f'layers_{layer}']
      # Buckets go by the distance within the row, equal to that within the
      # segment wherever a token may look.
      bias = relative(q['relative_bias']['embedding'], len(s))
      x = norm(
        x + attend(x, x, q['attention'], seen, bias), q['attention_norm']
      )
      x = norm(x + feed(x, q['mlp']), q['mlp_norm'])
    shifted = [
      START if place == 0 else b['targets'][i - 1]
      for i, place in enumerate(b['target_places'])
    ]
    y = embed(
      shifted, b['target_places'], t > 0, table, main['decoder_embedder']
    )
    past = np.tril(np.ones((len(t), len(t)), bool))
    past &= (t[:, None] == t) & (t[:, None] > 0)
    across = (t[:, None] == s) & (t[:, None] > 0)
    for layer in range(1):
      q = main['decoder']['stack'][f'layers_{layer}']
      y = norm(y + attend(y, y, q['attention'], past), q['attention_norm'])
      y = norm(
        y + attend(y, x, q['cross_attention'], across),
        q['cross_attention_norm'],
      )
      y = norm(y + feed(y, q['mlp']), q['mlp_norm'])
    out.append((x, y))
  return [np.stack(x) for x in zip(*out, strict=True)]


def test_metro_t5_in_numpy(params):
  got = jax.jit(Model().apply)(params, **BATCH)
  encoded, decoded = oracle(params)
  np.testing.assert_allclose(got.encoded, encoded, rtol=1e-4, atol=1e-4)
  np.testing.assert_allclose(got.decoded, decoded, rtol=1e-4, atol=1e-4)
  np.testing.assert_array_equal(got.top, got.decoded)


def test_parameters_of_metro_t5(params):
  """One token table; positions and embedding norm twice; biases by layer."""
  names = [
    jax.tree_util.keystr(path, simple=True, separator='/')
    for path, _ in jax.tree_util.tree_leaves_with_path(params['params'])
  ]
  tables = [n for n in names if n.endswith('embedding')]
  assert sorted(tables) == [
    'embedder/position/embedding',
    'embedder/token/embedding',
    'main/decoder_embedder/position/embedding',
    'main/encoder/stack/layers_0/relative_bias/embedding',
    'main/encoder/stack/layers_1/relative_bias/embedding',
  ]
  assert 'main/decoder_embedder/norm/scale' in names


def test_a_pair_alone_equals_the_pair_in_a_packed_row(params):
  packed = jax.jit(Model().apply)(params, **BATCH).decoded[0, 3:7]
  alone = {
    name: x[:1, 3:7] if 'target' in name else x[:1, 5:9]
    for name, x in BATCH.items()
  }
  got = jax.jit(Model().apply)(params, **alone).decoded[0]
  np.testing.assert_allclose(packed, got, rtol=1e-5, atol=1e-5)


def test_the_decoder_sees_the_past_and_the_whole_context(params):
  apply = jax.jit(Model().apply)
  base = apply(params, **BATCH)
  targets = BATCH['targets'].copy()
  targets[0, 4] += 1
  later = apply(params, **BATCH | {'targets': targets})
  np.testing.assert_array_equal(base.encoded, later.encoded)
  moved = np.any(base.decoded != later.decoded, axis=-1)
  # Target 4 is read at 5, and by nothing of another pair.
  assert moved.tolist() == [[False] * 5 + [True] * 2, [False] * 7]
  tokens = BATCH['tokens'].copy()
  tokens[0, 8] += 1
  other = apply(params, **BATCH | {'tokens': tokens})
  moved = np.any(base.decoded != other.decoded, axis=-1)
  assert moved.tolist() == [[False] * 3 + [True] * 4, [False] * 7]


def test_dropout_of_the_two_stacks_differs_and_repeats(params):
  dropout = modules.Dropout(hidden=0.3, attention=0.1)

  @jax.jit
  def run(key):
    return Model().apply(
      params, **BATCH, dropout=dropout, rngs={'dropout': key}
    )

  one, same, other = (run(jax.random.key(k)) for k in (0, 0, 1))
  np.testing.assert_array_equal(one.decoded, same.decoded)
  assert np.any(one.encoded != other.encoded)
  assert np.any(one.decoded != other.decoded)
  assert np.all(np.isfinite(one.decoded))


def test_shift_right_starts_every_segment():
  tokens = jnp.array([[5, 6, 7, 8, 0], [9, 0, 0, 0, 0]])
  segments = jnp.array([[1, 1, 2, 2, 0], [1, 0, 0, 0, 0]])
  shifted = modules.shift_right(tokens, segments, 4)
  np.testing.assert_array_equal(shifted[0, :4], [4, 5, 4, 7])
  assert shifted[1, 0] == 4
  assert shifted.dtype == tokens.dtype


def test_widths_that_differ_are_refused():
  wide = dataclasses.replace(DECODER, table_dim=8)
  with pytest.raises(UserError, match=r'table_dim.* 8 wide .* 16'):
    initialised(Model(decoder_config=wide))


RELATIVE = {'max_length': 12, 'num_buckets': 8, 'max_distance': 16}
POSITIONS = {
  'absolute': {'max_length': 12, 'relative': None},
  'relative': RELATIVE | {'relative': 't5', 'absolute': False},
  'per_layer': RELATIVE | {'per_layer': True, 'reset_cls': True},
  'untied': RELATIVE | {'untied': True, 'reset_cls': True},
}


@pytest.mark.parametrize(
  'positions, placement, scan',
  [
    ('absolute', 'post', False),
    ('relative', 'pre', False),
    ('per_layer', 'post', True),
    ('untied', 'post', False),
  ],
)
def test_token_by_token_equals_all_at_once(positions, placement, scan):
  decoder = dataclasses.replace(
    DECODER,
    positions=modules.PositionConfig(**POSITIONS[positions]),
    norm_placement=placement,
    scan_layers=scan,
  )
  model = Model(decoder_config=decoder)
  params = initialised(model)
  rows, length = 2, 6
  tokens = np.random.default_rng(0).integers(5, 40, (rows, length))
  ones = np.ones((rows, length), np.int32)
  places = np.arange(length)[None].repeat(rows, 0)
  segments = (BATCH['tokens'] > 0).astype(np.int32)
  source = {
    'tokens': BATCH['tokens'],
    'segments': segments,
    'places': np.arange(10)[None].repeat(rows, 0),
  }
  want = jax.jit(model.apply)(
    params,
    **source,
    targets=tokens,
    target_segments=ones,
    target_places=places,
  )

  @jax.jit
  def step(cache, tokens, index):
    # Room for more tokens than come.
    now = modules.DecodeStep(index, length + 2)
    return model.apply(
      {**params, **cache},
      want.encoded,
      segments,
      tokens[:, None],
      now,
      mutable=['cache'],
      method='step',
    )

  reads = np.concatenate([np.full((rows, 1), START), tokens[:, :-1]], axis=1)
  cache = {}
  for index in range(length):
    got, cache = step(cache, reads[:, index], jnp.int32(index))
    np.testing.assert_allclose(
      got[:, 0], want.decoded[:, index], rtol=2e-5, atol=2e-5
    )
  kept = jax.tree.leaves(cache)
  assert kept and all(x.shape[-4] == rows for x in kept)


def test_cross_attention_projects_its_context_once(params):
  """Later steps read the cache, not the context they are given."""
  model = Model()
  encoded = jax.random.normal(jax.random.key(0), (2, 10, 16))

  @jax.jit
  def step(cache, context, index):
    return model.apply(
      {**params, **cache},
      context,
      None,
      jnp.array([[7], [8]]),
      modules.DecodeStep(index, 4),
      mutable=['cache'],
      method='step',
    )

  _, cache = step({}, encoded, np.int32(0))
  a, _ = step(cache, encoded, np.int32(1))
  b, _ = step(cache, jnp.zeros_like(encoded), 1)
  np.testing.assert_array_equal(a, b)
