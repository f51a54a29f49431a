# SPDX-License-Identifier: Apache-2.0
"""One writer per MODEL_DIR.

The lock is the operating system's: it is gone when the process is, however it
died, so nobody ever has to remove a stale one. The file's text only says who
holds it.
"""

import errno
import json
import os
import pathlib
import socket
import time
from collections.abc import Callable
from typing import TextIO

import jax

from metro_jax.errors import UserError

FILE = 'writer.lock'
_held: dict[pathlib.Path, TextIO] = {}


def hold(model_dir: str, notify: Callable[[str], None] = print) -> None:
  """Makes this process the only writer of a folder, until `release` or its end.

  Args:
    model_dir: the folder; it is made if need be.
    notify: told, in one line, if the file system has no locks.

  Raises:
    UserError: if another process writes there.
  """
  folder = pathlib.Path(model_dir).resolve()
  if jax.process_index() != 0 or folder in _held:
    return
  try:
    import fcntl
  except ImportError:  # No such locks on this system.
    return
  folder.mkdir(parents=True, exist_ok=True)
  file = (folder / FILE).open('a+')
  try:
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except OSError as error:
    if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
      owner = _owner(file)
      file.close()
      raise UserError(
        f'MODEL_DIR={model_dir} is being written by another run ({owner});'
        ' wait for it, stop it, or give another MODEL_DIR'
      ) from None
    notify(
      f'warning: {folder} cannot be locked ({error.strerror}); see to it'
      ' yourself that no other run writes there'
    )
  _held[folder] = file
  file.truncate(0)
  about = {
    'host': socket.gethostname(),
    'process': os.getpid(),
    'since': time.strftime('%Y-%m-%d %H:%M:%S %z'),
  }
  file.write(json.dumps(about) + '\n')
  file.flush()


def release(model_dir: str) -> None:
  """Lets others write there."""
  file = _held.pop(pathlib.Path(model_dir).resolve(), None)
  if file:
    file.close()


def _owner(file: TextIO) -> str:
  """Who holds a lock, in words."""
  file.seek(0)
  try:
    about = json.loads(file.read())
    process, host, since = about['process'], about['host'], about['since']
  except (ValueError, KeyError, TypeError):
    return 'it does not say which'
  return f'process {process} on {host}, since {since}'
