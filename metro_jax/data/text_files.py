# SPDX-License-Identifier: Apache-2.0
"""Your own text: files, streamed, parted into documents.

Memory is bounded whatever the files are: they are read a block at a time, and
a document longer than 65,536 characters is parted at a space into several (a
row of 512 tokens is some 2,500 characters, so little is lost).
"""

import codecs
import dataclasses
import glob
import gzip
import json
import os
import pathlib
import threading
import zlib
from collections.abc import Iterator, Sequence
from typing import BinaryIO

from metro_jax.data import files, hashing
from metro_jax.errors import UserError

MAX_DOCUMENT = 1 << 16  # Characters.
MAX_JSON_LINE = 1 << 26  # Characters: a JSON line is parsed whole.
_BLOCK = 1 << 20
_LONGEST_INDENT = 1 << 10
_UNITS = ('file', 'blank_line', 'line', 'json')
_INVALID = ('replace', 'error')
_GLOB_CHARACTERS = '*?['


@dataclasses.dataclass(frozen=True)
class TextFiles:
  """A corpus of text files.

  Attributes:
    patterns: a glob pattern or several ('**' crosses folders); plain text,
      JSON lines, or either with `.gz`.
    document: what one document is: a whole 'file', a block between blank lines
      ('blank_line'), a 'line', or a 'json' line. Files named `.jsonl` are JSON
      lines whatever this says.
    json_key: which field of a JSON line holds the text.
    invalid_utf8: 'replace' the invalid bytes (they are counted and become
      spaces), or stop with an 'error'.
    validation_fraction: share of the documents held out, chosen by their hash.
    broken_fraction: share of the files that may be broken archives. What can be
      read of them is used, by whole megabytes, and each is named; one more
      stops with an error.
  """

  patterns: str | Sequence[str]
  document: str = 'file'
  json_key: str = 'text'
  invalid_utf8: str = 'replace'
  validation_fraction: float = 0.01
  broken_fraction: float = 0.01

  def __post_init__(self):
    given = self.patterns
    given = [given] if isinstance(given, str | os.PathLike) else given
    object.__setattr__(self, 'patterns', tuple(str(p) for p in given or ()))
    if not self.patterns:
      raise UserError('TextFiles.patterns (TEXT_FILES) is empty: give a glob')
    for name, allowed in (('document', _UNITS), ('invalid_utf8', _INVALID)):
      if getattr(self, name) not in allowed:
        raise UserError(
          f'TextFiles.{name} = {getattr(self, name)!r}: choose one of'
          f' {", ".join(allowed)}'
        )
    for name in ('validation_fraction', 'broken_fraction'):
      if not 0 <= getattr(self, name) < 1:
        raise UserError(
          f'TextFiles.{name} = {getattr(self, name)}: give a fraction from 0 to'
          ' below 1'
        )
    object.__setattr__(self, '_counter', _Counter())

  @property
  def name(self) -> str:
    """What the caches of this corpus are called."""
    return 'text'

  @property
  def invalid(self) -> int:
    """How many invalid UTF-8 sequences the last reading replaced."""
    return self._counter.count

  @property
  def broken(self) -> int:
    """How many broken archives the last reading met."""
    return self._counter.broken

  def paths(self) -> list[pathlib.Path]:
    """The files, sorted, each once."""
    found = {p for pattern in self.patterns for p in _matches(pattern)}
    for path in sorted(found):
      if not os.access(path, os.R_OK):
        raise UserError(
          f'text file {path}: not readable; mend its permissions or leave it'
          ' out of TEXT_FILES'
        )
    filled = sorted(p for p in found if p.stat().st_size > 0)
    if not filled:
      raise UserError(
        f'text files {", ".join(self.patterns)}: empty; give files with text'
        ' (TEXT_FILES)'
      )
    if len(filled) < len(found):
      files.say(f'{len(found) - len(filled)} empty text files were left out')
    return filled

  def fingerprint(self) -> str:
    """Changes when the files (path, size, time of change) or options do."""
    stats = [(str(p.resolve()), p.stat()) for p in self.paths()]
    return hashing.short_hash(
      MAX_DOCUMENT,
      self.document,
      self.json_key,
      self.invalid_utf8,
      [(path, s.st_size, s.st_mtime_ns) for path, s in stats],
    )

  def documents(self, split: str | None = None) -> Iterator[str]:
    """Streams the documents.

    Args:
      split: None for all, else 'train' or 'validation'.
    """
    self._counter.count = self._counter.broken = 0
    some = False
    paths = self.paths()
    for path in paths:
      try:
        for text in self._file_documents(path):
          if split is None or split == self.split_of(hashing.text_hash(text)):
            some = True
            yield text
      except _BrokenArchiveError as error:
        self._tolerate(error, len(paths))
    if not some:
      where = ', '.join(self.patterns)
      which = 'text' if split is None else f'{split} text'
      raise UserError(f'text files {where}: no {which} in them (TEXT_FILES)')

  def _tolerate(self, error: '_BrokenArchiveError', files_: int) -> None:
    """Goes on without the rest of an archive, unless too many are broken."""
    self._counter.broken += 1
    allowed = int(self.broken_fraction * files_)
    if self._counter.broken > allowed:
      raise UserError(
        f'{error}; of {files_} files {allowed} may be broken'
        ' (TextFiles.broken_fraction)'
      ) from error
    files.say(f'warning: {error}: the rest of it is left out')

  def split_of(self, text_hash: int) -> str:
    """'train' or 'validation', by a document's 64-bit hash."""
    held_out = text_hash < int(self.validation_fraction * 2**64)
    return 'validation' if held_out else 'train'

  def _file_documents(self, path: pathlib.Path) -> Iterator[str]:
    stem = path.name.removesuffix('.gz')
    unit = 'json' if stem.endswith('.jsonl') else self.document
    blocks = self._blocks(path)
    if unit == 'json':
      yield from self._json_documents(path, blocks)
    else:
      parts = {
        'file': _file_parts,
        'line': _line_parts,
        'blank_line': _block_parts,
      }[unit](blocks)
      yield from _bounded_parts(parts)

  def _blocks(self, path: pathlib.Path) -> Iterator[str]:
    """The file's text, about a megabyte at a time."""
    decode = _Decoder(path, self.invalid_utf8, self._counter)
    opener = gzip.open if path.suffix == '.gz' else open
    try:
      with opener(path, 'rb') as file:
        yield from decode.blocks(file)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
      raise _BrokenArchiveError(
        f'text file {path}: broken gzip ({error}); make it anew or leave it'
        ' out of TEXT_FILES'
      ) from error
    except OSError as error:
      raise UserError(f'text file {path}: {error.strerror}') from error

  def _json_documents(
    self, path: pathlib.Path, blocks: Iterator[str]
  ) -> Iterator[str]:
    for number, line in _whole_lines(path, blocks):
      if not line.strip():
        continue
      where = f'text file {path}, line {number}'
      try:
        record = json.loads(line)
      except (ValueError, RecursionError) as error:
        raise UserError(
          f'{where}: not JSON ({error}); for plain text name the file .txt and'
          ' choose another DOCUMENT'
        ) from error
      text = record.get(self.json_key) if isinstance(record, dict) else None
      if not isinstance(text, str):
        raise UserError(
          f'{where}: no string field {self.json_key!r}; name the field with'
          ' TextFiles.json_key'
        )
      yield from bounded(text)


