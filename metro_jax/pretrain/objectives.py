# SPDX-License-Identifier: Apache-2.0
"""What the models are trained for. Objectives own no parameters.

An objective's loss is a total over a count. The count depends on the batch
alone, so it is known before any forward pass: microbatches divide by the
count of the whole batch and add up to its loss exactly.
"""

import dataclasses
from typing import TYPE_CHECKING, ClassVar, Protocol

import jax
import jax.numpy as jnp
from flax import struct

from metro_jax import losses, metrics
from metro_jax.errors import UserError
from metro_jax.modules import EncoderOutput, MainOutput
from metro_jax.pretrain.corruption import Corrupted, MaskedTokens

if TYPE_CHECKING:
  from metro_jax.pretrain.pretrainer import Pretrainer


Outputs = EncoderOutput | MainOutput  # Of a main model.


@struct.dataclass
class LossTerm:
  """One objective's contribution.

  Attributes:
    total: float32 scalar, the sum over counted positions.
    metrics: by name.
  """

  total: jax.Array
  metrics: dict[str, metrics.Mean | metrics.BinaryHistogram]


class Objective(Protocol):
  """One term of the loss: weight * total / count.

  Attributes:
    name: of the term in normalizers and metrics.
    weight: its factor in the loss.
  """

  name: ClassVar[str]
  weight: float

  def count(self, masked: MaskedTokens) -> jax.Array:
    """float32 scalar: how many positions `total` sums over."""

  def head_calls(self, length: int, slots: int) -> dict[str, int]:
    """How often a row calls each head, for FLOPs.

    Heads are 'mlm', 'lm', 'rtd', 'choice' (a logit of one token) and
    'sequence'; 'main' is a further pass of the main model.
    """

  def __call__(
    self, pretrainer: 'Pretrainer', outputs: Outputs, corrupted: Corrupted
  ) -> LossTerm:
    """Computes the term.

    Args:
      pretrainer: for its heads.
      outputs: of the main model.
      corrupted: what it read, and what that was made from.
    """


_SOURCES = {'encoder': 'encoded', 'decoder': 'decoded', 'top': 'top'}


def hidden_states(outputs: Outputs, source: str, parameter: str) -> jax.Array:
  """Which hidden states [batch, length, embed_dim] an objective reads.

  Args:
    outputs: of the main model.
    source: 'encoder', 'decoder', or 'top' for the last there is.
    parameter: gin parameter to name when it is wrong.
  """
  h = getattr(outputs, _SOURCES[source]) if source in _SOURCES else None
  if h is None:
    raise UserError(
      f"{parameter}: this main model has no {source!r}; choose 'top', or"
      ' another main model'
    )
  return h


def _with_z_loss(one: losses.TokenLoss, weight: float) -> jax.Array:
  """A loss that also keeps the softmax's normalizer near 1.

  Plus weight * log(normalizer)^2, which stops logits from drifting (PaLM,
  Chowdhery et al. 2022, section 5: 1e-4). The normalizer is at hand: this costs
  nothing.
  """
  return one.loss + weight * one.log_normalizer**2 if weight else one.loss


@dataclasses.dataclass(frozen=True)
class MLM:
  """Masked language modelling of the auxiliary: METRO-LM equation 4.

  The losses of several heads add up (AMOS equation 2).

  Attributes:
    weight: factor in the loss.
    z_loss: see `_with_z_loss`.
  """

  name: ClassVar[str] = 'mlm'
  weight: float = 1.0
  z_loss: float = 0.0

  def count(self, masked: MaskedTokens) -> jax.Array:
    """Masked positions."""
    return jnp.sum(masked.weights)

  def head_calls(self, length: int, slots: int) -> dict[str, int]:
    """See `Objective`."""
    del length
    return {'mlm': slots}

  def __call__(
    self, pretrainer: 'Pretrainer', outputs: Outputs, corrupted: Corrupted
  ) -> LossTerm:
    """See `Objective`."""
    del pretrainer, outputs
    masked, proposal = corrupted.masked, corrupted.proposal
    targets, weights = masked.targets, masked.weights
    known, source = corrupted.sampling_loss, proposal.source
    heads = [
      known
      if known is not None and x is source
      else losses.token_cross_entropy(x, targets)
      for x in proposal.heads
    ]
    deepest = heads[-1]
    drawn = masked.gather(corrupted.tokens)
    if source is proposal.token_logits:
      known = deepest
    if known is not None:
      surprise = known.log_normalizer - losses.logit_of(source, drawn)
    else:
      surprise = losses.surprise(proposal.sampling_logits(), drawn)
    mean = metrics.Mean.of
    by_head = {
      f'mlm_loss/{name}': mean(head.loss, weights)
      for name, head in zip(proposal.head_names, heads, strict=False)
    }
    return LossTerm(
      sum(jnp.sum(_with_z_loss(x, self.z_loss) * weights) for x in heads),
      {
        'auxiliary_accuracy': mean(deepest.predicted == targets, weights),
        # E[-log p(sample)] is the entropy, without a sum over the vocabulary.
        'auxiliary_entropy': mean(surprise, weights),
        **by_head,
      },
    )


