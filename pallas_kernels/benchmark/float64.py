# SPDX-License-Identifier: Apache-2.0
"""The ops once more, in float64 and as plainly as can be, to judge the others.

Arguments as in cases.py, in float64; only the dropout masks come from the ops'
own hash. To be called where jax_enable_x64 is on.
"""

import jax
import jax.numpy as jnp

from pallas_kernels import random_bits

RATE, EPSILON = 0.1, 1e-5


def layer_norm(a, others):
  """Of x and its dropped branch."""
  del others
  batch, length, width = a['x'].shape
  keep = _keep(
    jnp.arange(batch)[:, None, None],
    jnp.arange(length)[:, None],
    jnp.arange(width),
  )
  x = a['x'] + a['branch'] * keep
  centred = x - x.mean(-1, keepdims=True)
  variance = (centred**2).mean(-1, keepdims=True)
  return centred / jnp.sqrt(variance + EPSILON) * a['scale'] + a['bias']


def softmax_dropout(a, others):
  """With relative bias, segments and dropout."""
  return _weights(a['logits'], a, others['segments'])


def attention(a, others):
  """The same, around the products."""
  weights = _weights(_logits(a), a, others['segments'])
  return jnp.einsum('bhqk,bkhd->bqhd', weights, a['v'])


def plain_attention(a, others):
  """Without bias, segments and dropout."""
  del others
  weights = jax.nn.softmax(_logits(a))
  return jnp.einsum('bhqk,bkhd->bqhd', weights, a['v'])


def vocab_cross_entropy(a, others):
  """Loss per token."""
  logits = a['features'] @ a['table'].T + a['bias']
  at_target = jnp.take_along_axis(logits, others['targets'][..., None], -1)
  return jax.scipy.special.logsumexp(logits, axis=-1) - at_target[..., 0]


def _logits(a):
  scale = a['q'].shape[-1] ** -0.5
  return jnp.einsum('bqhd,bkhd->bhqk', a['q'], a['k']) * scale


def _weights(logits, a, segments):
  batch, heads, length, _ = logits.shape
  at = jnp.arange(length)
  bias = a['vector'][:, at[None, :] - at[:, None] + length - 1]
  first = at % 4 == 0
  reset = a['reset'][:, :, None, None]
  bias = jnp.where(first[None, :], reset[:, 0], bias)
  bias = jnp.where(first[:, None], jax.lax.stop_gradient(reset[:, 1]), bias)
  seen = (segments[:, :, None] == segments[:, None, :])[:, None]
  seen = seen & (segments != 0)[:, None, :, None]
  x = jnp.where(seen, logits + bias, -jnp.inf)
  any_seen = seen.any(-1, keepdims=True)
  p = jax.nn.softmax(jnp.where(any_seen, x, 0.0)) * any_seen
  plane = jnp.arange(batch)[:, None] * heads + jnp.arange(heads)
  return p * _keep(plane[..., None, None], at[:, None], at)


def _keep(plane, row, col):
  kept = random_bits.keep(RATE, jnp.uint32(1), plane, row, col)
  return kept / (1 - RATE)
