# SPDX-License-Identifier: Apache-2.0
"""The trainer: it knows models and data by what they promise, not by name.

`train` and `evaluate` are the entry points. step, state, partitioning,
optimizers and schedules need nothing but jax, flax and optax.
"""

from metro_jax.training.ahead import Plan
from metro_jax.training.checkpoints import CheckpointConfig, Checkpointer
from metro_jax.training.evaluation import Evaluator, evaluate
from metro_jax.training.guards import Guard, NoGuard
from metro_jax.training.loop import TrainResult, train
from metro_jax.training.optimizers import (
  Optimizer,
  adamax,
  adamw,
  muon,
  width_factors,
)
from metro_jax.training.partial import PartialCheckpoint
from metro_jax.training.partitioning import (
  DEFAULT_RULES,
  Partitioner,
  zero_spec,
)
from metro_jax.training.restore import find_checkpoint, restore_params
from metro_jax.training.schedules import constant, linear_warmup_decay, rsqrt
from metro_jax.training.state import TrainState

__all__ = [
  'adamax',
  'adamw',
  'CheckpointConfig',
  'Checkpointer',
  'constant',
  'DEFAULT_RULES',
  'evaluate',
  'Evaluator',
  'find_checkpoint',
  'Guard',
  'linear_warmup_decay',
  'muon',
  'NoGuard',
  'Optimizer',
  'PartialCheckpoint',
  'Partitioner',
  'Plan',
  'restore_params',
  'rsqrt',
  'train',
  'TrainResult',
  'TrainState',
  'width_factors',
  'zero_spec',
]
