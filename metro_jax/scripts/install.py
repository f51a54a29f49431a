# SPDX-License-Identifier: Apache-2.0
"""Installs this checkout with pip into the Python that runs this file.

Only the standard library: it runs before anything is installed. pip's own
output, some hundred lines, goes to a log; one line says how far it is.
"""

import argparse
import os
import pathlib
import re
import shutil
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
_QUIET_SECONDS = 20.0  # Between lines where no line can be overwritten.
_NEEDED_GB = 4
# PyTorch for CPUs, of which tests need a little; PyPI's brings 3 GB of CUDA.
_TORCH_INDEX = 'https://download.pytorch.org/whl/cpu'
_COLLECTING = re.compile(r'^\s*Collecting ([\w.\-]+)')


def command(extras: str) -> list[str]:
  """The pip command for comma-separated extras, empty ones left out."""
  named = ','.join(e.strip() for e in extras.split(',') if e.strip())
  target = f'.[{named}]' if named else '.'
  pip = [sys.executable, '-m', 'pip', 'install']
  pip += ['--disable-pip-version-check', '--no-input', '--progress-bar=off']
  return [*pip, '--editable', target]


def small_torch(extras: str) -> list[str] | None:
  """The pip command for PyTorch without CUDA, where tests want it."""
  if 'test' not in extras.split(',') or sys.platform != 'linux':
    return None
  pip = command('')[:-2]
  # Where it cannot be had there is no use in asking again and again.
  return [*pip, '--retries=0', f'--index-url={_TORCH_INDEX}', 'torch']


class Line:
  """One line that says how far the installation is."""

  def __init__(self):
    self._start = self._said = time.monotonic()
    self._terminal = sys.stdout.isatty()

  def elapsed(self) -> str:
    """Minutes and seconds since the start."""
    minutes, seconds = divmod(int(time.monotonic() - self._start), 60)
    return f'{minutes}:{seconds:02d}'

  def say(self, text: str) -> None:
    """Overwrites the line on a terminal; elsewhere speaks now and then."""
    text = f'  {self.elapsed()}  {text}'
    now = time.monotonic()
    if self._terminal:
      width = shutil.get_terminal_size().columns - 1
      print(f'\r\033[K{text[:width]}', end='', flush=True)
    elif now - self._said > _QUIET_SECONDS:
      self._said = now
      print(text, flush=True)

  def clear(self) -> None:
    """Removes the line from a terminal."""
    if self._terminal:
      print('\r\033[K', end='', flush=True)


def run(pip: list[str], log: pathlib.Path) -> int:
  """Runs pip, its output in `log`; returns its exit code."""
  line = Line()
  packages = 0
  process = subprocess.Popen(
    pip,
    cwd=ROOT,
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
    errors='replace',
    env=os.environ | {'PYTHONUNBUFFERED': '1'},
  )
  assert process.stdout is not None
  with log.open('w') as file:
    for text in process.stdout:
      file.write(text)
      found = _COLLECTING.match(text)
      if found:
        packages += 1
        line.say(f'fetching, {packages} packages: {found.group(1)}')
      elif text.startswith('Installing collected'):
        line.say(f'unpacking {packages} packages')
  code = process.wait()
  line.clear()
  if code == 0:
    print(f'Installed in {line.elapsed()} (log: {log})')
  return code


def main() -> None:
  """Entry point."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--extras', default='', help='for example test,cuda')
  extras = parser.parse_args().extras
  pip = command(extras)
  print(f'Installing {pip[-1]} and what it needs from PyPI: 1 to 5 minutes')
  free = shutil.disk_usage(ROOT).free / 1e9
  if free < _NEEDED_GB:
    print(f'Only {free:.1f} GB are free here; {_NEEDED_GB} GB are needed')
  log = pathlib.Path(sys.prefix) / 'install.log'
  torch = small_torch(extras)
  if torch:
    run(torch, log)
  code = run(pip, log)
  if code:
    tail = log.read_text(errors='replace').splitlines()[-15:]
    print('\n'.join(tail), file=sys.stderr)
    print(
      f'error: pip failed; all it said is in {log}. Without a network, set'
      ' PIP_INDEX_URL or PIP_FIND_LINKS to where packages can be had',
      file=sys.stderr,
    )
    sys.exit(1)


if __name__ == '__main__':
  main()
