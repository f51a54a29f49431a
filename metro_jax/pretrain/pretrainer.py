# SPDX-License-Identifier: Apache-2.0
"""METRO's equation (3), as a module.

    X_orig --auxiliary--> X_noise --main--> H --objectives--> losses

A method of the family is a choice of auxiliary, sampler, main model and
objectives. The Pretrainer joins them: it owns what they share, which is the
embedder and the heads.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn

from metro_jax import losses
from metro_jax.errors import UserError
from metro_jax.metrics import BinaryHistogram, Mean
from metro_jax.modules import (
  Embedder,
  EncoderDecoder,
  EncoderOutput,
  LMHead,
  MainOutput,
  RTDHead,
  SequenceHead,
  TokenLogits,
  TransformerConfig,
  shift_right,
)
from metro_jax.pretrain import checks
from metro_jax.pretrain.corruption import Batch, Corrupted, MaskedTokens
from metro_jax.pretrain.objectives import MLM, RTD, CorrectiveLM, Objective
from metro_jax.pretrain.proposal import Proposal
from metro_jax.pretrain.sampling import (
  Categorical,
  Sample,
  Sampler,
  straight_through,
)

Metrics = dict[str, Mean | BinaryHistogram]


class Pretrainer(nn.Module):
  """The recipe of a pretraining run.

  Attributes:
    config: of the embedder and the heads; the main model's.
    main: takes embeddings, returns hidden states (`modules.Encoder`). The
      decoder of a `modules.EncoderDecoder` reads the original, one token late
      (METRO-T5).
    auxiliary: proposes replacements (`AuxiliaryModel`). None: batches come
      corrupted, or masked for a main model that is to fill them in itself.
    sampler: draws replacements from the proposal.
    objectives: terms of the loss.
    share: what the auxiliary has in common with the main model, of 'token',
      'position', 'norm' and 'lm_bias': all four is ELECTRA, ('token',) is
      METRO-LM's constrained sharing.
    dropout_rate: of the main model, on hidden states and attention, 0..1.
    max_predictions: masked positions per row that are computed; None for the
      sequence length. See `MaskedTokens.from_batch` for rows with more.
    rtd_head: None is a single linear layer.
    lm_head: of the main model; None is the tied table and a bias.
    decoder_start_id: what a decoder reads before the first token; METRO-T5
      starts with its mask token.
  """

  config: TransformerConfig
  main: nn.Module
  auxiliary: nn.Module | None = None
  sampler: Sampler = Categorical()
  objectives: Sequence[Objective] = (MLM(), RTD(), CorrectiveLM())
  share: Sequence[str] = ('token',)
  dropout_rate: float = 0.1
  max_predictions: int | None = None
  rtd_head: RTDHead | None = None
  lm_head: LMHead | None = None
  decoder_start_id: int = 4

  def __post_init__(self) -> None:
    """Fills in heads; they have parameters once they are called."""
    if self.rtd_head is None:
      self.rtd_head = RTDHead(self.config, parent=None)
    if self.lm_head is None:
      self.lm_head = LMHead(self.config, projection=False, parent=None)
    super().__post_init__()

  def setup(self) -> None:
    """Declares what is shared."""
    checks.check(self)
    self.embedder = Embedder(self.config)
    self.sequence_head = SequenceHead(self.config)

  def __call__(
    self,
    batch: Batch,
    progress: jax.Array | float = 1.0,
    train: bool = False,
    normalizers: Mapping[str, jax.Array] | None = None,
  ) -> tuple[jax.Array, Metrics]:
    """The loss of a batch.

    Args:
      batch: see `MaskedTokens.from_batch`.
      progress: fraction of training that has passed, 0..1.
      train: whether dropout is on.
      normalizers: what to divide each objective's total by, by name; None for
        `counts` of this batch. A microbatch is given those of its whole batch.

    Returns:
      The loss, float32 scalar, and metrics.
    """
    masked = MaskedTokens.from_batch(batch, self.max_predictions)
    corrupted = self.corrupt(masked, progress, train)
    outputs = self.encode(corrupted.tokens, masked, train, corrupted.relaxed)
    return self.loss(outputs, corrupted, normalizers)

  def corrupt(
    self, masked: MaskedTokens, progress: jax.Array | float, train: bool
  ) -> Corrupted:
    """X_orig --auxiliary--> X_noise (equation 5)."""
    if self.auxiliary is None:
      return Corrupted(masked.tokens, masked, train=train)
    proposal = self.propose(masked, progress, train)
    sample = self.draw(proposal, masked)
    return Corrupted(
      masked.fill(sample.ids),
      masked,
      proposal,
      sample.relaxed,
      sample.loss,
      train,
    )

  def draw(self, proposal: Proposal, masked: MaskedTokens) -> Sample:
    """Replacements from a proposal; new ones at every call."""
    seed, rows, source = self.seed(), masked.row_ids, proposal.source
    if self.sampler.rides_along and isinstance(source, TokenLogits):
      loss, ids = losses.sampled_cross_entropy(
        source, masked.targets, seed, rows
      )
      return Sample(ids, loss=loss)
    return self.sampler(proposal.sampling_logits(), seed, rows)

  def seed(self) -> jax.Array:
    """A new uint32 for a draw, the same in all microbatches of a step."""
    return jax.random.bits(self.make_rng('sample'), (), jnp.uint32)

  def propose(
    self,
    masked: MaskedTokens,
    progress: jax.Array | float = 1.0,
    train: bool = False,
  ) -> Proposal:
    """The auxiliary's distributions over what stands at masked positions."""
    return self.auxiliary(masked, self.embedder, self.share, progress, train)

  def encode(
    self,
    tokens: jax.Array,
    masked: MaskedTokens,
    train: bool,
    relaxed: jax.Array | None = None,
  ) -> EncoderOutput | MainOutput:
    """X_noise --main--> H, for tokens that lie where those of `masked` do.

    Args:
      tokens: int32 [batch, length].
      masked: where they lie.
      train: whether dropout is on.
      relaxed: see `Corrupted`.

    Returns:
      What the main model returns.
    """
    dropout = masked.dropout(self.dropout_rate, train)
    x = self.embedder.lookup(tokens)
    if relaxed is not None:
      behind = straight_through(relaxed, self.embedder.table())
      x = x + masked.spread(behind.astype(x.dtype))
    x = self.embedder.add_positions(x, masked.positions)
    x = self.embedder.normalize(x, masked.valid, dropout)
    decoder = {}
    if isinstance(self.main, EncoderDecoder):
      reads = shift_right(
        masked.original, masked.segment_ids, self.decoder_start_id
      )
      decoder = {
        'decoder_x': self.embedder.lookup(reads),
        'decoder_segment_ids': masked.segment_ids,
        'decoder_positions': masked.positions,
      }
    return self.main(
      x, masked.segment_ids, masked.positions, dropout, **decoder
    )

  def loss(
    self,
    outputs: EncoderOutput | MainOutput,
    corrupted: Corrupted,
    normalizers: Mapping[str, jax.Array] | None = None,
  ) -> tuple[jax.Array, Metrics]:
    """H --objectives--> losses, and their sum (equations 7 and 9)."""
    counts = self.counts(corrupted.masked)
    divisors = {
      name: jnp.maximum(count, 1.0)
      for name, count in (normalizers or counts).items()
    }
    loss, metrics = jnp.zeros((), jnp.float32), self._corruption(corrupted)
    for objective in self.objectives:
      name, term = objective.name, objective(self, outputs, corrupted)
      loss += objective.weight * term.total / divisors[name]
      metrics |= term.metrics
      metrics[f'loss/{name}'] = Mean(term.total, counts[name])
    # The parts of a batch add up to its loss; batches weigh by their size.
    size = self.objectives[0].name
    metrics['loss'] = Mean(loss * divisors[size], counts[size])
    return loss, jax.lax.stop_gradient(metrics)

  def counts(self, masked: MaskedTokens) -> dict[str, jax.Array]:
    """Each objective's count, by name."""
    return {o.name: o.count(masked) for o in self.objectives}

  def rtd_logits(self, h: jax.Array) -> jax.Array:
    """Logit of "this token is the original", [...] of h [..., embed_dim]."""
    return self.rtd_head(h)

  def sequence_features(self, h: jax.Array) -> jax.Array:
    """What contrastive learning compares, of h [..., embed_dim]."""
    return self.sequence_head(h)

  def lm_logits(self, h: jax.Array, corrupted: Corrupted) -> TokenLogits:
    """The main model's token predictions for h [..., embed_dim]."""
    table = self.embedder.table()
    theirs = corrupted.proposal and corrupted.proposal.token_logits
    if theirs is None or 'lm_bias' not in self.share:
      return self.lm_head(h, table)
    if h.shape[-1] != table.shape[-1]:
      raise UserError(
        "Pretrainer.share: 'lm_bias' cannot be shared where table_dim"
        f' {table.shape[-1]} is not embed_dim {h.shape[-1]}; leave it out'
      )
    # The bias is all that this head would have of its own.
    return dataclasses.replace(theirs, features=h, table=table)

  def _corruption(self, corrupted: Corrupted) -> Metrics:
    """How much was replaced (METRO-LM Figure 3: of all tokens)."""
    masked = corrupted.masked
    masks = jnp.sum(masked.weights) + masked.dropped
    metrics = {
      'replace_rate': Mean.of(corrupted.replaced, masked.valid),
      'dropped_masks': Mean(masked.dropped, masks),
    }
    proposal, shape = corrupted.proposal, masked.weights.shape
    if proposal is None:
      return metrics
    if proposal.gamma is not None:
      gamma = jnp.broadcast_to(proposal.gamma, shape)
      metrics['curriculum/gamma'] = Mean.of(gamma, masked.weights)
    if proposal.mixture is not None:
      names = proposal.head_names or ('layer',)
      weights = jnp.broadcast_to(proposal.mixture, (*shape, len(names)))
      for head, name in enumerate(names):
        mean = Mean.of(weights[..., head], masked.weights)
        metrics[f'mixture/{name}'] = mean
    return metrics
