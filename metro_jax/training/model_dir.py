# SPDX-License-Identifier: Apache-2.0
"""MODEL_DIR/config.gin tells whose folder it is.

The file is read as text, so that this needs no gin and no recipe's imports.
"""

import pathlib
import re

import jax

from metro_jax.errors import UserError
from metro_jax.training import lock

# What may change between two starts of one run: how long it is, how often it
# tells and saves, and on what it runs; not what is trained on what.
# Gin writes a configurable as `module.name`, shortened at its pleasure.
_MAY_CHANGE = re.compile(
  r'(MODEL_DIR|TRAIN_STEPS|EVAL_STEPS|\w+_PERIOD|KEEP|NUM_MICROBATCHES'
  r'|ZERO_STAGE|DATA_DIR|STREAM_DIR|GUARD'
  r'|([\w./]+\.)?(Partitioner|CheckpointConfig|Guard|evaluate)\.\w+'
  r'|([\w./]+\.)?TokenDataset\.data_dir'
  r'|([\w.]+\.)?train\.(train_steps|\w+_period|eval_steps|eval_datasets'
  r'|partitioner|checkpoints|guard|alarms|num_microbatches|columns|tensorboard'
  r'|profile_steps|dry_run|model_dir))'
)


def claim(model_dir: str, text: str) -> None:
  """Writes MODEL_DIR/config.gin, unless the folder is another run's.

  From here on this process is the folder's only writer.

  Args:
    model_dir: The folder; it is made if need be.
    text: The whole configuration, in gin's syntax.

  Raises:
    UserError: naming the bindings that differ, or who writes there.
  """
  path = pathlib.Path(model_dir) / 'config.gin'
  try:
    lock.hold(model_dir)
    # Without a checkpoint there is no run yet, only an attempt.
    if path.exists() and any(path.parent.glob('checkpoint_*')):
      _check_same_run(path, text)
    if jax.process_index() != 0:
      return  # One host writes for all.
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name('config.gin.tmp')
    temporary.write_text(text)
    temporary.replace(path)
  except OSError as error:
    raise UserError(
      f'MODEL_DIR={model_dir} cannot be written: {error.strerror}'
    ) from None


def _check_same_run(path: pathlib.Path, text: str) -> None:
  held, now = bindings_of(path.read_text()), bindings_of(text)
  different = [
    name
    for name in sorted({*held, *now})
    if held.get(name) != now.get(name) and not _MAY_CHANGE.fullmatch(name)
  ]
  if different:
    shown = '; '.join(
      f'{name} was {held.get(name, "not set")}, now {now.get(name, "not set")}'
      for name in different[:3]
    )
    more = f' (and {len(different) - 3} more)' if len(different) > 3 else ''
    raise UserError(
      f'{path.parent} holds another run: {shown}{more}; choose another'
      ' MODEL_DIR, or undo the change'
    )


def bindings_of(text: str) -> dict[str, str]:
  """Binding -> value as text, of a gin file without includes."""
  lines = [line for line in text.splitlines() if not line.startswith('#')]
  found: dict[str, str] = {}
  name = ''
  for line in lines:
    start = re.match(r'([\w./]+) = ?(.*)', line)
    if start:
      name = start.group(1)
      found[name] = start.group(2)
    elif name and line[:1] in (' ', '\t', ')', ']', '}'):
      found[name] = f'{found[name]} {line.strip()}'.strip()
  return {key: value.replace('\\ ', '') for key, value in found.items()}
