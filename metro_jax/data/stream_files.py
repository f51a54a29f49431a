# SPDX-License-Identifier: Apache-2.0
"""Corrupted text on disk: what an auxiliary made of a corpus, epoch by epoch.

  plan.json            what is to be written, and from what
  vocabulary.model     what the ids mean
  originals/00000.npy  ids [rows, length], as nobody has masked them
  epoch-000/00000.npy  (position, token) [rows, slots]: what stands where
  manifest.json        the plan, counts, size and checksum of each file

Rows are the same ones in all epochs, so their text is stored once; an epoch
adds its masked positions and what took their place. A slot that is not in use
has position `length`.

A file of `shard_rows` rows is the unit of everything. It is a function of the
plan, and written whole or not at all: neither a kill nor the number of
processes that share the work changes a byte. The manifest comes last, so a
stream that has one is complete.
"""

import io
import json
import math
import pathlib
import zlib
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from metro_jax.data import files, hashing, vocabularies
from metro_jax.errors import UserError

VERSION = 1
_PLAN, _MANIFEST = 'plan.json', 'manifest.json'
_CHECKED = 16  # Of many files, how many are read when a stream is opened.


class Shard(NamedTuple):
  """One file of a stream.

  Attributes:
    epoch: its number; None for the originals.
    number: of the file, from 0.
    rows: row numbers.
  """

  epoch: int | None
  number: int
  rows: range

  @property
  def name(self) -> str:
    """Path within the stream."""
    return shard_name(self.epoch, self.number)


def shard_name(epoch: int | None, number: int) -> str:
  """Path of a file within a stream; epoch None for the originals."""
  folder = 'originals' if epoch is None else f'epoch-{epoch:03}'
  return f'{folder}/{number:05}.npy'


def shards(plan: Mapping[str, Any]) -> Iterator[Shard]:
  """All files of a stream: the originals, then epoch by epoch."""
  size, count = plan['shard_rows'], plan['rows']
  for epoch in (None, *range(len(plan['epochs']))):
    for number in range(math.ceil(count / size)):
      rows = range(number * size, min((number + 1) * size, count))
      yield Shard(epoch, number, rows)


def id_dtype(size: int) -> np.dtype:
  """The smallest unsigned type for ids below `size`."""
  return np.dtype('<u2' if size <= 1 << 16 else '<u4')


def slot_dtype(length: int, vocabulary_size: int) -> np.dtype:
  """What a masked position and its token are stored as."""
  return np.dtype(
    [('position', id_dtype(length + 1)), ('token', id_dtype(vocabulary_size))]
  )


class StreamWriter:
  """Writes a stream, or the part of it that is one process's."""

  def __init__(
    self,
    path: pathlib.Path,
    plan: Mapping[str, Any],
    vocabulary: vocabularies.Vocabulary,
  ):
    """Begins a stream, or goes on with one of the same plan.

    Args:
      path: the folder of the stream; made if need be.
      plan: plain values: rows, length, slots, shard_rows, epochs (a list, one
        dict for each), vocabulary_size, and all else that the content follows
        from.
      vocabulary: of the ids.

    Raises:
      UserError: if the folder holds a stream of another plan.
    """
    self.path = path
    self.plan = {
      'version': VERSION,
      'vocabulary': vocabulary.hash,
      **json.loads(json.dumps(plan)),
    }
    with files.disk_errors(path, 'STREAM_DIR'):
      path.mkdir(parents=True, exist_ok=True)
      self._claim()
      vocabulary.save(path)

  def _claim(self) -> None:
    path = self.path / _PLAN
    if path.exists():
      try:
        held = dict(json.loads(path.read_text()))
      except (TypeError, ValueError) as error:
        raise UserError(
          f'STREAM_DIR: {path} cannot be read ({error}); delete {self.path},'
          ' and write it again'
        ) from error
      different = [k for k in self.plan if held.get(k) != self.plan[k]]
      if different:
        raise UserError(
          f'STREAM_DIR: {self.path} holds another stream ({different[0]} was'
          f' {_short(held.get(different[0]))}, now'
          f' {_short(self.plan[different[0]])}); choose another STREAM_DIR, or'
          ' undo the change'
        )
    else:
      self._write(path, _json(self.plan))

  @property
  def complete(self) -> bool:
    """Whether the manifest is there."""
    return (self.path / _MANIFEST).exists()

  def lacks(self, shard: Shard) -> bool:
    """Whether a file is still to be written."""
    return not self.complete and not self._record(shard).exists()

  def write(
    self, shard: Shard, array: np.ndarray, counts: Mapping[str, int]
  ) -> None:
    """Writes a file, and then that it is there.

    Args:
      shard: which.
      array: its content.
      counts: plain numbers, to be added up over the files of an epoch.
    """
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    data = buffer.getvalue()
    about = {'bytes': len(data), 'crc32': zlib.crc32(data), **counts}
    path = self.path / shard.name
    path.parent.mkdir(exist_ok=True)
    self._write(path, data)
    self._write(self._record(shard), _json(about))

  def finish(self) -> int:
    """Writes the manifest, once every file is there.

    Whichever process comes last does it; two that come together write the
    same.

    Returns:
      How many files are still to be written by others.
    """
    if self.complete:
      return 0
    every = list(shards(self.plan))
    left = sum(self.lacks(shard) for shard in every)
    if left:
      return left
    try:
      about = {s.name: json.loads(self._record(s).read_text()) for s in every}
    except FileNotFoundError:  # Another process was faster, and tidied up.
      return 0
    epochs = []
    for number, epoch in enumerate(self.plan['epochs']):
      parts = [about[s.name] for s in every if s.epoch == number]
      names = [key for key in parts[0] if key not in ('bytes', 'crc32')]
      epochs.append(epoch | {k: sum(part[k] for part in parts) for k in names})
    listed = {
      name: {key: of[key] for key in ('bytes', 'crc32')}
      for name, of in about.items()
    }
    manifest = self.plan | {'epochs': epochs, 'files': listed}
    self._write(self.path / _MANIFEST, _json(manifest))
    for shard in every:
      self._record(shard).unlink(missing_ok=True)
    for scratch in self.path.glob('**/.*.[0-9]*'):  # Of processes killed.
      scratch.unlink(missing_ok=True)
    return 0

  def _record(self, shard: Shard) -> pathlib.Path:
    return (self.path / shard.name).with_suffix('.json')

  def _write(self, path: pathlib.Path, data: bytes) -> None:
    files.write_atomically(path, data, 'STREAM_DIR')


