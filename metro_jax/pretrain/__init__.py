# SPDX-License-Identifier: Apache-2.0
"""The research core: how text is corrupted, and what is learnt from it."""

from metro_jax.pretrain.auxiliary import Auxiliary as Auxiliary
from metro_jax.pretrain.auxiliary import AuxiliaryModel as AuxiliaryModel
from metro_jax.pretrain.auxiliary import Proposal as Proposal
from metro_jax.pretrain.corruption import Corrupted as Corrupted
from metro_jax.pretrain.corruption import MaskedTokens as MaskedTokens
from metro_jax.pretrain.objectives import MLM as MLM
from metro_jax.pretrain.objectives import RTD as RTD
from metro_jax.pretrain.objectives import CorrectiveLM as CorrectiveLM
from metro_jax.pretrain.objectives import LossTerm as LossTerm
from metro_jax.pretrain.objectives import Objective as Objective
from metro_jax.pretrain.pretrainer import Pretrainer as Pretrainer
from metro_jax.pretrain.sampling import Categorical as Categorical
from metro_jax.pretrain.sampling import Gumbel as Gumbel
from metro_jax.pretrain.sampling import Sampler as Sampler