@dataclasses.dataclass(frozen=True)
class RTD:
  """Replaced token detection at every token: METRO-LM equation 6.

  The positive class is "original", as in COCO-LM, AMOS and METRO-LM.

  Attributes:
    weight: lambda of equation 7.
    source: hidden states to read, 'encoder', 'decoder' or 'top'.
  """

  name: ClassVar[str] = 'rtd'
  weight: float = 50.0
  source: str = 'top'

  def count(self, masked: MaskedTokens) -> jax.Array:
    """Tokens that are not padding."""
    return jnp.sum(masked.valid, dtype=jnp.float32)

  def head_calls(self, length: int, slots: int) -> dict[str, int]:
    """See `Objective`."""
    del slots
    return {'rtd': length}

  def __call__(
    self, pretrainer: 'Pretrainer', outputs: Outputs, corrupted: Corrupted
  ) -> LossTerm:
    """See `Objective`."""
    h = hidden_states(outputs, self.source, 'RTD.source')
    logits = pretrainer.rtd_logits(h)
    replaced, valid = corrupted.replaced, corrupted.masked.valid
    loss = losses.binary_cross_entropy(logits, positive=~replaced)
    found = logits < 0
    mean = metrics.Mean.of
    return LossTerm(
      jnp.sum(loss, where=valid),
      {
        'rtd_accuracy': mean(found == replaced, valid),
        'rtd_auc': metrics.BinaryHistogram.of(logits, ~replaced, valid),
        'rtd_precision': mean(replaced, found & valid),
        # Figure 3 of METRO-LM: replaced tokens that were detected.
        'replace_accuracy': mean(found, replaced & valid),
      },
    )


@dataclasses.dataclass(frozen=True)
class CorrectiveLM:
  """The main model predicts the original tokens: METRO-LM equation 8.

  As it stands this is METRO-LM's simplified corrective language modelling.
  COCO-LM's has positions='all' and copy=True.

  Attributes:
    weight: factor in the loss.
    positions: where, 'masked' or 'all' (which multiplies out the vocabulary
      at every token).
    copy: each position counts by p(replaced) of the RTD head, as a constant:
      what COCO-LM's code has for its paper's copy mechanism, and what the
      released base configurations of METRO-T5 call a weighted LM loss. The
      head reads where RTD trains it to.
    source: hidden states to read, 'encoder', 'decoder' or 'top'.
    z_loss: see `_with_z_loss`.
  """

  name: ClassVar[str] = 'clm'
  weight: float = 1.0
  positions: str = 'masked'
  copy: bool = False
  source: str = 'top'
  z_loss: float = 0.0

  def __post_init__(self):
    if self.positions not in ('masked', 'all'):
      raise UserError(
        f'CorrectiveLM.positions: {self.positions!r} is neither'
        " 'masked' nor 'all'"
      )

  def count(self, masked: MaskedTokens) -> jax.Array:
    """Masked positions, or all tokens that are not padding."""
    return jnp.sum(self._weights(masked), dtype=jnp.float32)

  def head_calls(self, length: int, slots: int) -> dict[str, int]:
    """See `Objective`."""
    calls = slots if self.positions == 'masked' else length
    return {'lm': calls, 'rtd': calls} if self.copy else {'lm': calls}

  def __call__(
    self, pretrainer: 'Pretrainer', outputs: Outputs, corrupted: Corrupted
  ) -> LossTerm:
    """See `Objective`."""
    masked = corrupted.masked
    h = hidden_states(outputs, self.source, 'CorrectiveLM.source')
    targets, weights = masked.original, self._weights(masked)
    detector = self._detector_states(pretrainer, outputs) if self.copy else h
    if self.positions == 'masked':
      h, detector = masked.gather(h), masked.gather(detector)
      targets = masked.targets
    one = losses.token_cross_entropy(
      pretrainer.lm_logits(h, corrupted), targets
    )
    loss = _with_z_loss(one, self.z_loss)
    if self.copy:
      p_replaced = jax.nn.sigmoid(-pretrainer.rtd_logits(detector))
      loss = loss * jax.lax.stop_gradient(p_replaced)
    return LossTerm(
      jnp.sum(loss * weights),
      {'clm_accuracy': metrics.Mean.of(one.predicted == targets, weights)},
    )

  def _detector_states(
    self, pretrainer: 'Pretrainer', outputs: Outputs
  ) -> jax.Array:
    sources = [o.source for o in pretrainer.objectives if isinstance(o, RTD)]
    source = sources[0] if sources else self.source
    return hidden_states(outputs, source, 'RTD.source')

  def _weights(self, masked: MaskedTokens) -> jax.Array:
    return masked.weights if self.positions == 'masked' else masked.valid
