# SPDX-License-Identifier: Apache-2.0
"""One Transformer block: sublayers, each in a residual branch with a norm.

Post-LN:  x = LN(x + Dropout(f(x)))
Pre-LN:   x = x + Dropout(f(LN(x)))

The parameters have the same names either way.
"""

from collections.abc import Callable

import jax
from flax import linen as nn

from metro_jax.modules.attention import Attention, DecodeStep
from metro_jax.modules.config import TransformerConfig
from metro_jax.modules.dropout import Dropout, drop_hidden
from metro_jax.modules.mlp import MLP
from metro_jax.modules.norm import LayerNorm
from metro_jax.modules.positions import RelativeBias
from metro_jax.ops import PositionBias

# Places of dropout in a block, each with masks of its own.
_SELF, _CROSS, _MLP = 0, 1, 2


class Block(nn.Module):
  """Self-attention, optional cross-attention, feed-forward network.

  Attributes:
    config: of the stack.
    cross_attention: whether to attend to `context` as well.
    causal: whether self-attention sees the past only.
  """

  config: TransformerConfig
  cross_attention: bool = False
  causal: bool = False

  @nn.compact
  def __call__(
    self,
    x: jax.Array,
    layer: int | jax.Array = 0,
    bias: PositionBias | None = None,
    segments: jax.Array | None = None,
    dropout: Dropout | None = None,
    context: jax.Array | None = None,
    context_segments: jax.Array | None = None,
    step: DecodeStep | None = None,
  ) -> jax.Array:
    """Maps [batch, length, embed_dim] to the same shape.

    Args:
      x: hidden states.
      layer: index in the stack from 0; may be traced.
      bias: position bias of self-attention; where the config has a relative
        bias per layer, its relative part is filled in here.
      segments: int32 [batch, length], 0 at padding; None masks nothing.
      dropout: None for a deterministic pass. The layer draws its own masks.
      context: [batch, keys, width] for cross-attention.
      context_segments: int32 [batch, keys].
      step: x is this one token of a sequence; see `DecodeStep`.

    Returns:
      Hidden states after the block.
    """
    config = self.config
    if dropout is not None:
      dropout = dropout.seeded(self, x.shape[0]).fold(layer)
    if bias is not None and config.positions.per_layer:
      bias = RelativeBias(config, self.causal, name='relative_bias')(bias)
    attend = Attention(config, self.causal, name='attention')
    x = self._residual(
      'attention',
      x,
      dropout,
      _SELF,
      lambda y, drop: attend(
        y, bias=bias, q_segments=segments, dropout=drop, step=step
      ),
    )
    if self.cross_attention:
      look = Attention(config, name='cross_attention')
      x = self._residual(
        'cross_attention',
        x,
        dropout,
        _CROSS,
        lambda y, drop: look(
          y,
          context,
          q_segments=segments,
          kv_segments=context_segments,
          dropout=drop,
          step=step,
        ),
      )
    mlp = MLP(config, name='mlp')
    return self._residual(
      'mlp', x, dropout, _MLP, lambda y, drop: mlp(y, layer, drop)
    )

  def _residual(
    self,
    name: str,
    x: jax.Array,
    dropout: Dropout | None,
    place: int,
    sublayer: Callable[[jax.Array, Dropout | None], jax.Array],
  ) -> jax.Array:
    """One residual branch around `sublayer`."""
    norm = LayerNorm(self.config, name=f'{name}_norm')
    here = None if dropout is None else dropout.fold(place)
    post = self.config.norm_placement == 'post'
    y = sublayer(x if post else norm(x), here)
    x = norm(x, y, here) if post else x + drop_hidden(y, here, 0)
    return nn.with_logical_constraint(x, ('batch', 'length', 'embed'))
