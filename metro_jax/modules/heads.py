# SPDX-License-Identifier: Apache-2.0
"""What turns hidden states into predictions."""

import jax
import jax.numpy as jnp
from flax import linen as nn

from metro_jax.modules import initializers
from metro_jax.modules.config import TransformerConfig
from metro_jax.modules.dense import Dense
from metro_jax.modules.mlp import ACTIVATIONS
from metro_jax.modules.norm import LayerNorm
from metro_jax.ops import TokenLogits


class LMHead(nn.Module):
  """Token predictions tied to a token table, with a bias of their own.

  Attributes:
    config: of the model whose hidden states come in.
    projection: dense, activation and LayerNorm before the table, as masked
      language models have; without it (the corrective LM of METRO-LM) only
      the table and the bias.
    use_bias: the bias; METRO-T5's decoder has none.
  """

  config: TransformerConfig
  projection: bool = True
  use_bias: bool = True

  @nn.compact
  def __call__(self, h: jax.Array, table: jax.Array) -> TokenLogits:
    """Predictions for h [..., embed_dim].

    Args:
      h: hidden states; [batch, predictions, embed_dim] in pretraining, which
        calls the head at masked positions only.
      table: [vocabulary, table_dim], the tied token table.

    Returns:
      Logits not yet multiplied out: `.logits()` or `ops.token_cross_entropy`.
    """
    config = self.config
    width = table.shape[-1]
    if self.projection or h.shape[-1] != width:
      h = Dense(
        (h.shape[-1], width),
        ('embed', None),
        config.compute_dtype,
        initializers.normal(config.init_stddev),
        name='dense',
      )(h)
    if self.projection:
      h = LayerNorm(config, name='norm')(ACTIVATIONS[config.activation](h))
    bias = None
    if self.use_bias:
      bias = self.param(
        'bias',
        nn.with_logical_partitioning(initializers.zeros, ('vocab',)),
        (table.shape[0],),
        jnp.float32,
      )
    h = h.astype(config.compute_dtype)
    return TokenLogits(h, table, bias, config.vocab_backend)


class RTDHead(nn.Module):
  """Replaced token detection: one logit a position, positive is ORIGINAL.

  That is the polarity of COCO-LM, AMOS and METRO-LM.

  Attributes:
    config: of the model whose hidden states come in.
    hidden: a dense layer and activation before the output (ELECTRA).
    norm: LayerNorm after that layer (METRO-T5, after RoBERTa's LM head).
    zero_init: output weights start at zero (METRO-T5).
  """

  config: TransformerConfig
  hidden: bool = False
  norm: bool = False
  zero_init: bool = False

  @nn.compact
  def __call__(self, h: jax.Array) -> jax.Array:
    """float32 logits [..., ] for h [..., embed_dim]."""
    config = self.config
    init = initializers.normal(config.init_stddev)
    width = h.shape[-1]
    if self.hidden:
      h = Dense(
        (width, width),
        ('embed', None),
        config.compute_dtype,
        init,
        name='dense',
      )(h)
      h = ACTIVATIONS[config.activation](h)
    if self.norm:
      h = LayerNorm(config, name='norm')(h)
    last = initializers.zeros if self.zero_init else init
    # One column: float32 throughout costs nothing.
    logits = Dense(
      (width, 1), ('embed', None), jnp.dtype('float32'), last, name='output'
    )(h)
    return logits[..., 0]


class SequenceHead(nn.Module):
  """A vector for a whole sequence: dense, activation, LayerNorm (COCO-LM)."""

  config: TransformerConfig

  @nn.compact
  def __call__(self, h: jax.Array) -> jax.Array:
    """[..., embed_dim] to the same shape."""
    config = self.config
    h = Dense(
      (h.shape[-1], h.shape[-1]),
      ('embed', None),
      config.compute_dtype,
      initializers.normal(config.init_stddev),
      name='dense',
    )(h)
    return LayerNorm(config, name='norm')(ACTIVATIONS[config.activation](h))
