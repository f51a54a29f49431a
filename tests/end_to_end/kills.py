# SPDX-License-Identifier: Apache-2.0
"""Many SIGKILLs at random moments, and each run ends as if there were none.

  make fault-test KILLS=200

kills a toy so often, and each recipe an eighth as often, at random moments of
starting, stepping and saving; whenever a run has come to its end in spite of
it, its logs, parameters and slots are compared with those of a run that was
left alone, to the bit. All is kept in a folder, kill by kill: the same command
goes on where it was left.
"""

import argparse
import collections
import functools
import json
import os
import pathlib
import random
import shutil
import signal
import statistics
import subprocess
import sys
import time
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parents[2]
os.environ.setdefault('JAX_PLATFORMS', 'cpu')
os.environ.setdefault(
  'JAX_COMPILATION_CACHE_DIR', str(ROOT / '.cache/tests/jax')
)
os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0.05')
os.environ['PYTHONPATH'] = os.pathsep.join(
  [str(ROOT), *filter(None, [os.environ.get('PYTHONPATH')])]
)
sys.path.insert(0, str(ROOT))

import fault_runs as runs  # noqa: E402

runs.LIMIT = 3600  # Seconds; it may be run at low priority.
PHASES = ('starting', 'stepping', 'saving')
STARTING = 6.0  # Seconds, about.


class Series:
  """A run that is killed until it is enough.

  Attributes:
    kills: what is known of each.
    compared: runs that came to their end and were found the same.
  """

  def __init__(self, folder: pathlib.Path, name: str, target: int):
    """Takes up what was done before.

    Args:
      folder: of this series.
      name: 'toy' or that of a recipe.
      target: kills.
    """
    steps = 200 if name == 'toy' else 100
    if name == 'toy':
      self._command: runs.Command = functools.partial(runs.toy, steps=steps)
    else:
      self._command = runs.recipe(name, folder.parent / 'text', steps)
    self.name, self.target = name, target
    self._folder = folder
    self._record = folder / 'kills.jsonl'
    folder.mkdir(parents=True, exist_ok=True)
    lines = self._record.read_text() if self._record.exists() else ''
    known = [json.loads(line) for line in lines.splitlines()]
    self.kills = [line for line in known if 'phase' in line]
    self.compared = len(known) - len(self.kills)

  @property
  def done(self) -> float:
    """Fraction of the kills."""
    return len(self.kills) / self.target

  def go_on(self) -> None:
    """One more kill, or one more run compared."""
    whole = self._folder / 'unbroken'
    if not runs.finished(whole):
      runs.run(self._command, whole)
    with runs.start(self._command, self._folder / 'run') as process:
      try:
        ended = self._await_moment(process)
        process.kill()
      finally:
        process.kill()
    if ended and process.wait() == 0:
      self._compare()
      return
    text = runs.printed(self._folder / 'run')
    assert process.wait() == -signal.SIGKILL, text
    self._note(self._seen(text))

  def finish(self) -> None:
    """The last run, to its end."""
    if (self._folder / 'run').exists():
      runs.run(self._command, self._folder / 'run')
      self._compare()

  def _await_moment(self, process: subprocess.Popen) -> bool:
    """Waits; returns whether the process has ended before."""
    draw = random.Random(f'{self.name}/{len(self.kills)}/{self.compared}')
    folder = self._folder / 'run'
    phase = draw.choices(PHASES, [1, 3, 2])[0]
    count, delay = draw.randint(1, 4), draw.uniform(0, 0.1)
    saves: set[str] = set()
    begun = time.monotonic()
    if phase == 'starting':
      delay = draw.uniform(0, STARTING)
    while process.poll() is None:
      time.sleep(0.005)
      if phase == 'starting':
        break
      text = runs.printed(folder)
      if 'compiled' not in text:
        assert time.monotonic() < begun + runs.LIMIT, 'the run hangs'
        continue
      saves.update(p.name for p in folder.glob('checkpoint_*tmp*'))
      steps = runs.last_logged(folder) - runs.resumed_at(text)
      if steps >= 3 * count if phase == 'stepping' else len(saves) >= count:
        break
    else:
      return True
    try:
      process.wait(delay)
      return True
    except subprocess.TimeoutExpired:
      return False

  def _seen(self, text: str) -> dict[str, Any]:
    """Where a process was, by what it left behind."""
    folder = self._folder / 'run'
    step, lost = runs.last_logged(folder), runs.steps_lost(folder)
    if 'compiled' not in text:  # What is lost, the kill before has lost.
      return {'phase': 'starting', 'step': step, 'lost': 0}
    saving = any(folder.glob('checkpoint_*tmp*'))
    phase = 'saving' if saving else 'stepping'
    return {'phase': phase, 'step': step, 'lost': lost}

  def _compare(self) -> None:
    folder = self._folder / 'run'
    runs.assert_same(folder, self._folder / 'unbroken')
    self._note({'same': True})
    runs.state.cache_clear()
    shutil.rmtree(folder)

  def _note(self, line: dict[str, Any]) -> None:
    with self._record.open('a') as file:
      file.write(json.dumps(line) + '\n')
    if 'phase' in line:
      self.kills.append(line)
      print(f'{self.name} kill {len(self.kills)} of {self.target}: {line}')
    else:
      self.compared += 1
      print(f'{self.name} came to its end and is the same to the bit')

  def row(self) -> str:
    """A line of the table."""
    phases = collections.Counter(kill['phase'] for kill in self.kills)
    lost = [kill['lost'] for kill in self.kills] or [0]
    return (
      f'{self.name:14} {len(self.kills):5}'
      + ''.join(f' {phases[phase]:8}' for phase in PHASES)
      + f' {statistics.mean(lost):10.1f} {max(lost):4} {self.compared:13}'
    )


def main() -> int:
  """Kills until it is enough, and prints the table."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--folder', type=pathlib.Path, required=True)
  parser.add_argument('--kills', type=int, default=200)
  parser.add_argument('--runs', nargs='*', default=['toy', *runs.RECIPES])
  options = parser.parse_args()
  signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
  series = [
    Series(
      options.folder.resolve() / name,
      name,
      options.kills if name == 'toy' else max(1, options.kills // 8),
    )
    for name in options.runs
  ]
  while True:
    next_ = min(series, key=lambda s: s.done)
    if next_.done >= 1:
      break
    next_.go_on()
  for each in series:
    each.finish()
  phases = ''.join(f' {phase:>8}' for phase in PHASES)
  print(f'\n{"run":14} {"kills":>5}{phases} steps lost  max same to the bit')
  for each in series:
    print(each.row())
  return 0


if __name__ == '__main__':
  sys.exit(main())
