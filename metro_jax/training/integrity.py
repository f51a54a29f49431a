# SPDX-License-Identifier: Apache-2.0
"""A checkpoint's seal: the names, sizes and checksums of its files.

The seal is the last file that is written before the folder gets its final
name. What a disk loses or alters later no longer agrees with it.
"""

import errno
import hashlib
import json
import pathlib
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar('T')

SEAL = 'checksums.json'
# What a remote file system says of itself rather than of the file.
_TRANSIENT = (
  errno.EAGAIN,
  errno.EBUSY,
  errno.ECONNRESET,
  errno.EHOSTUNREACH,
  errno.EINTR,
  errno.EIO,
  errno.ENETUNREACH,
  errno.ESTALE,
  errno.ETIMEDOUT,
)
_WAITS = (1.0, 4.0, 16.0)  # Seconds.


def seal(folder: pathlib.Path) -> None:
  """Writes the seal of a folder whose items are complete."""
  files = {
    str(path.relative_to(folder)): {
      'bytes': path.stat().st_size,
      'sha256': _sha256(path),
    }
    for path in _files(folder)
  }
  temporary = folder / f'{SEAL}.tmp'
  temporary.write_text(json.dumps({'files': files}, indent=1) + '\n')
  temporary.replace(folder / SEAL)


def check(folder: pathlib.Path) -> None:
  """Compares a folder with its seal; one without is taken as it is.

  Raises:
    ValueError: naming the first file that is not as it was written.
  """
  path = folder / SEAL
  if not path.exists():
    return
  try:
    files = json.loads(path.read_text())['files']
    wanted = {name: (x['bytes'], x['sha256']) for name, x in files.items()}
  except (ValueError, KeyError, TypeError, AttributeError):
    raise ValueError(f'{SEAL} cannot be read') from None
  for name, (size, digest) in wanted.items():
    file = folder / name
    if not file.is_file():
      raise ValueError(f'{name} is missing')
    if file.stat().st_size != size:
      raise ValueError(f'{name} has {file.stat().st_size} bytes, not {size}')
    if _sha256(file) != digest:
      raise ValueError(f'{name} was altered')


def persistently(
  action: Callable[[], T],
  notify: Callable[[str], None],
  sleep: Callable[[float], None] = time.sleep,
) -> T:
  """Does what may fail for a moment, again and again, waiting longer each time.

  Args:
    action: reads or writes files; must bear being done again.
    notify: told, in one line, of each failure.
    sleep: waits so many seconds.

  Returns:
    What the action returns.

  Raises:
    OSError: the action's, if it is not transient or outlasts all waits.
  """
  for wait in _WAITS:
    try:
      return action()
    except OSError as error:
      if error.errno not in _TRANSIENT:
        raise
      what = error.strerror or type(error).__name__
      notify(f'warning: {what} ({error.filename}); again in {wait:.0f} s')
      sleep(wait)
  return action()


def _files(folder: pathlib.Path) -> list[pathlib.Path]:
  """The items' files; those beside the items are still to be finished."""
  items = sorted(p for p in folder.iterdir() if p.is_dir())
  return [f for item in items for f in sorted(item.rglob('*')) if f.is_file()]


def _sha256(path: pathlib.Path) -> str:
  with path.open('rb') as file:
    return hashlib.file_digest(file, 'sha256').hexdigest()
