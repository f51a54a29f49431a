# SPDX-License-Identifier: Apache-2.0
"""Text in, text out: an encoder-decoder and its embedder, as a module.

The parameters have the names that a Pretrainer gives them, so that METRO-T5's
checkpoints load.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn

from metro_jax.errors import UserError
from metro_jax.models.base import Batch
from metro_jax.modules import (
  DecodeStep,
  Dropout,
  Embedder,
  EncoderDecoder,
  LMHead,
  TokenLogits,
  TransformerConfig,
  shift_right,
)


class TextToText(nn.Module):
  """Embedder, encoder-decoder and tied head.

  Attributes:
    config: of the embedder and the head; the encoder's.
    main: encoder and decoder.
    lm_head: None is the tied table alone, without a bias.
    dropout_rate: on hidden states and attention, 0..1.
    start_id: what the decoder reads before the first token.
  """

  config: TransformerConfig
  main: EncoderDecoder
  lm_head: LMHead | None = None
  dropout_rate: float = 0.1
  start_id: int = 4

  def __post_init__(self) -> None:
    """Fills in the head, and checks."""
    if not isinstance(self.main, EncoderDecoder):
      raise UserError(
        'TextToText.main: writing text needs a decoder, and'
        f' {type(self.main).__name__} has none; take an encoder-decoder recipe'
      )
    if not 0 <= self.dropout_rate < 1:
      raise UserError(
        f'TextToText.dropout_rate: {self.dropout_rate} is not in [0, 1)'
      )
    if self.lm_head is None:
      self.lm_head = LMHead(
        self.config, projection=False, use_bias=False, parent=None
      )
    super().__post_init__()

  def setup(self) -> None:
    """Declares the embedder."""
    self.embedder = Embedder(self.config)

  def __call__(self, batch: Batch, train: bool = False) -> TokenLogits:
    """Predictions of all target tokens, each from those before it.

    Args:
      batch: see `TextToTextModel`.
      train: whether dropout is on.

    Returns:
      Logits of shape [batch, target length, vocabulary].
    """
    dropout = self._dropout(batch, train)
    encoded, segments = self.encode(batch, dropout)
    targets = batch['decoder_target_tokens']
    target_segments = segments_of(batch, 'decoder', targets)
    reads = batch.get('decoder_input_tokens')
    if reads is None:
      reads = shift_right(targets, target_segments, self.start_id)
    h = self.main.decode(
      self.embedder.lookup(reads),
      encoded,
      target_segments,
      batch.get('decoder_positions'),
      segments,
      dropout,
    )
    return self.lm_head(h, self.embedder.table())

  def encode(
    self, batch: Batch, dropout: Dropout | None = None
  ) -> tuple[jax.Array, jax.Array]:
    """Hidden states [batch, length, embed_dim] and segment ids of the input."""
    tokens = batch['encoder_input_tokens']
    segments = segments_of(batch, 'encoder', tokens)
    places = batch.get('encoder_positions')
    x = self.embedder(tokens, places, segments > 0, dropout)
    return self.main.encode(x, segments, places, dropout), segments

  def step(
    self,
    tokens: jax.Array,
    encoded: jax.Array,
    segments: jax.Array,
    step: DecodeStep,
  ) -> jax.Array:
    """Logits float32 [rows, vocabulary] after one token per row [rows]."""
    h = self.main.decode(
      self.embedder.lookup(tokens[:, None]),
      encoded,
      encoded_segment_ids=segments,
      step=step,
    )
    return self.lm_head(h, self.embedder.table()).logits()[:, 0]

  def _dropout(self, batch: Batch, train: bool) -> Dropout | None:
    rate = self.dropout_rate
    if not train or rate == 0:
      return None
    return Dropout(hidden=rate, attention=rate, rows=batch.get('row_ids'))


def segments_of(batch: Batch, stream: str, tokens: jax.Array) -> jax.Array:
  """Given, or 1 where the token is not [PAD]."""
  given = batch.get(f'{stream}_segment_ids')
  return (tokens != 0).astype(jnp.int32) if given is None else given
