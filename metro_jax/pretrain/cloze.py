# SPDX-License-Identifier: Apache-2.0
"""One-choice cloze: pick the original out of a few tokens (MC-BERT)."""

import dataclasses
from typing import TYPE_CHECKING, ClassVar

import jax
import jax.numpy as jnp

from metro_jax import losses, metrics
from metro_jax.errors import UserError
from metro_jax.modules import EncoderOutput
from metro_jax.pretrain.corruption import Corrupted, MaskedTokens
from metro_jax.pretrain.objectives import LossTerm, hidden_states

if TYPE_CHECKING:
  from metro_jax.pretrain.pretrainer import Pretrainer


@dataclasses.dataclass(frozen=True)
class OneChoiceCloze:
  """The main model picks the original among tokens that were drawn.

  METRO-LM's Table 2 says "from three randomly generated tokens". Here the
  original competes with `choices` draws from the auxiliary, the token that
  stands in its place among them; a draw that is the original is no rival.
  The logit of a token is that of the LM head, for these tokens alone: the
  vocabulary is not multiplied out.

  Attributes:
    weight: factor in the loss.
    choices: rivals that are drawn.
    source: hidden states to read, 'encoder', 'decoder' or 'top'.
  """

  name: ClassVar[str] = 'cloze'
  weight: float = 1.0
  choices: int = 3
  source: str = 'top'

  def __post_init__(self):
    if self.choices < 1:
      raise UserError(
        f'OneChoiceCloze.choices: {self.choices} must be at least 1'
      )

  def count(self, masked: MaskedTokens) -> jax.Array:
    """Masked positions."""
    return jnp.sum(masked.weights)

  def head_calls(self, length: int, slots: int) -> dict[str, int]:
    """See `Objective`."""
    del length
    return {'choice': slots * (self.choices + 1)}

  def __call__(
    self, pretrainer: 'Pretrainer', outputs: EncoderOutput, corrupted: Corrupted
  ) -> LossTerm:
    """See `Objective`."""
    masked, proposal = corrupted.masked, corrupted.proposal
    if proposal is None:
      raise UserError(
        'OneChoiceCloze draws its choices from an auxiliary, and there is'
        ' none; set Pretrainer.auxiliary'
      )
    h = masked.gather(
      hidden_states(outputs, self.source, 'OneChoiceCloze.source')
    )
    original = masked.targets
    drawn = [
      pretrainer.draw(proposal, masked).ids for _ in range(self.choices - 1)
    ]
    rivals = jnp.stack([masked.gather(corrupted.tokens), *drawn], axis=-1)
    predictions = pretrainer.lm_logits(h, corrupted)
    own = losses.logit_of(predictions, original)
    others = jnp.stack(
      [
        losses.logit_of(predictions, rivals[..., i])
        for i in range(self.choices)
      ],
      axis=-1,
    )
    others = jnp.where(rivals == original[..., None], -jnp.inf, others)
    among = jnp.concatenate([own[..., None], others], axis=-1)
    loss = jax.nn.logsumexp(among, axis=-1) - own
    found = own >= jnp.max(others, axis=-1)
    return LossTerm(
      jnp.sum(loss * masked.weights),
      {'cloze_accuracy': metrics.Mean.of(found, masked.weights)},
    )
