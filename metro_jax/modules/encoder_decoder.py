# SPDX-License-Identifier: Apache-2.0
"""A decoder on top of an encoder; both are stacks of the same blocks.

The token table belongs to whoever calls: encoder, decoder and tied heads read
the same one. Positions and embedding norm of the decoder are its own.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct

from metro_jax.errors import UserError
from metro_jax.modules import initializers
from metro_jax.modules.attention import DecodeStep
from metro_jax.modules.config import TransformerConfig
from metro_jax.modules.dense import Dense
from metro_jax.modules.dropout import Dropout
from metro_jax.modules.embeddings import Embedder
from metro_jax.modules.stack import Stack
from metro_jax.modules.transformer import Encoder


def shift_right(
  tokens: jax.Array, segment_ids: jax.Array, start_id: int
) -> jax.Array:
  """What a decoder reads that is to predict `tokens`.

  Args:
    tokens: int32 [batch, length].
    segment_ids: int32 [batch, length]; 0 is padding.
    start_id: what stands before the first token of each segment.

  Returns:
    int32 [batch, length]: each token's predecessor in its segment.
  """

  def before(x: jax.Array) -> jax.Array:
    return jnp.pad(x[:, :-1], ((0, 0), (1, 0)), constant_values=-1)

  first = before(segment_ids) != segment_ids
  return jnp.where(first, start_id, before(tokens)).astype(tokens.dtype)


@struct.dataclass
class MainOutput:
  """What a main model with a decoder returns.

  Attributes:
    encoded: [batch, length, embed_dim] of the encoder.
    decoded: [batch, target length, embed_dim] of the decoder.
  """

  encoded: jax.Array
  decoded: jax.Array

  @property
  def top(self) -> jax.Array:
    """What objectives read unless told otherwise: the last of all stacks."""
    return self.decoded


class Decoder(nn.Module):
  """A causal stack that attends to what an encoder has made of its input."""

  config: TransformerConfig

  @nn.compact
  def __call__(
    self,
    x: jax.Array,
    context: jax.Array,
    segment_ids: jax.Array | None = None,
    positions: jax.Array | None = None,
    context_segment_ids: jax.Array | None = None,
    dropout: Dropout | None = None,
    step: DecodeStep | None = None,
  ) -> jax.Array:
    """Decodes embeddings.

    Args:
      x: [batch, length, width]; projected where width is not embed_dim.
      context: [batch, keys, width], hidden states to attend to.
      segment_ids: int32 [batch, length]; 0 is padding. A token attends to
        itself and those before it in its segment, and to the context of the
        same segment. None: one segment, no padding.
      positions: int32 [batch, length], restarting in each segment; None is
        0, 1, ... in every row.
      context_segment_ids: int32 [batch, keys]; None where segment_ids is.
      dropout: None for a deterministic pass.
      step: x is this one token of a sequence; see `DecodeStep`.

    Returns:
      [batch, length, embed_dim].
    """
    config = self.config
    x = x.astype(config.compute_dtype)
    if x.shape[-1] != config.embed_dim:
      x = Dense(
        (x.shape[-1], config.embed_dim),
        ('embed', None),
        config.compute_dtype,
        initializers.normal(config.init_stddev),
        name='embed_projection',
      )(x)
    if segment_ids is None and context_segment_ids is not None:
      segment_ids = jnp.ones(x.shape[:2], jnp.int32)
    stack = Stack(config, cross_attention=True, causal=True, name='stack')
    return stack(
      x,
      segment_ids,
      positions,
      dropout,
      context=context,
      context_segments=context_segment_ids,
      step=step,
    )[0]


class EncoderDecoder(nn.Module):
  """Encoder and decoder (T5's plan, and METRO-T5's main model).

  Attributes:
    config: of the encoder.
    decoder_config: of the decoder; the encoder's but for the positions, in
      METRO-T5.
  """

  config: TransformerConfig
  decoder_config: TransformerConfig

  def setup(self) -> None:
    """Declares the parts; of its embedder, the decoder uses no token table."""
    ours, theirs = self.config.table_width, self.decoder_config.table_width
    if ours != theirs:
      raise UserError(
        "decoder/TransformerConfig.table_dim: the decoder's token table is"
        f" {theirs} wide and the encoder's {ours}, and they share one; make"
        ' them equal'
      )
    self.encoder = Encoder(self.config)
    self.decoder = Decoder(self.decoder_config)
    self.decoder_embedder = Embedder(self.decoder_config)

  def __call__(
    self,
    x: jax.Array,
    segment_ids: jax.Array | None = None,
    positions: jax.Array | None = None,
    dropout: Dropout | None = None,
    *,
    decoder_x: jax.Array,
    decoder_segment_ids: jax.Array | None = None,
    decoder_positions: jax.Array | None = None,
  ) -> MainOutput:
    """Encodes `x`, then decodes with all of `decoder_x` at hand.

    Args:
      x: [batch, length, width], embeddings with positions and norm.
      segment_ids: int32 [batch, length]; 0 is padding.
      positions: int32 [batch, length], restarting in each segment.
      dropout: None for a deterministic pass.
      decoder_x: [batch, target length, width], rows of the token table.
      decoder_segment_ids: int32 [batch, target length].
      decoder_positions: int32 [batch, target length].

    Returns:
      Hidden states of both.
    """
    encoded = self.encode(x, segment_ids, positions, dropout)
    decoded = self.decode(
      decoder_x,
      encoded,
      decoder_segment_ids,
      decoder_positions,
      segment_ids,
      dropout,
    )
    return MainOutput(encoded, decoded)

  def encode(
    self,
    x: jax.Array,
    segment_ids: jax.Array | None = None,
    positions: jax.Array | None = None,
    dropout: Dropout | None = None,
  ) -> jax.Array:
    """The encoder alone: [batch, length, embed_dim]."""
    return self.encoder(x, segment_ids, positions, dropout).last

  def decode(
    self,
    x: jax.Array,
    encoded: jax.Array,
    segment_ids: jax.Array | None = None,
    positions: jax.Array | None = None,
    encoded_segment_ids: jax.Array | None = None,
    dropout: Dropout | None = None,
    step: DecodeStep | None = None,
  ) -> jax.Array:
    """The decoder alone, positions and embedding norm included.

    Args:
      x: [batch, target length, width], rows of the token table.
      encoded: [batch, length, embed_dim], of `encode`.
      segment_ids: int32 [batch, target length].
      positions: int32 [batch, target length].
      encoded_segment_ids: int32 [batch, length].
      dropout: None for a deterministic pass.
      step: x is this one token of a sequence; see `DecodeStep`.

    Returns:
      [batch, target length, embed_dim].
    """
    if step is not None:
      positions = jnp.broadcast_to(step.index, x.shape[:2])
    x = self.decoder_embedder.add_positions(x, positions)
    valid = None if segment_ids is None else segment_ids > 0
    x = self.decoder_embedder.normalize(x, valid, dropout)
    return self.decoder(
      x,
      encoded,
      segment_ids,
      positions,
      encoded_segment_ids,
      dropout,
      step,
    )
