# SPDX-License-Identifier: Apache-2.0
"""Task layers: hidden states of a row in, scores out, in float32."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from flax import linen as nn

from metro_jax.modules import Dense, Dropout, TransformerConfig
from metro_jax.modules.dropout import drop_hidden
from metro_jax.modules.initializers import normal

_ACTIVATIONS = {
  'tanh': jnp.tanh,
  'gelu': functools.partial(nn.gelu, approximate=False),
}


class SentenceHead(nn.Module):
  """Scores of a whole row, from its [CLS].

  Dropout, dense, tanh, dropout, linear: the task layer of RoBERTa, COCO-LM
  and METRO-LM; ELECTRA's has GELU in place of tanh.

  Attributes:
    config: of the model whose hidden states come in.
    outputs: how many scores.
    dropout_rate: before both layers, 0..1 (METRO-LM Table 11).
    activation: 'tanh' or 'gelu'.
  """

  config: TransformerConfig
  outputs: int
  dropout_rate: float = 0.1
  activation: str = 'tanh'

  @nn.compact
  def __call__(self, h: jax.Array, dropout: Dropout | None) -> jax.Array:
    """float32 [batch, outputs] for h [batch, length, embed_dim].

    Args:
      h: hidden states.
      dropout: seeded, or None for a deterministic pass.
    """
    dropout = _at_rate(dropout, self.dropout_rate)
    x = drop_hidden(h[:, :1], dropout, 0)
    x = _dense(self.config, h.shape[-1], h.shape[-1], 'dense')(x)
    x = _ACTIVATIONS[self.activation](x)
    x = drop_hidden(x, dropout, 1)
    return _dense(self.config, h.shape[-1], self.outputs, 'output')(x)[:, 0]


class SpanHead(nn.Module):
  """Two scores a token: a span starts here, a span ends here.

  Attributes:
    config: of the model whose hidden states come in.
    dropout_rate: before the layer, 0..1.
  """

  config: TransformerConfig
  dropout_rate: float = 0.1

  @nn.compact
  def __call__(self, h: jax.Array, dropout: Dropout | None) -> jax.Array:
    """float32 [batch, 2, length] for h [batch, length, embed_dim].

    Args:
      h: hidden states.
      dropout: seeded, or None for a deterministic pass.
    """
    x = drop_hidden(h, _at_rate(dropout, self.dropout_rate), 0)
    scores = _dense(self.config, h.shape[-1], 2, 'output')(x)
    return jnp.swapaxes(scores, 1, 2)


def _dense(config: TransformerConfig, inputs: int, outputs: int, name: str):
  # A few thousand products: float32 throughout costs nothing.
  return Dense(
    (inputs, outputs),
    ('embed', None),
    jnp.dtype('float32'),
    normal(config.init_stddev),
    name=name,
  )


def _at_rate(dropout: Dropout | None, rate: float) -> Dropout | None:
  return None if dropout is None else dataclasses.replace(dropout, hidden=rate)
