# SPDX-License-Identifier: Apache-2.0
"""Layer-wise learning rates: the nearer the input, the smaller."""

import re
from typing import Any

import jax
import jax.numpy as jnp
import optax

from metro_jax.errors import UserError
from metro_jax.training.state import named_leaves, path_names

PyTree = Any
_LAYER = re.compile(r'.*/layers_(\d+)/.*')
_SCANNED = re.compile(r'.*/layers/.*')
_PRETRAINED = re.compile(r'(embedder|main)/.*')


def scale_by_depth(decay: float) -> optax.GradientTransformation:
  """Multiplies updates by decay^d, d layers below the heads.

  The top layer has d = 1, the lowest of n layers d = n; embeddings, and what
  all layers share, d = n + 1; heads d = 0. ELECTRA's public code counts one
  more everywhere but at the heads, so its 0.8 gives the top layer 0.64.

  Args:
    decay: factor from one layer to the next below, over 0 and at most 1.

  Returns:
    A transformation for the end of a chain: it scales weight decay, too.
  """
  if not 0 < decay <= 1:
    raise UserError(
      f'LAYER_DECAY: {decay} is not a factor over 0 and up to 1; None is no'
      ' layer-wise decay'
    )

  def update(updates: PyTree, state: Any, params: PyTree = None):
    del params
    depth = _depth(updates)

    def scale(path: tuple[Any, ...], x: jax.Array) -> jax.Array:
      name = '/'.join(path_names(path))
      return x * _factor(name, x, depth, decay)

    return jax.tree_util.tree_map_with_path(scale, updates), state

  return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def _depth(params: PyTree) -> int:
  """Layers of the stack, looped or scanned."""
  leaves = named_leaves(params)
  scanned = [len(x) for name, x in leaves.items() if _SCANNED.fullmatch(name)]
  looped = [
    int(m.group(1)) + 1 for name in leaves if (m := _LAYER.fullmatch(name))
  ]
  return max([*scanned, *looped], default=0)


def _factor(
  name: str, x: jax.Array, depth: int, decay: float
) -> float | jax.Array:
  layer = _LAYER.fullmatch(name)
  if layer:
    return decay ** (depth - int(layer.group(1)))
  if _SCANNED.fullmatch(name):
    factors = decay ** (depth - jnp.arange(depth))
    return factors.reshape(-1, *[1] * (x.ndim - 1)).astype(x.dtype)
  return decay ** (depth + 1) if _PRETRAINED.fullmatch(name) else 1.0
