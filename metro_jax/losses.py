# SPDX-License-Identifier: Apache-2.0
"""Loss functions, per element and in float32. Reduction is the caller's."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from metro_jax import ops


class TokenLoss(NamedTuple):
  """Cross entropy of token predictions.

  Attributes:
    loss: float32 [...], -log p(target).
    log_normalizer: float32 [...], log-sum-exp of the logits.
    predicted: int32 [...], the most likely id.
  """

  loss: jax.Array
  log_normalizer: jax.Array
  predicted: jax.Array


def token_cross_entropy(
  token_logits: ops.TokenLogits, targets: jax.Array
) -> TokenLoss:
  """-log softmax(logits)[target] (METRO-LM equations 4 and 8).

  Args:
    token_logits: of shape [..., vocabulary].
    targets: int32 [...].

  Returns:
    Per-position values.
  """
  return TokenLoss(*ops.token_cross_entropy(token_logits, targets))


def sampled_cross_entropy(
  token_logits: ops.TokenLogits,
  targets: jax.Array,
  seed: jax.Array,
  rows: jax.Array,
) -> tuple[TokenLoss, jax.Array]:
  """`token_cross_entropy`, and a draw from the same pass over the vocabulary.

  Args:
    token_logits: of shape [batch, slots, vocabulary].
    targets: int32 [batch, slots].
    seed: uint32 scalar.
    rows: uint32 [batch], each row's index in the global batch.

  Returns:
    Per-position values, and ids int32 [batch, slots] without a gradient: those
    of `ops.sample_gumbel`.
  """
  draw = ops.Draw(seed, rows)
  *loss, ids = ops.token_cross_entropy(token_logits, targets, draw=draw)
  return TokenLoss(*loss), ids


def logit_of(token_logits: ops.TokenLogits, ids: jax.Array) -> jax.Array:
  """float32 [...], the logit of one id int32 [...] per position.

  Costs one row of the table a position, not the vocabulary.
  """
  rows = token_logits.table[ids].astype(token_logits.features.dtype)
  logit = jnp.einsum(
    '...d,...d->...',
    token_logits.features,
    rows,
    preferred_element_type=jnp.float32,
  )
  if token_logits.bias is not None:
    logit += token_logits.bias[ids].astype(jnp.float32)
  return logit


def surprise(logits: jax.Array, ids: jax.Array) -> jax.Array:
  """-log softmax(logits)[id]; float32 [...] of logits [..., vocabulary].

  For logits that are at hand; no gradient.
  """
  logits = jax.lax.stop_gradient(logits)
  logit = jnp.take_along_axis(logits, ids[..., None], axis=-1)[..., 0]
  return jax.nn.logsumexp(logits, axis=-1) - logit


def binary_cross_entropy(logits: jax.Array, positive: jax.Array) -> jax.Array:
  """-log sigmoid(x) where `positive`, else -log(1 - sigmoid(x)).

  METRO-LM equation 6. Neither logarithm ever sees a rounded 0.

  Args:
    logits: [...], of the positive class.
    positive: bool [...].

  Returns:
    float32 [...].
  """
  logits = logits.astype(jnp.float32)
  return jax.nn.softplus(jnp.where(positive, -logits, logits))
