# SPDX-License-Identifier: Apache-2.0
"""The auxiliary model: a masked language model that proposes replacements."""

import dataclasses
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from metro_jax.errors import UserError
from metro_jax.modules import (
  Dropout,
  Embedder,
  Encoder,
  LMHead,
  TokenLogits,
  TransformerConfig,
)
from metro_jax.pretrain.corruption import MaskedTokens
from metro_jax.pretrain.curriculum import Augmentation
from metro_jax.pretrain.mixtures import mix
from metro_jax.pretrain.proposal import Proposal, Work


class Heads(NamedTuple):
  """What a pass of an auxiliary gives at the masked positions, by depth.

  Attributes:
    hidden: per head [batch, slots, embed_dim], under its projection.
    logits: per head.
  """

  hidden: tuple[jax.Array, ...]
  logits: tuple[TokenLogits, ...]


class Auxiliary(nn.Module):
  """A Transformer with a masked-language-model head at one or more depths.

  Without dropout one pass serves both its own training and the sampling
  (METRO-LM's zero-dropout auxiliary). With dropout, replacements come from a
  second pass, without dropout and without gradient, as in COCO-LM.

  With several depths (AMOS) one head serves all of them, and each trains the
  layers above the depth before it.

  Attributes:
    config: of the Transformer; the main model's but for the depth.
    dropout_rate: on hidden states and attention, 0..1.
    second_pass: whether to sample from a pass without dropout where there is
      dropout; False samples from the pass with it, as ELECTRA does.
    mlm_layers: depths that have a head, ascending, the last of them the
      config's; None for that one alone.
    mixture: what share each depth has in the proposal, see `Mixture`; None:
      the deepest proposes alone.
    stop_gradient: whether the layers above a head leave those below it alone.
    augmentation: what makes the proposal easier than the model, see
      `Augmentation` (Fast-ELECTRA). The loss of the model, if it has one, does
      not see it.
  """

  config: TransformerConfig
  dropout_rate: float = 0.0
  second_pass: bool = True
  mlm_layers: Sequence[int] | None = None
  mixture: Any = None
  stop_gradient: bool = True
  augmentation: Augmentation | None = None

  def setup(self) -> None:
    """Declares parameters; those shared with the main model never come up."""
    self._check()
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
    dropout = masked.dropout(self.dropout_rate, train)
    heads = source = self.predict(masked, embedder, share, dropout)
    augmentation, gamma = self.augmentation, None
    if augmentation is not None:
      gamma = augmentation.schedule(progress)
    if augmentation is not None and augmentation.changes_pass:
      seed = _seed(self)
      read = masked.replace(tokens=augmentation.tokens(masked, gamma, seed))
      # Without random numbers (prediction) nothing is dropped.
      drop = self.has_rng('dropout') and augmentation.dropout(masked, gamma)
      source = self.predict(read, embedder, share, drop or None)
      source = jax.lax.stop_gradient(source)
    elif dropout is not None and self.second_pass:
      source = self.predict(masked, embedder, share, None)
      source = jax.lax.stop_gradient(source)
    names = tuple(f'layer_{depth}' for depth in self.depths)
    proposal = propose(self, heads, source, progress, names, one_head=True)
    if augmentation is None:
      return proposal
    logits = augmentation.logits(proposal.sampling_logits(), gamma)
    return proposal.replace(sampled_from=logits, gamma=gamma)

  def predict(
    self,
    masked: MaskedTokens,
    embedder: Embedder,
    share: Collection[str],
    dropout: Dropout | None,
  ) -> Heads:
    """One pass; see `AuxiliaryModel` for the arguments."""
    owner = {
      step: embedder if step in share else self.embedder
      for step in ('token', 'position', 'norm')
    }
    x = owner['token'].lookup(masked.tokens)
    x = owner['position'].add_positions(x, masked.positions)
    x = owner['norm'].normalize(x, masked.valid, dropout)
    outputs = self.encoder(
      x,
      masked.segment_ids,
      masked.positions,
      dropout,
      taps=self.depths,
      stop_gradient_at=self.depths[:-1] if self.stop_gradient else (),
    )
    hidden = tuple(masked.gather(h) for h in outputs.taps)
    table = owner['token'].table()
    return Heads(hidden, tuple(self.mlm_head(h, table) for h in hidden))

  @property
  def depths(self) -> tuple[int, ...]:
    """Depths with a head, ascending."""
    return tuple(self.mlm_layers or (self.config.num_layers,))

  @property
  def work(self) -> Work:
    """What it computes for a row."""
    return Work(
      encoders=(self.config,),
      heads=(self.config,) * len(self.depths),
      second_pass=(self.second_pass and self.dropout_rate > 0)
      or (self.augmentation is not None and self.augmentation.changes_pass),
      mixtures=0 if self.mixture is None else 1,
    )

  def _check(self) -> None:
    depths, layers = self.depths, self.config.num_layers
    if list(depths) != sorted(set(depths)) or depths[0] < 1:
      raise UserError(
        f'Auxiliary.mlm_layers: {depths} must be ascending depths from 1'
      )
    if depths[-1] != layers:
      raise UserError(
        f'Auxiliary.mlm_layers: the last of {depths} must be the depth of the'
        f' auxiliary, whose TransformerConfig.num_layers (AUX_LAYERS) is'
        f' {layers}'
      )
    check_mixture(self, 'Auxiliary')


