# SPDX-License-Identifier: Apache-2.0
"""Parameters out of a checkpoint, for a new run, for evaluation, for use.

Reads what is asked for and nothing else: no optimizer slots, and of the
parameters only the named subset, each straight onto its devices.
"""

import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import orbax.checkpoint as ocp

from metro_jax.errors import UserError
from metro_jax.training import orbax_noise
from metro_jax.training.state import TrainState, named_leaves, path_names

PyTree = Any
PREFIX = 'checkpoint'


def find_checkpoint(path: str, step: int | None = None) -> pathlib.Path:
  """The folder of a checkpoint.

  Args:
    path: A checkpoint's folder, or a MODEL_DIR.
    step: Which one of a MODEL_DIR; None for the newest.

  Raises:
    UserError: if there is none.
  """
  root = pathlib.Path(path)
  if not root.is_dir():
    raise UserError(f'{path} does not exist; give a MODEL_DIR or a checkpoint')
  if (root / 'state').is_dir():
    return root
  pattern = re.compile(rf'{PREFIX}_(\d+)')
  steps = sorted(
    int(m.group(1)) for p in root.iterdir() if (m := pattern.fullmatch(p.name))
  )
  if not steps:
    raise UserError(f'{path} holds no checkpoint; has training saved one yet?')
  if step is not None and step not in steps:
    raise UserError(
      f'{path} holds no {PREFIX}_{step}; it has {", ".join(map(str, steps))}'
    )
  chosen = steps[-1] if step is None else step
  return root / f'{PREFIX}_{chosen}'


def restore_params(
  path: str,
  like: PyTree,
  subset: Sequence[str] = ('.*',),
  step: int | None = None,
) -> PyTree:
  """Parameters from a checkpoint, each on the devices that `like` asks for.

  Args:
    path: A checkpoint's folder, or a MODEL_DIR.
    like: Parameters as ShapeDtypeStruct with shardings, or as arrays.
    subset: Names (regular expressions) to read; all parameters by default.
    step: Which checkpoint of a MODEL_DIR; None for the newest.

  Returns:
    A tree like `like`, with None where a name matches nothing in `subset`.
  """
  orbax_noise.silence()
  checkpoint = find_checkpoint(path, step)
  names = {
    name: x
    for name, x in named_leaves(like).items()
    if any(re.fullmatch(pattern, name) for pattern in subset)
  }
  if not names:
    raise UserError(f'{list(subset)} matches no parameter of the model')
  try:
    saved = saved_params(checkpoint)
    check_matches(checkpoint, saved, names)
    values = read_params(checkpoint, names)
  except (UserError, MemoryError, jax.errors.JaxRuntimeError):
    raise
  except Exception as error:
    raise UserError(
      f'{checkpoint} cannot be read ({first_line(error)}); restore it from a'
      ' copy, or name another step'
    ) from None
  return jax.tree_util.tree_map_with_path(
    lambda key_path, _: values.get('/'.join(path_names(key_path))), like
  )


def saved_params(checkpoint: pathlib.Path) -> dict[str, tuple[int, ...]]:
  """Name -> shape of the parameters in a checkpoint."""
  with ocp.StandardCheckpointer() as reader:
    metadata = reader.metadata(checkpoint.absolute() / 'state')
  if metadata.item_metadata is None:
    raise ValueError('the list of its arrays cannot be read')
  tree = metadata.item_metadata.tree['target']
  return {name: tuple(x.shape) for name, x in named_leaves(tree).items()}


def check_matches(
  checkpoint: pathlib.Path,
  saved: Mapping[str, tuple[int, ...]],
  wanted: Mapping[str, Any],
) -> None:
  """Raises UserError at the first parameter of another shape.

  Args:
    checkpoint: For the message.
    saved: Shapes in the checkpoint, by name.
    wanted: Arrays (or their shapes) of the model, by name.
  """
  for name, x in wanted.items():
    if saved.get(name) != x.shape:
      raise UserError(
        f'{checkpoint} does not fit the model: parameter {name} is'
        f' {saved.get(name, "absent")} there and {x.shape} in the model; use'
        ' the configuration that it was trained with (config.gin beside it)'
      )


def first_line(error: Exception) -> str:
  """A short form of an error for a message of one line."""
  cause = error.__cause__ or error
  lines = str(cause).strip().splitlines() or [type(cause).__name__]
  return lines[0] if len(lines[0]) <= 160 else f'{lines[0][:157]}...'


def read_params(
  checkpoint: pathlib.Path, names: dict[str, Any]
) -> dict[str, Any]:
  """Reads the named parameters only, each to the devices of its value."""
  tree: dict[str, Any] = {}
  for name, x in names.items():
    *parents, last = name.split('/')
    node = tree
    for parent in parents:
      node = node.setdefault(parent, {})
    sharding = getattr(x, 'sharding', None)
    node[last] = jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)
  item = {'target': tree}
  args = ocp.checkpoint_utils.construct_restore_args(item)
  with ocp.PyTreeCheckpointer() as reader:
    restored = reader.restore(
      checkpoint.absolute() / 'state',
      args=ocp.args.PyTreeRestore(
        item=item, restore_args=args, partial_restore=True
      ),
    )
  return named_leaves(restored['target'])


def load_initial(
  state: TrainState, path: str, subset: Sequence[str]
) -> TrainState:
  """Replaces parameters of a fresh state by those of a checkpoint."""
  loaded = restore_params(path, state.params, subset)
  params = jax.tree.map(
    lambda new, old: old if new is None else new,
    loaded,
    state.params,
    is_leaf=lambda x: x is None,
  )
  return state.replace(params=params)
