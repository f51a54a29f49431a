# SPDX-License-Identifier: Apache-2.0
"""Multi-head attention, self or cross."""

import jax
from flax import linen as nn

from metro_jax import ops
from metro_jax.modules import initializers, positions
from metro_jax.modules.config import TransformerConfig
from metro_jax.modules.dense import Dense
from metro_jax.modules.dropout import Dropout
from metro_jax.ops import PositionBias


class Attention(nn.Module):
  """Projections around `ops.attention`.

  Attributes:
    config: of the model.
    causal: whether a query sees only keys at or before its own index.
  """

  config: TransformerConfig
  causal: bool = False

  @nn.compact
  def __call__(
    self,
    x: jax.Array,
    context: jax.Array | None = None,
    *,
    bias: PositionBias | None = None,
    q_segments: jax.Array | None = None,
    kv_segments: jax.Array | None = None,
    dropout: Dropout | None = None,
  ) -> jax.Array:
    """Attends from `x` to `context`, or to `x` itself.

    Args:
      x: [batch, queries, embed_dim].
      context: [batch, keys, context width]; None is x.
      bias: position bias of the logits.
      q_segments: int32 [batch, queries], 0 at padding; None masks nothing.
      kv_segments: int32 [batch, keys]; None is q_segments.
      dropout: None for a deterministic pass.

    Returns:
      [batch, queries, embed_dim].
    """
    config = self.config
    source = x if context is None else context
    q = self._heads('query', x)
    k, v = self._heads('key', source), self._heads('value', source)
    drop = {}
    if dropout is not None:
      here = dropout.seeded(self, x.shape[0])
      drop = {
        'dropout_rate': here.attention,
        'seed': here.seed,
        'rows': here.rows,
      }
    y = ops.attention(
      q,
      k,
      v,
      bias=bias,
      q_segments=q_segments,
      kv_segments=q_segments if kv_segments is None else kv_segments,
      scale=positions.attention_scale(config),
      causal=self.causal,
      backend=config.attention_backend,
      softmax_backend=config.softmax_backend,
      **drop,
    )
    return Dense(
      (config.num_heads, config.head_width, config.embed_dim),
      ('heads', 'kv', 'embed'),
      config.compute_dtype,
      initializers.normal(config.init_stddev),
      inputs=2,
      name='out',
    )(y)

  def _heads(self, name: str, x: jax.Array) -> jax.Array:
    """[batch, length, width] to [batch, length, heads, head_dim]."""
    config = self.config
    y = Dense(
      (x.shape[-1], config.num_heads, config.head_width),
      ('embed', 'heads', 'kv'),
      config.compute_dtype,
      initializers.normal(config.init_stddev),
      name=name,
    )(x)
    return nn.with_logical_constraint(y, ('batch', 'length', 'heads', 'kv'))
