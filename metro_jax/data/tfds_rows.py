# SPDX-License-Identifier: Apache-2.0
"""Rows of datasets that TFDS has prepared on this machine, as plain values.

They are read from their files alone: neither the code that made them nor the
network is asked.
"""

import functools
import os
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds
from tensorflow_datasets.core import read_only_builder

from metro_jax.errors import UserError

# TensorFlow only reads rows here; the accelerators are JAX's.
tf.config.set_visible_devices([], 'GPU')


class Label(NamedTuple):
  """A class: its number and its name."""

  number: int
  name: str


def has(name: str, split: str) -> bool:
  """Whether a dataset is prepared and has the split."""
  try:
    return split in _builder(name, _data_dir()).info.splits
  except UserError:
    return False


def rows(name: str, split: str) -> list[dict[str, Any]]:
  """All rows of a split, in the order of their `idx` where they have one.

  Args:
    name: dataset, or dataset/config.
    split: by TFDS's name.

  Returns:
    Texts as str, sequences as lists, classes as `Label`; None for a class that
    is not told.

  Raises:
    UserError: if it has not been prepared.
  """
  builder = _builder(name, _data_dir())
  if split not in builder.info.splits:
    raise UserError(
      f'TFDS {name}: no split {split!r}; it has {sorted(builder.info.splits)}'
    )
  features = builder.info.features
  examples = tfds.as_numpy(builder.as_dataset(split, shuffle_files=False))
  found = [_plain(example, features) for example in examples]
  if found and isinstance(found[0].get('idx'), int):
    found.sort(key=lambda row: row['idx'])
  return found


def _data_dir() -> str | None:
  return os.environ.get('TFDS_DATA_DIR')


@functools.lru_cache(maxsize=32)
def _builder(name: str, data_dir: str | None) -> tfds.core.DatasetBuilder:
  try:
    return read_only_builder.builder_from_files(name, data_dir=data_dir)
  except tfds.core.DatasetNotFoundError:
    raise UserError(
      f'TFDS {name}: not prepared in {data_dir or "~/tensorflow_datasets"};'
      f' run `tfds build {name}` where there is a network, and point'
      ' --tfds_data_dir at it'
    ) from None


def _plain(value: Any, feature: Any) -> Any:
  if isinstance(value, dict):
    inner = getattr(feature, 'feature', feature)
    return {name: _plain(item, inner[name]) for name, item in value.items()}
  if isinstance(feature, tfds.features.ClassLabel):
    number = int(value)
    return None if number < 0 else Label(number, feature.int2str(number))
  if isinstance(value, bytes):
    return value.decode('utf-8')
  if isinstance(value, np.ndarray):
    return [_plain(item, None) for item in value]
  return value.item() if isinstance(value, np.generic) else value
