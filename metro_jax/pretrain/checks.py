# SPDX-License-Identifier: Apache-2.0
"""Whether the parts of a recipe fit together, before anything is computed."""

from typing import TYPE_CHECKING

from flax import linen as nn

from metro_jax.errors import UserError
from metro_jax.pretrain.objectives import MLM

if TYPE_CHECKING:
  from metro_jax.pretrain.pretrainer import Pretrainer

# What an auxiliary can have in common with the main model.
_EMBEDDING = ('token', 'position', 'norm')
_PARTS = (*_EMBEDDING, 'lm_bias')


def check(pretrainer: 'Pretrainer') -> None:
  """Raises UserError that names the parameter to change."""
  _check_values(pretrainer)
  names = [objective.name for objective in pretrainer.objectives]
  if not names or len(set(names)) < len(names):
    raise UserError(
      f'Pretrainer.objectives: {names} must be one or more, each of its kind'
    )
  if pretrainer.auxiliary is not None:
    _check_sharing(pretrainer)
    _check_mixture(pretrainer)
    if MLM.name in names and not isinstance(pretrainer.auxiliary, nn.Module):
      raise UserError(
        'Pretrainer.objectives: MLM trains an auxiliary, and'
        f' {type(pretrainer.auxiliary).__name__} has nothing to train; leave'
        ' MLM out'
      )
  elif MLM.name in names:
    raise UserError(
      'Pretrainer.objectives: MLM trains an auxiliary, and there is none; leave'
      ' MLM out, or set Pretrainer.auxiliary'
    )


def _check_values(pretrainer: 'Pretrainer') -> None:
  unknown = sorted(set(pretrainer.share) - set(_PARTS))
  if unknown:
    raise UserError(f'Pretrainer.share: {unknown[0]!r} is not one of {_PARTS}')
  slots = pretrainer.max_predictions
  if slots is not None and slots < 1:
    raise UserError(f'Pretrainer.max_predictions: {slots} must be at least 1')
  head = pretrainer.lm_head
  if 'lm_bias' in pretrainer.share and (head.projection or not head.use_bias):
    raise UserError(
      "Pretrainer.share: 'lm_bias' needs an LMHead of a bias and the table"
      ' alone; leave it out, or set LMHead.projection = False and use_bias ='
      ' True'
    )
  rate = pretrainer.dropout_rate
  if not 0 <= rate < 1:
    raise UserError(f'Pretrainer.dropout_rate: {rate} is not in [0, 1)')


def _check_sharing(pretrainer: 'Pretrainer') -> None:
  main = pretrainer.config
  # What is no Transformer has nothing of its own to share.
  auxiliary = getattr(pretrainer.auxiliary, 'config', main)
  shared = [part for part in _EMBEDDING if part in pretrainer.share]
  for field in ('table_width', 'vocab_size'):
    ours, theirs = getattr(main, field), getattr(auxiliary, field)
    if shared and ours != theirs:
      raise UserError(
        f'Pretrainer.share: {shared[0]!r} cannot be shared: the {field} of the'
        f" main model's TransformerConfig is {ours}, of the auxiliary's"
        f' {theirs}; make them equal, or share nothing of the embedding'
      )


def _check_mixture(pretrainer: 'Pretrainer') -> None:
  mixture = getattr(pretrainer.auxiliary, 'mixture', None)
  learned = getattr(mixture, 'learned', False)
  if learned and not pretrainer.sampler.carries_gradient:
    raise UserError(
      'Pretrainer.sampler (SAMPLER): a LearnedMixture learns through the'
      f' sample, and {type(pretrainer.sampler).__name__} lets no gradient'
      ' pass; use GumbelStraightThrough, or another mixture'
    )
