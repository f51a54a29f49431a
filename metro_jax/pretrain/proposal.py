# SPDX-License-Identifier: Apache-2.0
"""What an auxiliary model is to the Pretrainer, and what it answers."""

from collections.abc import Collection, Sequence
from typing import NamedTuple, Protocol

import jax
from flax import struct

from metro_jax.modules import Embedder, TokenLogits, TransformerConfig
from metro_jax.pretrain.corruption import MaskedTokens


@struct.dataclass
class Proposal:
  """Distributions over replacements, one per masked position.

  Attributes:
    token_logits: of shape [batch, slots, vocabulary]; the masked language
      model's own, which its loss is computed from. None: no model is behind
      the proposal.
    sampled_from: those to sample from, where they differ; also as an array.
    shallower: those of further heads, which have a loss too, by depth.
    mixture: float32, broadcastable to [batch, slots, heads]: how much of each
      head, deepest last, is in what is sampled from.
    gamma: float32 scalar, where the curriculum is, if there is one.
    head_names: of the heads, for metrics; empty where there is one.
  """

  token_logits: TokenLogits | None = None
  sampled_from: TokenLogits | jax.Array | None = None
  shallower: tuple[TokenLogits, ...] = ()
  mixture: jax.Array | None = None
  gamma: jax.Array | None = None
  head_names: tuple[str, ...] = struct.field(pytree_node=False, default=())

  @property
  def heads(self) -> tuple[TokenLogits, ...]:
    """All that have a loss, shallow to deep."""
    own = () if self.token_logits is None else (self.token_logits,)
    return (*self.shallower, *own)

  @property
  def source(self) -> TokenLogits | jax.Array:
    """What replacements are drawn from."""
    own = self.sampled_from is None
    return self.token_logits if own else self.sampled_from

  def sampling_logits(self) -> jax.Array:
    """float32 [batch, slots, vocabulary] to draw replacements from."""
    source = self.source
    return source.logits() if isinstance(source, TokenLogits) else source


class Work(NamedTuple):
  """What an auxiliary computes for a row, for FLOPs.

  Attributes:
    encoders: of one pass.
    heads: MLM heads of one pass, as the configs that they belong to.
    second_pass: whether what is sampled from comes from a pass of its own.
    mixtures: products with the vocabulary that only sampling needs.
  """

  encoders: Sequence[TransformerConfig] = ()
  heads: Sequence[TransformerConfig] = ()
  second_pass: bool = False
  mixtures: int = 0


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
