# SPDX-License-Identifier: Apache-2.0
"""Text tokenised once: a folder of memory-mapped arrays.

  tokens.bin     every document's piece ids, one after another, no specials
  offsets.npy    int64 [documents + 1]: where each document begins
  hashes.npy     uint64 [documents]: hash of its text, which decides its split
  manifest.json  what it was made from, counts, checksums
  rows-*/        which tokens make which row, for one length and split

The folder is built under another name and renamed when whole, so a cache that
is there is complete. Rows are derived from the rest and made on first use.
"""

import dataclasses
import functools
import json
import pathlib
import time
import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from metro_jax.data import files, hashing, vocabularies
from metro_jax.errors import UserError

VERSION = 1
_BATCH_CHARACTERS = 1 << 20
_BLOCK = 1 << 24  # Bytes of tokens under one checksum.
_CHECKED_BLOCKS = 16  # Of a large cache, how many are read when it is opened.


class TokenCache:
  """A finished cache, open for reading.

  Attributes:
    path: its folder.
    manifest: the manifest's values.
    tokens: uint16 or uint32 [tokens], memory-mapped.
    offsets: int64 [documents + 1], memory-mapped.
    hashes: uint64 [documents], memory-mapped.
  """

  def __init__(self, path: pathlib.Path):
    """Opens a cache and checks that it is whole.

    Of a cache over 256 MB, 16 blocks spread over it are read; `verify` reads
    all.
    """
    self.path = pathlib.Path(path)
    try:
      self._open()
    except UserError:
      raise
    except Exception as error:  # NumPy evaluates headers: anything may happen.
      why = ' '.join(str(error).split())
      raise self._broken(f'cannot be read ({why})') from error

  def _open(self) -> None:
    self.manifest = json.loads((self.path / 'manifest.json').read_text())
    if self.manifest['version'] != VERSION:
      raise self._broken('was made by another version')
    self.offsets = self._load('offsets.npy')
    self.hashes = self._load('hashes.npy')
    dtype = np.dtype(self.manifest['dtype'])
    size = (self.path / 'tokens.bin').stat().st_size
    blocks = max(1, -(-size // _BLOCK))
    listed = len(self.manifest['checksums']['tokens.bin'])
    if dtype not in (np.uint16, np.uint32) or listed != blocks:
      raise self._broken('was altered (manifest.json)')
    if size != self.manifest['tokens'] * dtype.itemsize:
      raise self._broken('is cut short or has grown (tokens.bin)')
    self.tokens = np.asarray(
      np.memmap(self.path / 'tokens.bin', dtype, 'r')
      if size
      else np.zeros(0, dtype)
    )
    some = np.linspace(0, blocks - 1, min(blocks, _CHECKED_BLOCKS))
    self.verify(np.unique(some.astype(int)))
    self.describe()  # Nothing that is asked for later is missing.
    _ = self.fingerprint

  def _load(self, name: str) -> np.ndarray:
    array = np.asarray(np.load(self.path / name, mmap_mode='r'))
    if _checksum(array) != self.manifest['checksums'][name]:
      raise self._broken(f'was altered ({name})')
    return array

  def _broken(self, how: str) -> UserError:
    return UserError(
      f'token cache {self.path} {how}; delete that folder, it will be built'
      ' anew'
    )

  def verify(self, blocks: Iterable[int] | None = None) -> None:
    """Compares blocks of tokens (all, if None) with their checksums."""
    wanted = self.manifest['checksums']['tokens.bin']
    data = self.tokens.view(np.uint8)
    for i in range(len(wanted)) if blocks is None else blocks:
      if zlib.crc32(data[i * _BLOCK : (i + 1) * _BLOCK]) != wanted[i]:
        raise self._broken(f'was altered (tokens.bin, block {i})')

  @functools.cached_property
  def fingerprint(self) -> str:
    """Identity of the tokens, whenever and wherever they were made."""
    kept = {
      name: self.manifest[name]
      for name in ('version', 'vocabulary', 'tokens', 'checksums')
    }
    return hashing.short_hash(json.dumps(kept, sort_keys=True))

  def in_split(self, split: str, validation_fraction: float) -> np.ndarray:
    """Which documents belong to a split.

    If the hashes put none in validation, the document with the smallest does.

    Args:
      split: 'train', 'validation' or 'all'.
      validation_fraction: share of the hashes that are held out.

    Returns:
      bool array [documents].
    """
    if split == 'all':
      return np.ones(len(self.hashes), bool)
    held_out = self.hashes < np.uint64(int(validation_fraction * 2**64))
    if not held_out.any() and validation_fraction and len(self.hashes) > 1:
      held_out[np.argmin(self.hashes)] = True
    return held_out if split == 'validation' else ~held_out

  def describe(self) -> dict[str, Any]:
    """Counts and place, for people."""
    names = ('source', 'documents', 'tokens', 'characters', 'invalid_utf8')
    size = sum(p.stat().st_size for p in self.path.glob('*.*'))
    seconds = max(self.manifest['seconds'], 1e-9)
    return {name: self.manifest[name] for name in names} | {
      'tokens_per_second': self.manifest['tokens'] / seconds,
      'bytes': size,
      'path': str(self.path),
    }


def build(
  path: pathlib.Path,
  documents: Iterable[str],
  vocabulary: vocabularies.Vocabulary,
  source: str = '',
  fingerprint: str = '',
  invalid_utf8: Callable[[], int] = lambda: 0,
) -> TokenCache:
  """Tokenises documents into a new cache folder, shown as it goes.

  Args:
    path: the folder to make; must not exist.
    documents: texts, read once; only some are in memory at a time.
    vocabulary: what to tokenise with.
    source: name of the corpus, for people.
    fingerprint: identity of the corpus.
    invalid_utf8: called at the end: how many invalid sequences were replaced.
  """
  dtype = np.dtype('<u2' if vocabulary.size <= 1 << 16 else '<u4')
  progress = files.Progress(f'tokenising {source}'.rstrip(), 'tokens')
  start = time.monotonic()
  lengths, hashes, characters, tokens = [], [], 0, 0
  with files.new_folder(path) as folder:
    with (folder / 'tokens.bin').open('wb') as file:
      writer = _ChecksummedWriter(file)
      for texts in batched(documents):
        ids, counts = vocabulary.encode_batch(texts)
        writer.write(ids.astype(dtype).tobytes())
        lengths.append(counts)
        hashes.append(
          np.array([hashing.text_hash(t) for t in texts], np.uint64)
        )
        characters += sum(map(len, texts))
        tokens += len(ids)
        progress(tokens)
    if not tokens:
      raise UserError(f'corpus {source}: no text to tokenise')
    progress.done(tokens)
    arrays = {
      'offsets.npy': np.cumsum(np.concatenate([[0], *lengths]), dtype=np.int64),
      'hashes.npy': np.concatenate(hashes),
    }
    for name, array in arrays.items():
      np.save(folder / name, array)
    manifest = {
      'version': VERSION,
      'source': source,
      'fingerprint': fingerprint,
      'vocabulary': vocabulary.hash,
      'vocabulary_size': vocabulary.size,
      'dtype': dtype.str,
      'documents': len(arrays['hashes.npy']),
      'tokens': tokens,
      'characters': characters,
      'invalid_utf8': invalid_utf8(),
      'seconds': round(time.monotonic() - start, 3),
      'checksums': {
        'tokens.bin': writer.finish(),
        **{name: _checksum(array) for name, array in arrays.items()},
      },
    }
    text = json.dumps(manifest, indent=2) + '\n'
    (folder / 'manifest.json').write_text(text)
  return TokenCache(path)


def open_or_build(
  path: pathlib.Path, make: Callable[[], TokenCache]
) -> TokenCache:
  """Opens the cache, or builds it; of several processes one builds."""
  if not path.exists():
    with files.lock(path):
      if not path.exists():
        return make()
  return TokenCache(path)


def batched(documents: Iterable[str]) -> Iterator[list[str]]:
  """Groups documents into lists of about a million characters."""
  texts, size = [], 0
  for text in documents:
    texts.append(text)
    size += len(text)
    if size >= _BATCH_CHARACTERS:
      yield texts
      texts, size = [], 0
  if texts:
    yield texts


@dataclasses.dataclass
class _ChecksummedWriter:
  """Writes bytes, keeping a crc32 for each block of the file."""

  file: Any
  _checksums: list[int] = dataclasses.field(default_factory=lambda: [0])
  _filled: int = 0

  def write(self, data: bytes) -> None:
    """Appends bytes."""
    self.file.write(data)
    view = memoryview(data)
    while view:
      if self._filled == _BLOCK:
        self._checksums.append(0)
        self._filled = 0
      part = view[: _BLOCK - self._filled]
      self._checksums[-1] = zlib.crc32(part, self._checksums[-1])
      self._filled += len(part)
      view = view[len(part) :]

  def finish(self) -> list[int]:
    """The checksums of all blocks."""
    return self._checksums


def _checksum(array: np.ndarray) -> int:
  return zlib.crc32(np.ascontiguousarray(array).view(np.uint8))
