# SPDX-License-Identifier: Apache-2.0
"""Scalars for later: JSON lines, always, and TensorBoard events.

`metrics.jsonl` is the record: one object a line, written whole. On a restart
the lines after the restored step are dropped, so the file of a run that was
killed equals that of one that was not.
"""

import json
import math
import os
import pathlib
from collections.abc import Callable, Mapping
from concurrent import futures
from typing import Any

import jax

FILE = 'metrics.jsonl'
Notify = Callable[[str], None]


class MetricWriter:
  """Writes the metrics of one folder; only the first host does."""

  def __init__(
    self,
    directory: str | os.PathLike,
    resume_step: int = 0,
    tensorboard: bool = True,
    notify: Notify = print,
  ):
    """Opens a folder.

    Args:
      directory: Made if need be.
      resume_step: Lines after this step are dropped.
      tensorboard: Whether to write TensorBoard events too.
      notify: Told, in one line and once, that writing failed.
    """
    self._path = pathlib.Path(directory) / FILE
    self._active = jax.process_index() == 0
    self._notify = notify
    self._tensorboard = None
    lines = read_jsonl(self._path)
    lines = [line for line in lines if line.get('step', 0) <= resume_step]
    self.last_step = max((line['step'] for line in lines), default=None)
    if self._active:
      self._path.parent.mkdir(parents=True, exist_ok=True)
      _rewrite(self._path, lines)
      if tensorboard:
        self._tensorboard = _TensorBoard(self._path.parent)

  def write(self, step: int, scalars: Mapping[str, float]) -> None:
    """Appends one line, and the same to TensorBoard."""
    self.last_step = step
    if not self._active:
      return
    try:
      with self._path.open('a') as file:
        file.write(_line({'step': step, **scalars}))
    except OSError as error:
      self._notify(f'warning: {self._path} was not written: {error}')
    if self._tensorboard:
      self._tensorboard.write(step, scalars)

  def close(self) -> None:
    """Finishes what is under way."""
    if self._tensorboard:
      self._tensorboard.close()


class _TensorBoard:
  """clu's writer on a thread of its own.

  clu's writers import TensorFlow, which takes seconds: here they pass while
  the train step compiles. Where clu is not installed, nothing is written.
  """

  def __init__(self, directory: pathlib.Path):
    self._pool = futures.ThreadPoolExecutor(1)
    self._writer = self._pool.submit(self._open, directory)

  def _open(self, directory: pathlib.Path) -> Any:
    os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
    os.environ.setdefault('TF_ENABLE_ONEDNN_OPTS', '0')
    try:
      from clu import metric_writers
    except ImportError:
      return None
    return metric_writers.SummaryWriter(str(directory))

  def write(self, step: int, scalars: Mapping[str, float]) -> None:
    finite = {k: v for k, v in scalars.items() if math.isfinite(v)}
    self._pool.submit(self._write, step, finite)

  def _write(self, step: int, scalars: Mapping[str, float]) -> None:
    if writer := self._writer.result():
      writer.write_scalars(step, scalars)
      writer.flush()

  def close(self) -> None:
    self._pool.shutdown()


def record(
  directory: str | os.PathLike,
  step: int,
  scalars: Mapping[str, float],
  tensorboard: bool = False,
) -> None:
  """Writes the line of one step among those of other steps, in order."""
  path = pathlib.Path(directory) / FILE
  if jax.process_index() != 0:
    return
  lines = [line for line in read_jsonl(path) if line.get('step') != step]
  lines.append({'step': step, **scalars})
  path.parent.mkdir(parents=True, exist_ok=True)
  _rewrite(path, sorted(lines, key=lambda line: line['step']))
  if tensorboard:
    writer = _TensorBoard(path.parent)
    writer.write(step, scalars)
    writer.close()


def read_jsonl(path: str | os.PathLike) -> list[dict[str, Any]]:
  """The whole lines of a metrics file; a torn last line is left out."""
  try:
    text = pathlib.Path(path).read_text()
  except FileNotFoundError:
    return []
  lines = []
  for line in text.splitlines():
    try:
      lines.append(json.loads(line))
    except json.JSONDecodeError:
      break
  return lines


def _line(values: Mapping[str, Any]) -> str:
  return json.dumps(values) + '\n'


def _rewrite(path: pathlib.Path, lines: list[dict[str, Any]]) -> None:
  """Replaces a file in one step: a kill leaves the old one or the new one."""
  temporary = path.with_suffix('.tmp')
  temporary.write_text(''.join(map(_line, lines)))
  temporary.replace(path)
