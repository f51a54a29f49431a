# SPDX-License-Identifier: Apache-2.0
"""Files that are whole or absent, locks, and progress on a terminal."""

import contextlib
import errno
import glob
import os
import pathlib
import secrets
import shutil
import sys
import time
from collections.abc import Iterator

from metro_jax.errors import UserError

_DATA_DIR = 'METRO_DATA_DIR (DATA_DIR)'


def data_dir(given: str | os.PathLike | None = None) -> pathlib.Path:
  """Where caches go: the argument, METRO_DATA_DIR, or ~/.cache/metro_jax."""
  chosen = given or os.environ.get('METRO_DATA_DIR') or '~/.cache/metro_jax'
  return pathlib.Path(chosen).expanduser()


def write_atomically(
  path: pathlib.Path, data: bytes, parameter: str = _DATA_DIR
) -> None:
  """Writes a file so that a reader sees all of it or nothing."""
  # Hosts that share a disk may have the same process numbers.
  unique = f'{os.getpid()}-{secrets.token_hex(4)}'
  scratch = path.with_name(f'.{path.name}.{unique}')
  try:
    with disk_errors(path, parameter):
      scratch.write_bytes(data)
      scratch.replace(path)
  finally:
    scratch.unlink(missing_ok=True)


@contextlib.contextmanager
def new_folder(path: pathlib.Path) -> Iterator[pathlib.Path]:
  """A temporary folder that becomes `path` when the block ends well."""
  scratch = path.with_name(f'.{path.name}.{os.getpid()}.building')
  shutil.rmtree(scratch, ignore_errors=True)
  try:
    with disk_errors(path):
      scratch.mkdir(parents=True)
      yield scratch
      scratch.rename(path)
  finally:
    shutil.rmtree(scratch, ignore_errors=True)


@contextlib.contextmanager
def disk_errors(
  path: pathlib.Path, parameter: str = _DATA_DIR
) -> Iterator[None]:
  """Turns a full or forbidden disk into one line that says what to do.

  Args:
    path: what is written.
    parameter: what says where it goes.
  """
  try:
    yield
  except OSError as error:
    if error.errno not in (
      errno.ENOSPC,
      errno.EDQUOT,
      errno.EACCES,
      errno.EPERM,
      errno.EROFS,
    ):
      raise
    raise UserError(
      f'cannot write {path}: {error.strerror}; set {parameter} to a folder'
      ' with room'
    ) from error


@contextlib.contextmanager
def lock(path: pathlib.Path) -> Iterator[None]:
  """Only one process at a time builds `path`; the others wait here.

  What a killed builder has left is removed.
  """
  with disk_errors(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    file = path.with_name(f'.{path.name}.lock').open('w')
  with file:
    try:
      import fcntl
    except ImportError:  # No advisory locks here: both build, one rename wins.
      yield
      return
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      say(f'waiting for another process that builds {path}')
      fcntl.flock(file, fcntl.LOCK_EX)
    except OSError:  # A file system without locks.
      yield
      return
    for left in path.parent.glob(f'.{glob.escape(path.name)}.*.building'):
      shutil.rmtree(left, ignore_errors=True)
    yield


def say(message: str) -> None:
  """One line to the person at the terminal, or to the log."""
  print(message, file=sys.stderr, flush=True)


class Progress:
  """A line that counts: redrawn on a terminal, now and then in a log."""

  def __init__(self, what: str, unit: str):
    self._what, self._unit = what, unit
    self._start = self._shown = time.monotonic()
    self._live = sys.stderr.isatty()
    self._every = 0.2 if self._live else 30.0

  def __call__(self, count: int, note: str = '') -> None:
    """Shows the count if the last showing was long enough ago."""
    now = time.monotonic()
    if now - self._shown >= self._every:
      self._shown = now
      self._show(count, note, '\r' if self._live else '\n')

  def done(self, count: int, note: str = '') -> None:
    """Shows the last count."""
    if self._live or time.monotonic() - self._start > 1.0:
      self._show(count, note, '\n')

  def _show(self, count: int, note: str, end: str) -> None:
    seconds = max(time.monotonic() - self._start, 1e-9)
    line = (
      f'{self._what}: {count:,} {self._unit}, {count / seconds:,.0f} a second'
      f', {seconds:.0f} s{note}'
    )
    width = shutil.get_terminal_size().columns - 1
    line = f'{line[:width]:<{width}}' if self._live else line
    print(line, end=end, file=sys.stderr, flush=True)
