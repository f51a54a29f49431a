# SPDX-License-Identifier: Apache-2.0
"""Cross entropy of tied-table logits, the definition. Holds the logits."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels import sampling
from pallas_kernels.matmul import product


@functools.partial(
  jax.tree_util.register_dataclass,
  data_fields=('seed', 'rows', 'temperature'),
  meta_fields=(),
)
@dataclasses.dataclass(frozen=True)
class Draw:
  """Asks for a sample of each token along with its loss.

  Attributes:
    seed: uint32 scalar.
    rows: uint32 [batch], each row's index in the global batch.
    temperature: the logits are divided by it; may be traced.
  """

  seed: jax.Array
  rows: jax.Array
  temperature: float | jax.Array = 1.0


@jax.custom_vjp
def vocab_logits(
  features: jax.Array, table: jax.Array, bias: jax.Array | None
) -> jax.Array:
  """Logits: features @ table^T + bias.

  Its gradient is written by hand: that of the table comes as the table lies,
  with no transposition after it, and that of the bias as a product with ones,
  where CPUs sum columns of a whole vocabulary twenty times as slowly.

  Args:
    features: [..., width], compute dtype.
    table: [vocabulary, width].
    bias: [vocabulary] or None.

  Returns:
    float32 [..., vocabulary].
  """
  return _logits_forward(features, table, bias)[0]


def _logits_forward(features, table, bias):
  # Not through `vocab_logits`: a rematerialisation policy must see the product.
  cast = table.astype(features.dtype)
  y = product(features, cast, features.ndim - 1, 1, jnp.float32)
  y = y if bias is None else y + bias.astype(jnp.float32)
  return y, (features, table, bias)


def _logits_backward(residuals, g):
  features, table, bias = residuals
  wide = g.reshape(-1, g.shape[-1])
  d_bias = None
  if bias is not None:
    ones = jnp.ones(wide.shape[0], jnp.float32)
    exact = jax.lax.Precision.HIGHEST
    d_bias = product(ones, wide, 0, 0, bias.dtype, exact)
  # The cotangent multiplies in the dtype that the forward pass multiplied in.
  g, wide = g.astype(features.dtype), wide.astype(features.dtype)
  flat = features.reshape(-1, features.shape[-1])
  d_features = product(g, table.astype(g.dtype), g.ndim - 1, 0, g.dtype)
  return d_features, product(wide, flat, 0, 0, table.dtype), d_bias


vocab_logits.defvjp(_logits_forward, _logits_backward)


def vocab_cross_entropy(
  features: jax.Array,
  table: jax.Array,
  bias: jax.Array | None,
  targets: jax.Array,
  *,
  draw: Draw | None = None,
) -> tuple[jax.Array, ...]:
  """Per token: loss, log-sum-exp of the logits, most likely id.

  Args:
    features: [..., width].
    table: [vocabulary, width].
    bias: [vocabulary] or None.
    targets: int32 [...], the ids to predict.
    draw: asks for a sample too; leading axes are then [batch, draws].

  Returns:
    loss [...] float32 (= lse - logit of the target), lse [...] float32, both
    differentiable; argmax [...] int32, the lowest id among equals; with
    `draw` also a sample [...] int32 by Gumbel-max, without gradient.
  """
  x = vocab_logits(features, table, bias)
  out = cross_entropy(x, targets)
  if draw is None:
    return out
  warm = jax.lax.stop_gradient(x) / draw.temperature
  return *out, sampling.gumbel(warm, draw.seed, draw.rows)


@jax.custom_vjp
def cross_entropy(
  x: jax.Array, targets: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """As `vocab_cross_entropy`, of float32 logits x [..., vocabulary].

  The gradient is written by hand: one pass over the logits, where automatic
  differentiation of the target's logit would scatter into zeros.
  """
  ids = jax.lax.broadcasted_iota(jnp.int32, x.shape, x.ndim - 1)
  peak = jnp.max(x, axis=-1, keepdims=True)
  lse = jnp.log(jnp.sum(jnp.exp(x - peak), axis=-1)) + peak[..., 0]
  # jnp.argmax reduces pairs, which CPUs do not vectorise.
  best = jnp.min(jnp.where(x == peak, ids, x.shape[-1]), axis=-1)
  return lse - _at_target(x, targets), lse, best


def _at_target(x, targets):
  return jax.lax.platform_dependent(x, targets, cpu=gathered, default=summed)


def gathered(x: jax.Array, targets: jax.Array) -> jax.Array:
  """Logits [...] of targets int32 [...], of x [..., vocabulary]."""
  return jnp.take_along_axis(x, targets[..., None], axis=-1)[..., 0]


def summed(x: jax.Array, targets: jax.Array) -> jax.Array:
  """The same; a gather would collect a vocabulary that devices share."""
  ids = jax.lax.broadcasted_iota(jnp.int32, x.shape, x.ndim - 1)
  return jnp.sum(jnp.where(ids == targets[..., None], x, 0.0), axis=-1)


def _forward(x, targets):
  loss, lse, best = cross_entropy(x, targets)
  return (loss, lse, best), (x, targets, lse)


def _backward(residuals, cotangents):
  x, targets, lse = residuals
  d_loss, d_lse, _ = cotangents
  ids = jax.lax.broadcasted_iota(jnp.int32, x.shape, x.ndim - 1)
  probability = jnp.exp(x - lse[..., None])
  hit = ids == targets[..., None]
  dx = probability * (d_loss + d_lse)[..., None]
  dx = dx - jnp.where(hit, d_loss[..., None], 0.0)
  return dx, np.zeros(targets.shape, jax.dtypes.float0)


cross_entropy.defvjp(_forward, _backward)
