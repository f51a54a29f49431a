# SPDX-License-Identifier: Apache-2.0
"""Positions as a bias on attention logits.

* Relative bias: a learned number per head and bucket of key - query. METRO's
  buckets are signed and round up; T5's round down and put keys to the right
  into the upper half. For 32 buckets and distance 128 they place 35 of the
  first 512 distances differently.
* Reset [CLS] (METRO-LM Table 1, after TUPE section 3.2): [CLS] has no
  meaningful place in the sentence, so offsets to and from it get two learned
  numbers per head of their own. METRO-LM publishes no details; our reading
  keeps the absolute position embeddings and the attention scale, and sets
  first the [CLS] column, then the [CLS] row, as TUPE's code does.
* Untied absolute positions (TUPE): logits of their own from normalised
  position embeddings, both terms scaled by 1 / sqrt(2 head_dim).

A packed row has several [CLS]: wherever a segment's position is 0.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from metro_jax.errors import UserError
from metro_jax.modules import initializers
from metro_jax.modules.config import PositionConfig, TransformerConfig
from metro_jax.modules.dense import Dense, Table
from metro_jax.modules.norm import LayerNorm
from metro_jax.ops import PositionBias


def metro_bucket(
  relative_position: np.ndarray, num_buckets: int, max_distance: int
) -> np.ndarray:
  """Bucket of COCO-LM, AMOS and METRO-LM for key - query.

  Args:
    relative_position: integers, key position minus query position.
    num_buckets: total; one of them stays unused.
    max_distance: distance at which the last bucket has been reached.

  Returns:
    int32 in 0..num_buckets - 2; distance 0 is num_buckets / 2 - 1.
  """
  half = num_buckets // 2
  exact = half // 2
  distance = np.abs(relative_position)
  # Rounded up, with the last step at max_distance - 1.
  steps = np.log(np.maximum(distance, exact) / exact)
  steps = steps / np.log((max_distance - 1) / exact) * (half - 1 - exact)
  far = np.minimum(half - 1, exact + np.ceil(steps).astype(np.int32))
  magnitude = np.where(distance < exact, distance, far)
  bucket = np.sign(relative_position) * magnitude + half - 1
  return bucket.astype(np.int32)


def t5_bucket(
  relative_position: np.ndarray,
  num_buckets: int,
  max_distance: int,
  causal: bool = False,
) -> np.ndarray:
  """T5's bucket for key - query.

  Args:
    relative_position: integers, key position minus query position.
    num_buckets: total of both directions.
    max_distance: distance at which the last bucket starts, or would.
    causal: all buckets are for keys to the left (T5's decoder).

  Returns:
    int32 in 0..num_buckets - 1; keys to the right are in the upper half, or,
    with `causal`, in bucket 0.
  """
  half = num_buckets if causal else num_buckets // 2
  exact = half // 2
  distance = np.abs(relative_position)
  if causal:
    distance = np.maximum(-relative_position, 0)
  # float32 and the epsilon are part of T5's definition: they decide on which
  # side exact powers fall.
  ratio = np.maximum(distance, exact).astype(np.float32) / exact
  steps = np.log(ratio + np.finfo(np.float32).eps)
  steps = steps / np.log(max_distance / exact) * (half - exact)
  far = np.minimum(half - 1, exact + steps.astype(np.int32))
  magnitude = np.where(distance < exact, distance, far)
  right = np.where(relative_position > 0, 0 if causal else half, 0)
  return (magnitude + right).astype(np.int32)


class RelativeBias(nn.Module):
  """The learned relative bias of one stack, or of one layer.

  Attributes:
    config: of the stack.
    causal: whether keys to the right are never seen.
  """

  config: TransformerConfig
  causal: bool = False

  @nn.compact
  def __call__(self, bias: PositionBias) -> PositionBias:
    """`bias` with `vector` and, with reset_cls, `reset` filled in."""
    positions = self.config.positions
    rows = positions.num_buckets + (2 if positions.reset_cls else 0)
    table = self.param(
      'embedding',
      nn.with_logical_partitioning(self._start, ('relpos_buckets', 'heads')),
      (rows, self.config.num_heads),
      jnp.float32,
    )
    bucket = self._bucket(np.arange(-(bias.q_length - 1), bias.k_length))
    reset = table[-2:].T if positions.reset_cls else None
    return dataclasses.replace(bias, vector=table[bucket].T, reset=reset)

  def _bucket(self, offsets: np.ndarray) -> np.ndarray:
    positions = self.config.positions
    sizes = positions.num_buckets, positions.max_distance
    if positions.relative == 't5':
      return t5_bucket(offsets, *sizes, self.causal)
    return metro_bucket(offsets, *sizes)

  def _start(
    self, key: jax.Array, shape: tuple[int, int], dtype: jnp.dtype
  ) -> jax.Array:
    """Normal, and more where a head's neighbour is: -1, 1, -2, 2, ..."""
    table = initializers.normal(self.config.init_stddev)(key, shape, dtype)
    heads = np.arange(shape[1])
    offsets = (heads // 2 + 1) * np.where(heads % 2, 1, -1)
    if self.causal:
      offsets = -heads - 1
    more = self.config.positions.neighbour_bias
    return table.at[self._bucket(offsets), heads].add(more)


class UntiedPositions(nn.Module):
  """TUPE's absolute-position logits, one set for all layers of a stack."""

  config: TransformerConfig

  @nn.compact
  def __call__(self, positions: jax.Array) -> jax.Array:
    """Logits between positions.

    Args:
      positions: int32 [batch or 1, length], restarting in each segment.

    Returns:
      [batch or 1, heads, length, length], scaled, float32.
    """
    config = self.config
    reset = config.positions.reset_cls
    # Two extra rows that stand for no position: TUPE resets with the logits
    # of such rows with themselves (it has one; the other is its [CLS] row).
    rows = config.positions.max_length + (2 if reset else 0)
    table = Table(
      (rows, config.embed_dim),
      ('position', 'embed'),
      initializers.normal(config.init_stddev),
      name='position',
    )
    ids = positions
    if reset:
      extra = jnp.arange(rows - 2, rows, dtype=positions.dtype)
      extra = jnp.broadcast_to(extra, (positions.shape[0], 2))
      ids = jnp.concatenate([positions, extra], axis=1)
    p = LayerNorm(config, name='norm')(table(ids))
    q, k = (_heads(config, name)(p) for name in ('query', 'key'))
    scale = (2 * config.head_width) ** -0.5
    logits = jnp.einsum('bqhd,bkhd->bhqk', q, k) * scale
    if not reset:
      return logits
    n = positions.shape[1]
    first = positions == 0
    to_cls, from_cls = (logits[:, :, n + i, n + i] for i in (0, 1))
    logits = jnp.where(
      first[:, None, None, :], to_cls[..., None, None], logits[:, :, :n, :n]
    )
    # A constant along the row cancels in the softmax; see PositionBias.reset.
    from_cls = jax.lax.stop_gradient(from_cls)
    return jnp.where(first[:, None, :, None], from_cls[..., None, None], logits)


def _heads(config: TransformerConfig, name: str) -> Dense:
  return Dense(
    (config.embed_dim, config.num_heads, config.head_width),
    ('embed', 'heads', 'kv'),
    jnp.dtype('float32'),
    initializers.normal(config.init_stddev),
    name=name,
  )


def row_of(bias: PositionBias, query: jax.Array) -> PositionBias:
  """The bias of a single query, an int32 scalar, on all keys."""

  def cut(x: jax.Array | None, start: jax.Array, size: int, axis: int):
    if x is None:
      return None
    return jax.lax.dynamic_slice_in_dim(x, start, size, axis)

  # Key 0 lies `query` places before the query.
  first = bias.q_length - 1 - query
  return dataclasses.replace(
    bias,
    q_length=1,
    vector=cut(bias.vector, first, bias.k_length, 1),
    q_first=cut(bias.q_first, query, 1, 1),
    untied=cut(bias.untied, query, 1, 2),
  )


def attention_scale(config: TransformerConfig) -> float:
  """1 / sqrt(head_dim), or 1 / sqrt(2 head_dim) beside untied positions."""
  terms = 2 if config.positions.untied else 1
  return (terms * config.head_width) ** -0.5


def check_length(config: PositionConfig, length: int) -> None:
  """Refuses sequences longer than the untied position table."""
  if config.untied and length > config.max_length:
    raise UserError(
      f'PositionConfig.max_length: {config.max_length} rows of positions are'
      f' fewer than the sequence length {length}; raise it, or lower LENGTH'
    )