class StreamReader:
  """A complete stream, open for reading.

  Attributes:
    path: its folder.
    manifest: the manifest's values.
    vocabulary: of its ids.
    fingerprint: identity of what is in it, wherever it lies.
  """

  def __init__(self, path: pathlib.Path):
    """Opens a stream and checks that it is whole.

    The size of every file is looked at, and up to 16 files are read; the
    others are when they are first used.
    """
    self.path = path
    try:
      self._open()
    except UserError:
      raise
    except (LookupError, TypeError, ValueError, AttributeError) as error:
      raise self._broken(_MANIFEST, f'cannot be read ({error!r})') from error

  def _open(self) -> None:
    self.manifest = self._read_manifest()
    self.vocabulary = vocabularies.Vocabulary(self.path)
    if self.vocabulary.hash != self.manifest['vocabulary']:
      raise self._broken('vocabulary.model', 'is not the one of this stream')
    listed = self.manifest['files']
    self._verified: set[str] = set()
    for name, about in listed.items():
      file = self.path / name
      size = file.stat().st_size if file.exists() else None
      if size != about['bytes']:
        how = 'is missing' if size is None else 'is cut short or has grown'
        raise self._broken(name, how)
    some = np.linspace(0, len(listed) - 1, min(len(listed), _CHECKED))
    for index in np.unique(some.astype(int)):
      self._verify(list(listed)[index])
    self.fingerprint = hashing.short_hash(
      self.manifest['version'],
      self.manifest['vocabulary'],
      sorted((name, of['crc32']) for name, of in listed.items()),
    )

  def _read_manifest(self) -> dict[str, Any]:
    try:
      manifest = json.loads((self.path / _MANIFEST).read_text())
    except FileNotFoundError:
      if (self.path / _PLAN).exists():
        raise UserError(
          f'STREAM_DIR: {self.path} is not complete; give metro_jax.corrupt'
          ' the command again that began it'
        ) from None
      raise UserError(
        f'STREAM_DIR: {self.path} holds no stream; make one with'
        ' python -m metro_jax.corrupt'
      ) from None
    except (OSError, ValueError) as error:
      raise self._broken(_MANIFEST, f'cannot be read ({error})') from None
    wanted = {'files', 'epochs', 'vocabulary', 'rows', 'length', 'slots'}
    if manifest.get('version') != VERSION or wanted - manifest.keys():
      raise self._broken(_MANIFEST, 'was made by another version')
    for name in ('rows', 'length', 'slots'):
      if not isinstance(manifest[name], int):
        raise self._broken(_MANIFEST, f'has no number of {name}')
    return manifest

  def array(self, epoch: int | None, number: int) -> np.ndarray:
    """A file's content, memory-mapped; epoch None for the originals."""
    name = shard_name(epoch, number)
    self._verify(name)
    try:
      return np.asarray(np.load(self.path / name, mmap_mode='r'))
    except Exception as error:  # NumPy evaluates headers: anything may happen.
      how = f'cannot be read ({" ".join(str(error).split())})'
      raise self._broken(name, how) from error

  def verify(self) -> None:
    """Reads every file that has not been read, against its checksum."""
    for name in self.manifest['files']:
      self._verify(name)

  def _verify(self, name: str) -> None:
    if name in self._verified:
      return
    try:
      data = np.memmap(self.path / name, np.uint8, 'r')
    except (OSError, ValueError) as error:
      raise self._broken(name, f'cannot be read ({error})') from None
    if zlib.crc32(data) != self.manifest['files'][name]['crc32']:
      raise self._broken(name, 'was altered')
    self._verified.add(name)

  def _broken(self, name: str, how: str) -> UserError:
    return UserError(
      f'{self.path / name} {how}; copy the stream anew, or delete'
      f' {self.path} and write it again with metro_jax.corrupt'
    )


def _json(values: Mapping[str, Any]) -> bytes:
  return (json.dumps(values, indent=2) + '\n').encode()


def _short(value: Any) -> str:
  text = json.dumps(value)
  return text if len(text) <= 60 else f'{text[:57]}...'
