# SPDX-License-Identifier: Apache-2.0
"""Multi-head attention, self or cross, whole sequences or token by token."""

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct

from metro_jax import ops
from metro_jax.modules import initializers, positions
from metro_jax.modules.config import TransformerConfig
from metro_jax.modules.dense import Dense
from metro_jax.modules.dropout import Dropout
from metro_jax.ops import PositionBias


@struct.dataclass
class DecodeStep:
  """Which token of a sequence that comes one by one.

  Keys and values of the tokens before it are kept in the collection 'cache',
  which the step for token 0 creates: apply it with mutable=['cache'] and hand
  the cache on.

  Attributes:
    index: int32 scalar, from 0; all rows are at the same token.
    length: tokens that the cache has room for.
  """

  index: jax.Array
  length: int = struct.field(pytree_node=False)


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
    step: DecodeStep | None = None,
  ) -> jax.Array:
    """Attends from `x` to `context`, or to `x` itself.

    Args:
      x: [batch, queries, embed_dim].
      context: [batch, keys, context width]; None is x.
      bias: position bias of the logits.
      q_segments: int32 [batch, queries], 0 at padding; None masks nothing.
      kv_segments: int32 [batch, keys]; None is q_segments.
      dropout: None for a deterministic pass.
      step: x holds one token per row, this one. Self-attention then sees the
        tokens before it, whatever the segments; cross-attention projects
        `context` at the first step only.

    Returns:
      [batch, queries, embed_dim].
    """
    config, causal = self.config, self.causal
    q = self._heads('query', x)
    if kv_segments is None:
      kv_segments = q_segments
    if step is None:
      k, v = self._key_value(x if context is None else context)
    elif context is None:
      k, v = self._past_and(x, step)
      past = jnp.arange(step.length) <= step.index
      q_segments = jnp.ones(x.shape[:2], jnp.int32)
      kv_segments = jnp.broadcast_to(past, k.shape[:2]).astype(jnp.int32)
      causal = False  # The segments say so.
      bias = None if bias is None else positions.row_of(bias, step.index)
    else:
      k, v = self._once(context)
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
      kv_segments=kv_segments,
      scale=positions.attention_scale(config),
      causal=causal,
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
      use_bias=config.use_bias,
      name='out',
    )(y)

  def _key_value(self, source: jax.Array) -> tuple[jax.Array, jax.Array]:
    return self._heads('key', source), self._heads('value', source)

  def _past_and(
    self, x: jax.Array, step: DecodeStep
  ) -> tuple[jax.Array, jax.Array]:
    """Keys and values up to this token [batch, step.length, heads, dim]."""
    whole = []
    for name, now in zip(('key', 'value'), self._key_value(x), strict=True):
      shape = (x.shape[0], step.length, *now.shape[2:])
      past = self.variable(
        'cache', f'cached_{name}', jnp.zeros, shape, now.dtype
      )
      past.value = jax.lax.dynamic_update_slice_in_dim(
        past.value, now, step.index, axis=1
      )
      whole.append(past.value)
    return tuple(whole)

  def _once(self, context: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Keys and values of the context, computed at the first step."""
    names = ('cached_key', 'cached_value')
    if not self.has_variable('cache', names[0]):
      for name, value in zip(names, self._key_value(context), strict=True):
        self.put_variable('cache', name, value)
    return tuple(self.get_variable('cache', name) for name in names)

  def _heads(self, name: str, x: jax.Array) -> jax.Array:
    """[batch, length, width] to [batch, length, heads, head_dim]."""
    config = self.config
    y = Dense(
      (x.shape[-1], config.num_heads, config.head_width),
      ('embed', 'heads', 'kv'),
      config.compute_dtype,
      initializers.normal(config.init_stddev),
      use_bias=config.use_bias,
      name=name,
    )(x)
    return nn.with_logical_constraint(y, ('batch', 'length', 'heads', 'kv'))
