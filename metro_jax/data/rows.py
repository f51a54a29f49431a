# SPDX-License-Identifier: Apache-2.0
"""Which tokens make which row: chunks of one document, or several packed.

A document of n tokens becomes ceil(n / (length - 2)) chunks, all but the last
of them full; a chunk never reaches into another document. Chunks of a single
token teach nothing and are left out.
"""

import json
import pathlib
import shutil
import zlib
from typing import NamedTuple

import numpy as np

from metro_jax.data import files, hashing, packing, token_cache

VERSION = 1
SPECIALS = 2  # [CLS] and [SEP] of every chunk.
_SHORTEST = 2


class Rows(NamedTuple):
  """The rows of one split at one length.

  Attributes:
    starts: int64 [chunks]: where a chunk begins in the tokens.
    lengths: int32 [chunks]: how many tokens it has, specials not counted.
    bounds: int64 [rows + 1]: row r has chunks bounds[r]..bounds[r + 1]; None
      when every row is one chunk.
  """

  starts: np.ndarray
  lengths: np.ndarray
  bounds: np.ndarray | None

  @property
  def count(self) -> int:
    """Number of rows."""
    return len(self.starts if self.bounds is None else self.bounds[1:])


def chunk(
  offsets: np.ndarray, chosen: np.ndarray, length: int
) -> tuple[np.ndarray, np.ndarray]:
  """Cuts documents into chunks.

  Args:
    offsets: int64 [documents + 1] of token offsets.
    chosen: bool [documents]: which documents to take.
    length: row length, specials included.

  Returns:
    int64 starts and int32 lengths, [chunks] each.
  """
  body = length - SPECIALS
  first, tokens = offsets[:-1][chosen], np.diff(offsets)[chosen]
  counts = -(-tokens // body)
  last = tokens - (counts - 1) * body
  counts -= last < _SHORTEST
  counts = np.maximum(counts, 0)
  document = np.repeat(np.arange(len(first)), counts)
  within = np.arange(len(document)) - np.repeat(
    np.cumsum(counts) - counts, counts
  )
  starts = first[document] + within * body
  lengths = np.minimum(tokens[document] - within * body, body)
  return starts.astype(np.int64), lengths.astype(np.int32)


def derive(
  cache: token_cache.TokenCache,
  split: str,
  validation_fraction: float,
  length: int,
  packed: bool,
) -> Rows:
  """Computes the rows."""
  chosen = cache.in_split(split, validation_fraction)
  starts, lengths = chunk(cache.offsets, chosen, length)
  if not packed:
    return Rows(starts, lengths, None)
  members, bounds = packing.pack(lengths + SPECIALS, length)
  return Rows(starts[members], lengths[members], bounds)


def load(
  cache: token_cache.TokenCache,
  split: str,
  validation_fraction: float,
  length: int,
  packed: bool,
) -> Rows:
  """Opens the rows kept beside the tokens, or derives and keeps them."""
  arguments = (split, validation_fraction, length, packed)
  key = hashing.short_hash(VERSION, cache.fingerprint, *arguments)
  path = cache.path / f'rows-{length}-{split}-{key}'
  rows = _read(path)
  if rows is None:
    rows = derive(cache, *arguments)
    try:
      with files.lock(path):
        if _read(path) is None:
          shutil.rmtree(path, ignore_errors=True)
          _write(path, rows)
    except (OSError, ValueError):  # A cache that may only be read.
      pass
  return rows


def _write(path: pathlib.Path, rows: Rows) -> None:
  with files.new_folder(path) as folder:
    checksums = {}
    for name, array in rows._asdict().items():
      if array is not None:
        np.save(folder / f'{name}.npy', array)
        checksums[name] = zlib.crc32(array.view(np.uint8))
    (folder / 'checksums.json').write_text(json.dumps(checksums))


def _read(path: pathlib.Path) -> Rows | None:
  """The kept rows; None if they are absent or damaged (they are derived)."""
  arrays: dict[str, np.ndarray | None] = dict.fromkeys(Rows._fields)
  try:
    checksums = json.loads((path / 'checksums.json').read_text())
    for name, wanted in checksums.items():
      array = np.asarray(np.load(path / f'{name}.npy', mmap_mode='r'))
      if zlib.crc32(array.view(np.uint8)) != wanted:
        return None
      arrays[name] = array
    return Rows(**arrays)
  except (OSError, ValueError, TypeError, EOFError):
    return None
