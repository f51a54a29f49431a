# SPDX-License-Identifier: Apache-2.0
"""A part of a new run's parameters, out of another model's checkpoint."""

import dataclasses
import pathlib
import re
from collections.abc import Callable, Collection, Sequence

import jax

from metro_jax.errors import UserError
from metro_jax.training import checks, restore
from metro_jax.training.prefetch import Dataset
from metro_jax.training.state import TrainState, named_leaves, path_names

# (names of this model, names in the checkpoint) -> name here: name there.
SourceNames = Callable[[Collection[str], Collection[str]], dict[str, str]]


@dataclasses.dataclass(frozen=True)
class PartialCheckpoint:
  """Which parameters to take from where, when a run starts.

  Attributes:
    path: a MODEL_DIR or a checkpoint's folder; None takes nothing.
    parameters: names (regular expressions) of this model's that are taken.
    source_names: what they are called there; None: the same.
  """

  path: str | None = None
  parameters: Sequence[str] = ('.*',)
  source_names: SourceNames | None = None

  def load(self, state: TrainState, dataset: Dataset) -> TrainState:
    """The state with those parameters.

    Args:
      state: fresh.
      dataset: whose vocabulary the checkpoint must have been trained with.
    """
    if self.path is None:
      return state
    checkpoint = restore.find_checkpoint(self.path)
    checks.check_assets(dataset, _model_dir(checkpoint))
    wanted = {
      name: x
      for name, x in named_leaves(state.params).items()
      if any(re.fullmatch(pattern, name) for pattern in self.parameters)
    }
    if not wanted:
      raise UserError(
        f'{self.path}: this model has no parameter {list(self.parameters)} to'
        ' take from a checkpoint; leave the path out'
      )
    saved = restore.saved_params(checkpoint)
    sources = {name: name for name in wanted}
    if self.source_names is not None:
      sources = self.source_names(list(wanted), list(saved))
    there = {sources[name]: x for name, x in wanted.items()}
    restore.check_matches(checkpoint, saved, there)
    values = restore.read_params(checkpoint, there)
    params = jax.tree_util.tree_map_with_path(
      lambda path, x: values.get(sources.get('/'.join(path_names(path))), x),
      state.params,
    )
    return state.replace(params=params)


def _model_dir(checkpoint: pathlib.Path) -> pathlib.Path:
  return checkpoint.resolve().parent
