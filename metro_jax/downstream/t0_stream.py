# SPDX-License-Identifier: Apache-2.0
"""Examples of mixtures that are larger than memory, read from their files."""

import collections
import functools
import os
import pathlib

import numpy as np

from metro_jax.data import hashing
from metro_jax.downstream import t0
from metro_jax.downstream.text import TextPair
from metro_jax.errors import UserError


class Stream:
  """Training examples of a mixture, read when they are asked for.

  Each of a dataset's n templates gives at most cap / n examples an epoch. The
  next epoch goes on where the last one stopped, in a random order of its file.

  Attributes:
    num_examples: of an epoch.
    fingerprint: identity of the files and what is taken of them.
  """

  def __init__(self, mixture: t0.Mixture, folder: str | os.PathLike, seed: int):
    """Finds the lines of all files.

    Args:
      mixture: with the files of the folder.
      folder: where they are.
      seed: of the order.
    """
    root, self._seed = pathlib.Path(folder).expanduser(), seed
    files = mixture.splits['train']
    folders = [name.split('/')[0] for name in files]
    datasets = [
      next(d for d in mixture.datasets['train'] if t0.belongs(name, d))
      for name in folders
    ]
    templates = collections.Counter(datasets)
    self._paths = [root / name for name in files]
    self._lines = [_line_starts(path) for path in self._paths]
    self._shares = [
      min(len(starts) - 1, mixture.cap // templates[dataset])
      for starts, dataset in zip(self._lines, datasets, strict=True)
    ]
    if not min(self._shares):
      empty = self._paths[self._shares.index(0)]
      raise UserError(f'{empty} is empty')
    self._ends = np.cumsum(self._shares)
    self.num_examples = int(self._ends[-1])
    self.fingerprint = hashing.short_hash(
      [
        (name, int(starts[-1]), len(starts), share)
        for name, starts, share in zip(
          files, self._lines, self._shares, strict=True
        )
      ]
    )

  def example(self, epoch: int, number: int) -> TextPair:
    """Example `number` of an epoch, 0 <= number < num_examples."""
    part = int(np.searchsorted(self._ends, number, side='right'))
    share, starts = self._shares[part], self._lines[part]
    place = epoch * share + number - (int(self._ends[part]) - share)
    lap, within = divmod(place, len(starts) - 1)
    line = int(
      hashing.permute(
        np.array([within]), len(starts) - 1, self._seed, np.array([lap])
      )[0]
    )
    with self._paths[part].open('rb') as file:
      file.seek(int(starts[line]))
      raw = file.read(int(starts[line + 1] - starts[line]))
    return t0.pair_of(self._paths[part], line + 1, raw)


def _line_starts(path: pathlib.Path) -> np.ndarray:
  """Where each line starts, and the size of the file, int64 [lines + 1]."""
  stat = path.stat()
  return _indexed(path, stat.st_size, stat.st_mtime_ns)


@functools.lru_cache(maxsize=4096)
def _indexed(path: pathlib.Path, size: int, stamp: int) -> np.ndarray:
  del stamp  # Another one is another file.
  found, base = [np.zeros(1, np.int64)], 0
  with path.open('rb') as file:
    while chunk := file.read(1 << 24):
      newlines = np.frombuffer(chunk, np.uint8) == ord('\n')
      found.append(np.flatnonzero(newlines) + base + 1)
      base += len(chunk)
  starts = np.concatenate(found)
  return starts if starts[-1] == size else np.append(starts, size)
