# SPDX-License-Identifier: Apache-2.0
"""The research core: how text is corrupted, and what is learnt from it."""

from metro_jax.pretrain.auxiliary import Auxiliary as Auxiliary
from metro_jax.pretrain.auxiliary import AuxiliaryEnsemble as AuxiliaryEnsemble
from metro_jax.pretrain.cloze import OneChoiceCloze as OneChoiceCloze
from metro_jax.pretrain.contrastive import (
  SequenceContrastive as SequenceContrastive,
)
from metro_jax.pretrain.corruption import Corrupted as Corrupted
from metro_jax.pretrain.corruption import MaskedTokens as MaskedTokens
from metro_jax.pretrain.curriculum import Augmentation as Augmentation
from metro_jax.pretrain.curriculum import AuxiliaryDropout as AuxiliaryDropout
from metro_jax.pretrain.curriculum import Constant as Constant
from metro_jax.pretrain.curriculum import DropToken as DropToken
from metro_jax.pretrain.curriculum import ExponentialDecay as ExponentialDecay
from metro_jax.pretrain.curriculum import Interpolate as Interpolate
from metro_jax.pretrain.curriculum import PolynomialDecay as PolynomialDecay
from metro_jax.pretrain.curriculum import StepwiseDecay as StepwiseDecay
from metro_jax.pretrain.curriculum import Temperature as Temperature
from metro_jax.pretrain.distributions import Interpolated as Interpolated
from metro_jax.pretrain.distributions import SmoothedOneHot as SmoothedOneHot
from metro_jax.pretrain.distributions import TermFrequency as TermFrequency
from metro_jax.pretrain.distributions import Uniform as Uniform
from metro_jax.pretrain.mixtures import FixedMixture as FixedMixture
from metro_jax.pretrain.mixtures import LayerSwitch as LayerSwitch
from metro_jax.pretrain.mixtures import LearnedMixture as LearnedMixture
from metro_jax.pretrain.mixtures import Mixture as Mixture
from metro_jax.pretrain.mixtures import RandomLayer as RandomLayer
from metro_jax.pretrain.mixtures import UniformMixture as UniformMixture
from metro_jax.pretrain.objectives import MLM as MLM
from metro_jax.pretrain.objectives import RTD as RTD
from metro_jax.pretrain.objectives import CorrectiveLM as CorrectiveLM
from metro_jax.pretrain.objectives import LossTerm as LossTerm
from metro_jax.pretrain.objectives import Objective as Objective
from metro_jax.pretrain.pretrainer import Pretrainer as Pretrainer
from metro_jax.pretrain.proposal import AuxiliaryModel as AuxiliaryModel
from metro_jax.pretrain.proposal import Proposal as Proposal
from metro_jax.pretrain.proposal import Work as Work
from metro_jax.pretrain.sampling import Categorical as Categorical
from metro_jax.pretrain.sampling import Gumbel as Gumbel
from metro_jax.pretrain.sampling import (
  GumbelStraightThrough as GumbelStraightThrough,
)
from metro_jax.pretrain.sampling import Sample as Sample
from metro_jax.pretrain.sampling import Sampler as Sampler
from metro_jax.pretrain.transfer import auxiliary_source as auxiliary_source
