# SPDX-License-Identifier: Apache-2.0
"""The text of registered SeqIO tasks, for vocabularies and token caches."""

import functools
import inspect
import re
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import seqio
import tensorflow as tf

from metro_jax.data import files
from metro_jax.errors import UserError

T = TypeVar('T')

# Share of a task's files (TFRecords, of most) that may be broken. What can be
# read of them is used.
BROKEN_FRACTION = 0.01
# TensorFlow only reads text here; the accelerators are JAX's.
tf.config.set_visible_devices([], 'GPU')


def names() -> list[str]:
  """Registered tasks and mixtures of this project."""
  known = {*seqio.TaskRegistry.names(), *seqio.MixtureRegistry.names()}
  return sorted(name for name in known if name.startswith('metro_'))


def documents(name: str, split: str) -> Iterator[str]:
  """Streams the text of a task, or of a mixture's tasks one after another.

  A task's own preprocessors run up to the first that asks for the output
  features: the one that tokenises.

  Args:
    name: in the SeqIO registry.
    split: of the task's source.
  """
  try:
    provider = seqio.get_mixture_or_task(name)
  except ValueError as error:
    raise UserError(
      f'corpus {name!r}: no such task or mixture is registered; known are'
      f' {", ".join(names())} (SOURCE)'
    ) from error
  mixture = isinstance(provider, seqio.Mixture)
  for task in provider.tasks if mixture else [provider]:
    yield from _task_documents(task, split)


def _task_documents(task: seqio.Task, split: str) -> Iterator[str]:
  if split not in task.splits:
    raise UserError(
      f'corpus {task.name}: no split {split!r}, it has'
      f' {", ".join(sorted(task.splits))}'
    )
  shards = _prepared(task, lambda: list(task.source.list_shards(split)))
  broken, allowed = 0, int(BROKEN_FRACTION * len(shards))
  for index, shard in enumerate(shards):
    info = seqio.ShardInfo(index, len(shards)) if len(shards) > 1 else None
    read = functools.partial(
      task.source.get_dataset, split=split, shuffle=False, shard_info=info
    )
    try:
      yield from _texts(task, _prepared(task, read))
    except tf.errors.DataLossError as error:
      broken += 1
      what = f'corpus {task.name}: {shard} is broken ({_line(error.message)})'
      if broken > allowed:
        raise UserError(
          f'{what}; of {len(shards)} files {allowed} may be: prepare it anew'
        ) from error
      files.say(f'warning: {what}: the rest of it is left out')


def _prepared(task: seqio.Task, read: Callable[[], T]) -> T:
  """What is read of a source, or a UserError that says how to prepare it."""
  try:
    return read()
  except UserError:
    raise
  except Exception as error:  # TFDS raises many kinds; all mean "prepare it".
    why = _line(str(error)) or repr(error)
    raise UserError(
      f'corpus {task.name}: cannot be read ({why});'
      ' prepare it with TFDS (docs/data.md has the commands) and point'
      ' TFDS_DATA_DIR or --tfds_data_dir at it'
    ) from error


def _texts(task: seqio.Task, dataset: tf.data.Dataset) -> Iterator[str]:
  for preprocessor in task.preprocessors:
    if _tokenises(preprocessor):
      break
    dataset = preprocessor(dataset)
  try:
    for example in dataset.as_numpy_iterator():
      text = example.get('targets', example.get('text', b''))
      yield text.decode('utf-8', 'replace')
  except tf.errors.OpError as error:
    # TensorFlow hands on what a Python source raised as text.
    said = re.search(r'UserError: (.+)', error.message)
    if not said:
      raise
    raise UserError(said.group(1)) from error


def _line(text: str) -> str:
  return (text.strip().splitlines() or [''])[0]


def _tokenises(preprocessor: Any) -> bool:
  if isinstance(preprocessor, seqio.CacheDatasetPlaceholder):
    return True
  return 'output_features' in inspect.signature(preprocessor).parameters
