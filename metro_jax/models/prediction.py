# SPDX-License-Identifier: Apache-2.0
"""What a pretrained Pretrainer can be asked, without training it further."""

import jax
import jax.numpy as jnp
from flax import struct

from metro_jax import losses
from metro_jax.errors import UserError
from metro_jax.pretrain import (
  MLM,
  RTD,
  CorrectiveLM,
  Corrupted,
  MaskedTokens,
  Pretrainer,
)
from metro_jax.pretrain.corruption import Batch
from metro_jax.pretrain.objectives import hidden_states

_MASK = 4


@struct.dataclass
class Fill:
  """The most likely tokens at the masked positions.

  Attributes:
    positions: int32 [batch, slots], ascending, where in the row.
    weights: float32 [batch, slots]; 0 where a slot is not in use.
    ids: int32 [batch, slots, top_k], most likely first.
    probabilities: float32 [batch, slots, top_k].
  """

  positions: jax.Array
  weights: jax.Array
  ids: jax.Array
  probabilities: jax.Array


def detect(pretrainer: Pretrainer, batch: Batch) -> jax.Array:
  """p(replaced) of every token, float32 [batch, length]; 0 at padding."""
  masked = _as_it_is(batch)
  outputs = pretrainer.encode(masked.tokens, masked, train=False)
  sources = [o.source for o in pretrainer.objectives if isinstance(o, RTD)]
  if not sources:
    raise UserError(
      "mode 'detect' needs a model trained with the RTD objective; this one"
      f' has {[o.name for o in pretrainer.objectives]}'
    )
  h = hidden_states(outputs, sources[0], 'RTD.source')
  p_replaced = jax.nn.sigmoid(-pretrainer.rtd_logits(h))
  return jnp.where(masked.valid, p_replaced, 0.0)


def encode(pretrainer: Pretrainer, batch: Batch) -> jax.Array:
  """Hidden states of the main model [batch, length, embed_dim]."""
  masked = _as_it_is(batch)
  return pretrainer.encode(masked.tokens, masked, train=False).encoded


def fill(
  pretrainer: Pretrainer,
  batch: Batch,
  head: str = 'auxiliary',
  top_k: int = 5,
  max_fills: int | None = None,
) -> Fill:
  """Fills in the masked positions.

  Args:
    pretrainer: bound to parameters.
    batch: `encoder_loss_weights` says which positions; without it, those that
      hold [MASK].
    head: 'auxiliary' for the auxiliary's own prediction. 'lm' for the
      corrective language model of the main model, which was never shown
      [MASK]: it reads the auxiliary's best guesses and corrects them.
    top_k: how many tokens per position.
    max_fills: slots per row; None for the length. Later masks are left out.

  Returns:
    Tokens and probabilities.
  """
  if 'encoder_loss_weights' not in batch:
    is_mask = batch['encoder_input_tokens'] == _MASK
    batch = {**batch, 'encoder_loss_weights': is_mask.astype(jnp.float32)}
  _check_head(pretrainer, head)
  masked = MaskedTokens.from_batch(batch, max_fills)
  logits = _HEADS[head](pretrainer, masked).logits()
  values, ids = jax.lax.top_k(logits, top_k)
  normalizer = jax.nn.logsumexp(logits, axis=-1, keepdims=True)
  return Fill(
    masked.masked_positions,
    masked.weights,
    ids.astype(jnp.int32),
    jnp.exp(values - normalizer),
  )


def score(
  pretrainer: Pretrainer, batch: Batch, head: str = 'auxiliary'
) -> jax.Array:
  """Log-probability of what stands at masked positions.

  Args:
    pretrainer: bound to parameters.
    batch: with encoder_target_tokens, the original, and encoder_loss_weights.
    head: as in `fill`.

  Returns:
    float32 [batch], summed over the masked positions of a row.
  """
  _check_head(pretrainer, head)
  masked = MaskedTokens.from_batch(batch, pretrainer.max_predictions)
  token_logits = _HEADS[head](pretrainer, masked)
  loss = losses.token_cross_entropy(token_logits, masked.targets).loss
  return -jnp.sum(loss * masked.weights, axis=1)


def _auxiliary(pretrainer, masked):
  return pretrainer.propose(masked).token_logits


def _corrective(pretrainer, masked):
  corrupted = Corrupted(masked.tokens, masked)
  if pretrainer.auxiliary is not None:
    proposal = pretrainer.propose(masked)
    guess = jnp.argmax(proposal.sampling_logits(), axis=-1)
    corrupted = Corrupted(masked.fill(guess), masked, proposal)
  # A decoder that is to read the original reads the same guesses.
  guessed = masked.replace(original=corrupted.tokens)
  outputs = pretrainer.encode(corrupted.tokens, guessed, train=False)
  return pretrainer.lm_logits(masked.gather(outputs.top), corrupted)


_HEADS = {'auxiliary': _auxiliary, 'lm': _corrective}


def _check_head(pretrainer: Pretrainer, head: str) -> None:
  trained_by = {'auxiliary': MLM.name, 'lm': CorrectiveLM.name}
  if head not in trained_by:
    raise UserError(f'head: {head!r} is not one of {tuple(trained_by)}')
  names = [objective.name for objective in pretrainer.objectives]
  if trained_by[head] not in names:
    raise UserError(
      f"mode 'fill' with head {head!r} needs a model trained with the"
      f' objective {trained_by[head]!r}; this one has {names}'
    )


def _as_it_is(batch: Batch) -> MaskedTokens:
  """The input tokens with nothing masked, whatever else the batch says."""
  unread = ('encoder_target_tokens', 'encoder_loss_weights')
  return MaskedTokens.from_batch(
    {name: x for name, x in batch.items() if name not in unread}
  )