class AuxiliaryEnsemble(nn.Module):
  """Several auxiliaries side by side ("w. separate MLM gen." of AMOS).

  Each is an `Auxiliary` with everything of its own but what is shared with
  the main model.

  Attributes:
    config: of all of them, but for the depth.
    depths: of each.
    mixture: what share each has in the proposal; None: the last alone.
    dropout_rate: on hidden states and attention, 0..1.
  """

  config: TransformerConfig
  depths: Sequence[int] = (4, 6, 8)
  mixture: Any = None
  dropout_rate: float = 0.0

  def setup(self) -> None:
    """Declares the members."""
    check_mixture(self, 'AuxiliaryEnsemble')
    self.members = [Auxiliary(config) for config in self._configs()]

  def __call__(
    self,
    masked: MaskedTokens,
    embedder: Embedder,
    share: Collection[str] = ('token',),
    progress: jax.Array | float = 1.0,
    train: bool = False,
  ) -> Proposal:
    """See `AuxiliaryModel`."""

    def predict(dropout: Dropout | None) -> Heads:
      passes = [
        member.predict(masked, embedder, share, dropout)
        for member in self.members
      ]
      return Heads(*(sum(x, ()) for x in zip(*passes, strict=True)))

    dropout = masked.dropout(self.dropout_rate, train)
    heads = source = predict(dropout)
    if dropout is not None:
      source = jax.lax.stop_gradient(predict(None))
    names = tuple(
      f'member_{i}_layer_{depth}' for i, depth in enumerate(self.depths)
    )
    return propose(self, heads, source, progress, names, one_head=False)

  @property
  def work(self) -> Work:
    """What it computes for a row."""
    return Work(
      encoders=self._configs(),
      heads=self._configs(),
      second_pass=self.dropout_rate > 0,
      mixtures=0 if self.mixture is None else len(self.depths),
    )

  def _configs(self) -> tuple[TransformerConfig, ...]:
    return tuple(
      dataclasses.replace(self.config, num_layers=depth)
      for depth in self.depths
    )


def check_mixture(auxiliary: Auxiliary | AuxiliaryEnsemble, name: str) -> None:
  """Raises UserError where dropout would keep a mixture from learning."""
  learned = getattr(auxiliary.mixture, 'learned', False)
  if learned and auxiliary.dropout_rate:
    raise UserError(
      f'{name}.dropout_rate: {auxiliary.dropout_rate} needs a second pass, of'
      ' which a LearnedMixture cannot learn; set it (AUX_DROPOUT_RATE) to 0'
    )


def propose(
  auxiliary: Auxiliary | AuxiliaryEnsemble,
  heads: Heads,
  source: Heads,
  progress: jax.Array | float,
  names: tuple[str, ...],
  one_head: bool,
) -> Proposal:
  """Mixes what heads predict into a proposal.

  Args:
    auxiliary: for its mixture and its random numbers.
    heads: of the pass that has a loss.
    source: of the pass to sample from.
    progress: fraction of training that has passed, 0..1.
    names: of the heads.
    one_head: whether all predictions come from the same table and bias: then
      features are mixed, at the cost of one product with the table.

  Returns:
    The proposal.
  """
  *shallower, token_logits = heads.logits
  proposal = Proposal(
    token_logits,
    sampled_from=None if source is heads else source.logits[-1],
    shallower=tuple(shallower),
    head_names=names if shallower else (),
  )
  mixture = auxiliary.mixture
  if mixture is None:
    return proposal
  weights = mixture(source.hidden, progress, _seed(auxiliary))
  # The head stays as its own loss makes it: a gradient may enter features.
  logits = [
    dataclasses.replace(
      x,
      table=jax.lax.stop_gradient(x.table),
      bias=jax.lax.stop_gradient(x.bias),
    )
    for x in source.logits
  ]
  gradient = mixture.mlm_gradient
  if one_head:
    features = mix(weights, [x.features for x in logits], gradient)
    dtype = logits[-1].features.dtype
    sampled = dataclasses.replace(logits[-1], features=features.astype(dtype))
  else:
    sampled = mix(weights, [x.logits() for x in logits], gradient)
  return proposal.replace(sampled_from=sampled, mixture=weights)


def _seed(module: nn.Module) -> jax.Array:
  """A random uint32; 0 where there are no random numbers (prediction)."""
  if not module.has_rng('sample'):
    return jnp.zeros((), jnp.uint32)
  return jax.random.bits(module.make_rng('sample'), (), jnp.uint32)
