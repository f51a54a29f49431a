# SPDX-License-Identifier: Apache-2.0
"""A stack of blocks: a Python loop, or one compiled block under `nn.scan`.

Both hold the same numbers, as `layers_0`, `layers_1`, ... or stacked in
`layers` along a leading axis (`stack_layers` and `unstack_layers` convert),
and compute the same function, dropout included: a layer's masks come from its
index.
"""

import re
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn

from metro_jax.errors import UserError
from metro_jax.modules.attention import DecodeStep
from metro_jax.modules.block import Block
from metro_jax.modules.config import TransformerConfig
from metro_jax.modules.dropout import Dropout
from metro_jax.modules.norm import LayerNorm
from metro_jax.modules.positions import (
  RelativeBias,
  UntiedPositions,
  check_length,
)
from metro_jax.ops import PositionBias


class Stack(nn.Module):
  """`config.num_layers` blocks, with the position bias they share.

  Attributes:
    config: of the blocks.
    cross_attention: whether blocks attend to a context.
    causal: whether self-attention sees the past only.
  """

  config: TransformerConfig
  cross_attention: bool = False
  causal: bool = False

  @nn.compact
  def __call__(
    self,
    x: jax.Array,
    segments: jax.Array | None = None,
    positions: jax.Array | None = None,
    dropout: Dropout | None = None,
    *,
    context: jax.Array | None = None,
    context_segments: jax.Array | None = None,
    step: DecodeStep | None = None,
    taps: Sequence[int] = (),
    stop_gradient_at: Sequence[int] = (),
  ) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    """Runs all blocks.

    Args:
      x: [batch, length, embed_dim].
      segments: int32 [batch, length], 0 at padding; None: one segment.
      positions: int32 [batch, length], restarting in each segment; None is
        0, 1, ... in every row.
      dropout: None for a deterministic pass.
      context: [batch, keys, width] for cross-attention.
      context_segments: int32 [batch, keys].
      step: x is this one token of a sequence; see `DecodeStep`.
      taps: depths whose output to return, 1 after the first block.
      stop_gradient_at: depths after which later blocks send no gradient back.
        What is tapped there still does.

    Returns:
      The last output, and the tapped ones in the order of `taps`.
    """
    config = self.config
    self._check_depths(taps, stop_gradient_at)
    if dropout is not None:
      dropout = dropout.seeded(self, x.shape[0])
    if step is None:
      bias = self._bias(x.shape[1], positions)
    else:
      bias = self._bias(step.length, None)
    shared = (bias, segments, dropout, context, context_segments, step)
    if config.scan_layers:
      x, tapped = self._scan(x, shared), {}
    else:
      x, tapped = self._loop(x, shared, taps, stop_gradient_at)
    if config.norm_placement == 'pre':
      x = LayerNorm(config, name='final_norm')(x)
    tapped[config.num_layers] = x
    return x, tuple(tapped[depth] for depth in taps)

  def _loop(self, x, shared, taps, stop_gradient_at):
    block = _rematerialised(self.config)
    tapped = {}
    for layer in range(self.config.num_layers):
      x = block(
        self.config, self.cross_attention, self.causal, name=f'layers_{layer}'
      )(x, layer, *shared)
      if layer + 1 in taps:
        tapped[layer + 1] = x
      if layer + 1 in stop_gradient_at:
        x = jax.lax.stop_gradient(x)
    return x, tapped

  def _scan(self, x, shared):
    block = _rematerialised(self.config)(
      self.config, self.cross_attention, self.causal, name='layers'
    )
    scanned = nn.scan(
      lambda module, x, layer, *shared: (module(x, layer, *shared), None),
      variable_axes={'params': 0, 'cache': 0},
      split_rngs={'params': True},
      in_axes=(0, *[nn.broadcast] * len(shared)),
      length=self.config.num_layers,
      metadata_params={nn.PARTITION_NAME: 'layers'},
    )
    layers = jnp.arange(self.config.num_layers)
    return scanned(block, x, layers, *shared)[0]

  def _bias(
    self, length: int, positions: jax.Array | None
  ) -> PositionBias | None:
    """What all layers share of the position bias."""
    config = self.config.positions
    if config.relative is None and not config.untied:
      return None
    check_length(config, length)
    if positions is None:
      positions = jnp.arange(length, dtype=jnp.int32)[None]
    first = positions == 0 if config.reset_cls else None
    bias = PositionBias(
      q_length=length,
      k_length=length,
      q_first=first,
      k_first=first,
      untied=(
        UntiedPositions(self.config, name='untied_positions')(positions)
        if config.untied
        else None
      ),
    )
    if config.relative is not None and not config.per_layer:
      relative = RelativeBias(self.config, self.causal, name='relative_bias')
      bias = relative(bias)
    return bias

  def _check_depths(self, taps, stop_gradient_at) -> None:
    depth = self.config.num_layers
    wrong = [d for d in (*taps, *stop_gradient_at) if not 1 <= d <= depth]
    if wrong:
      raise UserError(
        f'TransformerConfig.num_layers: depth {wrong[0]} is asked for, but the'
        f' stack has depths 1 to {depth}'
      )
    inner = [d for d in (*taps, *stop_gradient_at) if d != depth]
    if self.config.scan_layers and inner:
      raise UserError(
        f'TransformerConfig.scan_layers: depth {inner[0]} of {depth} cannot be'
        ' reached under scan; set scan_layers = False'
      )


def _rematerialised(config: TransformerConfig) -> type[nn.Module]:
  """`Block`, wrapped to compute again what the config does not save."""
  if config.remat == 'none':
    return Block
  policy = None
  if config.remat == 'dots':
    policy = jax.checkpoint_policies.dots_with_no_batch_dims_saveable
  # Scan already keeps the two computations apart.
  return nn.remat(Block, policy=policy, prevent_cse=not config.scan_layers)


def stack_layers(params: dict) -> dict:
  """Parameters of a looped stack as those of a scanned one.

  Args:
    params: the stack's own parameter dict, unboxed.

  Returns:
    `layers_<i>` replaced by `layers`, with a leading axis.
  """
  names = [name for name in params if re.fullmatch(r'layers_\d+', name)]
  names.sort(key=lambda name: int(name.removeprefix('layers_')))
  rest = {name: params[name] for name in params if name not in names}
  layers = [params[name] for name in names]
  return rest | {'layers': jax.tree.map(lambda *x: jnp.stack(x), *layers)}


def unstack_layers(params: dict) -> dict:
  """Inverse of `stack_layers`."""
  layers = params['layers']
  rest = {name: params[name] for name in params if name != 'layers'}
  depth = jax.tree.leaves(layers)[0].shape[0]
  return rest | {
    f'layers_{i}': jax.tree.map(lambda x, i=i: x[i], layers)
    for i in range(depth)
  }