class _BrokenArchiveError(UserError):
  """A file that cannot be read to its end."""


class _Counter(threading.local):
  """What was wrong in the last reading; not part of a corpus's value."""

  count = 0  # Invalid sequences that were replaced.
  broken = 0  # Archives that could not be read to their end.

  def __eq__(self, other: object) -> bool:
    return isinstance(other, _Counter)

  def __deepcopy__(self, memo: dict) -> '_Counter':
    return _Counter()

  def __reduce__(self) -> tuple:
    return (_Counter, ())


class _Decoder:
  """UTF-8 across block borders, invalid sequences counted or refused."""

  def __init__(self, path: pathlib.Path, invalid: str, counter: _Counter):
    self._path, self._invalid, self._counter = path, invalid, counter

  def blocks(self, file: BinaryIO) -> Iterator[str]:
    """Decoded text, in pieces."""
    rest, offset, first = b'', 0, True
    while data := file.read(_BLOCK):
      text, used = self._decode(rest + data, offset, final=False)
      rest, offset = (rest + data)[used:], offset + used
      yield text.removeprefix('\ufeff') if first else text
      first = False
    if rest:
      yield self._decode(rest, offset, final=True)[0]

  def _decode(self, data: bytes, offset: int, final: bool) -> tuple[str, int]:
    try:
      return codecs.utf_8_decode(data, 'strict', final)
    except UnicodeDecodeError as error:
      if self._invalid == 'error':
        raise UserError(
          f'text file {self._path}: invalid UTF-8 at byte'
          f' {offset + error.start}; mend the file or set'
          " TextFiles.invalid_utf8 = 'replace'"
        ) from error
    text, used = codecs.utf_8_decode(data, 'replace', final)
    # Replacement characters that the text itself holds are not errors.
    genuine = data[:used].count(b'\xef\xbf\xbd')
    self._counter.count += text.count('\ufffd') - genuine
    return text, used


