# SPDX-License-Identifier: Apache-2.0
"""Whole models over a stack of blocks. They take embeddings, not ids."""

from collections.abc import Sequence

import jax
from flax import linen as nn
from flax import struct

from metro_jax.modules import initializers
from metro_jax.modules.config import TransformerConfig
from metro_jax.modules.dense import Dense
from metro_jax.modules.dropout import Dropout
from metro_jax.modules.stack import Stack


@struct.dataclass
class EncoderOutput:
  """What a main model returns.

  Attributes:
    last: [batch, length, embed_dim], the encoder's output.
    taps: outputs of the depths asked for.
  """

  last: jax.Array
  taps: tuple[jax.Array, ...] = ()

  @property
  def encoded(self) -> jax.Array:
    """Output of the encoder."""
    return self.last

  @property
  def decoded(self) -> None:
    """Output of the decoder: an encoder has none."""
    return None

  @property
  def top(self) -> jax.Array:
    """What objectives read unless told otherwise: the last of all stacks."""
    return self.last


class Encoder(nn.Module):
  """A bidirectional stack."""

  config: TransformerConfig

  @nn.compact
  def __call__(
    self,
    x: jax.Array,
    segment_ids: jax.Array | None = None,
    positions: jax.Array | None = None,
    dropout: Dropout | None = None,
    *,
    taps: Sequence[int] = (),
    stop_gradient_at: Sequence[int] = (),
  ) -> EncoderOutput:
    """Encodes embeddings.

    Args:
      x: [batch, length, width]; projected where width is not embed_dim.
      segment_ids: int32 [batch, length]; 0 is padding, tokens attend within
        their segment. None: one segment, no padding.
      positions: int32 [batch, length], restarting in each segment; None is
        0, 1, ... in every row.
      dropout: None for a deterministic pass.
      taps: depths whose output to return, 1 after the first block.
      stop_gradient_at: depths after which later blocks send no gradient back.

    Returns:
      The last and the tapped hidden states.
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
    last, tapped = Stack(config, name='stack')(
      x,
      segment_ids,
      positions,
      dropout,
      taps=taps,
      stop_gradient_at=stop_gradient_at,
    )
    return EncoderOutput(last, tapped)
