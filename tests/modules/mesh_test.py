# SPDX-License-Identifier: Apache-2.0
"""The modules under a mesh of eight devices: same numbers, real sharding."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from metro_jax import modules, ops

RULES = (
  ('batch', ('data', 'fsdp')),
  ('vocab', 'tensor'),
  ('heads', 'tensor'),
  ('mlp', 'tensor'),
  ('embed', 'fsdp'),
)
TOKENS = jnp.arange(8 * 6).reshape(8, 6) % 31


class Whole(nn.Module):
  config: modules.TransformerConfig

  @nn.compact
  def __call__(self, tokens, dropout):
    embedder = modules.Embedder(self.config)
    segments = (tokens > 0).astype(jnp.int32)
    x = embedder(tokens, None, tokens > 0, dropout)
    h = modules.Encoder(self.config)(x, segments, None, dropout).top
    logits = modules.LMHead(self.config)(h, embedder.table())
    loss, _, _ = ops.token_cross_entropy(logits, tokens)
    return loss.sum() + modules.RTDHead(self.config)(h).sum()


@pytest.mark.parametrize('scan', [False, True])
def test_mesh_gives_the_same_loss_and_gradients(scan):
  config = modules.TransformerConfig(
    vocab_size=32,
    embed_dim=16,
    num_heads=2,
    mlp_dim=32,
    num_layers=2 if scan else 1,
    dtype='float32',
    scan_layers=scan,
    remat='full' if scan else 'none',
    positions=modules.PositionConfig(
      max_length=8, num_buckets=8, max_distance=16, reset_cls=True
    ),
  )
  model = Whole(config)
  dropout = modules.Dropout(0.1, 0.1, 0.1, seed=jnp.uint32(3))

  def init():
    return model.init(jax.random.key(0), TOKENS, None)

  def loss(params, tokens):
    return model.apply(params, tokens, dropout)

  params = nn.unbox(jax.jit(init)())
  want = jax.jit(jax.value_and_grad(loss))(params, TOKENS)
  mesh = jax.make_mesh(
    (2, 2, 2), ('data', 'fsdp', 'tensor'), axis_types=(AxisType.Auto,) * 3
  )
  with jax.set_mesh(mesh), nn.logical_axis_rules(RULES):
    specs = nn.get_partition_spec(jax.eval_shape(init))
    shardings = nn.logical_to_mesh_sharding(specs, mesh, RULES)
    placed = jax.device_put(params, shardings)
    tokens = jax.device_put(
      TOKENS, NamedSharding(mesh, PartitionSpec(('data', 'fsdp')))
    )
    got = jax.jit(jax.value_and_grad(loss))(placed, tokens)
    fresh = jax.eval_shape(init)
  query = jax.tree.leaves(placed['params']['Encoder_0']['stack'])[2]
  assert len(query.sharding.device_set) == 8
  assert jax.tree.map(jnp.shape, nn.unbox(fresh)) == jax.tree.map(
    jnp.shape, params
  )
  for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)