def _matches(pattern: str) -> list[pathlib.Path]:
  expanded = os.path.expanduser(pattern)
  if os.path.isdir(expanded):
    raise UserError(
      f'text files {pattern}: this is a folder; write'
      f" '{pattern.rstrip('/')}/**/*.txt'"
    )
  found = glob.glob(expanded, recursive=True)
  paths = [pathlib.Path(p) for p in found if os.path.isfile(p)]
  if not paths:
    plain = not any(c in pattern for c in _GLOB_CHARACTERS)
    what = 'no such file' if plain else 'no file matches'
    raise UserError(
      f'text files {pattern}: {what}; check the path (TEXT_FILES)'
    )
  return paths


def bounded(text: str) -> Iterator[str]:
  """One document, or several if it is over 65,536 characters."""
  yield from _bounded_parts(iter((text, None)))


def _bounded_parts(parts: Iterator[str | None]) -> Iterator[str]:
  """Documents of bounded size from their parts; None ends a document."""
  held, size = [], 0
  for part in parts:
    if part is not None:
      held.append(part)
      size += len(part)
      if size <= MAX_DOCUMENT:
        continue
    text = ''.join(held)
    at = 0
    while len(text) - at > MAX_DOCUMENT:
      end = at + MAX_DOCUMENT
      # A document without any space is cut where it must be.
      space = max(text.rfind(c, at, end) for c in ' \n')
      end = space + 1 if space > at else end
      if (piece := text[at:end]).strip():
        yield piece
      at = end
    text = text[at:]
    if part is None:
      if text.strip():
        yield text
      text = ''
    held, size = [text], len(text)
  if text := ''.join(held).strip():
    yield text


def _file_parts(blocks: Iterator[str]) -> Iterator[str | None]:
  yield from blocks
  yield None


def _line_parts(blocks: Iterator[str]) -> Iterator[str | None]:
  for block in blocks:
    *lines, last = block.split('\n')
    for line in lines:
      yield line
      yield None
    yield last
  yield None


def _block_parts(blocks: Iterator[str]) -> Iterator[str | None]:
  """Parts at lines with nothing but spaces, wherever blocks end."""
  begun, spaces = False, ''  # Of the line so far: text given, or spaces held.
  for block in blocks:
    *lines, last = block.split('\n')
    for line in lines:
      if begun or line.strip():
        yield f'{spaces}{line}\n'
      else:
        yield None
      begun, spaces = False, ''
    if begun or last.strip():
      yield spaces + last
      begun, spaces = True, ''
    else:
      spaces = (spaces + last)[:_LONGEST_INDENT]
  yield None


def _whole_lines(
  path: pathlib.Path, blocks: Iterator[str]
) -> Iterator[tuple[int, str]]:
  """Numbered lines, each in one piece and of bounded size."""
  number, held, size = 1, [], 0
  for block in blocks:
    *lines, last = block.split('\n')
    for line in lines:
      yield number, ''.join([*held, line])
      number, held, size = number + 1, [], 0
    held.append(last)
    size += len(last)
    if size > MAX_JSON_LINE:
      raise UserError(
        f'text file {path}, line {number}: a JSON line of over'
        f' {MAX_JSON_LINE >> 20} MiB; part the document over several lines'
      )
  if size:
    yield number, ''.join(held)
