# SPDX-License-Identifier: Apache-2.0
"""The auxiliary model: a masked language model that proposes replacements."""

from collections.abc import Collection
from typing import Protocol

import jax
from flax import linen as nn
from flax import struct

from metro_jax.modules import (
  Dropout,
  Embedder,
  Encoder,
  LMHead,
  TokenLogits,
  TransformerConfig,
)
from metro_jax.pretrain.corruption import MaskedTokens


@struct.dataclass
class Proposal:
  """Distributions over replacements, one per masked position.

  Attributes:
    token_logits: of shape [batch, slots, vocabulary]; the masked language
      model's own, which its loss is computed from.
    sampled_from: those to sample from, where they differ.
  """

  token_logits: TokenLogits
  sampled_from: TokenLogits | None = None

  def sampling_logits(self) -> jax.Array:
    """float32 [batch, slots, vocabulary] to draw replacements from."""
    return (self.sampled_from or self.token_logits).logits()


class AuxiliaryModel(Protocol):
  """What a `Pretrainer` asks of its auxiliary."""

  def __call__(
    self,
    masked: MaskedTokens,
    embedder: Embedder,
    share: Collection[str],
    progress: jax.Array | float,
    train: bool,
  ) -> Proposal:
    """Proposes replacements.

    Args:
      masked: the masked batch.
      embedder: the main model's.
      share: which steps of `embedder` to use in place of one's own: 'token',
        'position', 'norm'.
      progress: fraction of training that has passed, 0..1.
      train: whether dropout is on.
    """


class Auxiliary(nn.Module):
  """A Transformer with a masked-language-model head.

  Without dropout one pass serves both its own training and the sampling
  (METRO-LM's zero-dropout auxiliary). With dropout, replacements come from a
  second pass, without dropout and without gradient, as in COCO-LM.

  Attributes:
    config: of the Transformer; the main model's but for the depth.
    dropout_rate: on hidden states and attention, 0..1.
  """

  config: TransformerConfig
  dropout_rate: float = 0.0

  def setup(self) -> None:
    """Declares parameters; those shared with the main model never come up."""
    self.embedder = Embedder(self.config)
    self.encoder = Encoder(self.config)
    self.mlm_head = LMHead(self.config)

  def __call__(
    self,
    masked: MaskedTokens,
    embedder: Embedder,
    share: Collection[str] = ('token',),
    progress: jax.Array | float = 1.0,
    train: bool = False,
  ) -> Proposal:
    """See `AuxiliaryModel`."""
    del progress  # The distribution follows training by itself.

    def propose(dropout: Dropout | None) -> TokenLogits:
      owner = {
        step: embedder if step in share else self.embedder
        for step in ('token', 'position', 'norm')
      }
      x = owner['token'].lookup(masked.tokens)
      x = owner['position'].add_positions(x, masked.positions)
      x = owner['norm'].normalize(x, masked.valid, dropout)
      h = self.encoder(x, masked.segment_ids, masked.positions, dropout).last
      return self.mlm_head(masked.gather(h), owner['token'].table())

    dropout = masked.dropout(self.dropout_rate, train)
    if dropout is None:
      return Proposal(propose(None))
    return Proposal(propose(dropout), jax.lax.stop_gradient(propose(None)))
