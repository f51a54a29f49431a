# SPDX-License-Identifier: Apache-2.0
"""Scalars for later: JSON lines, always, and TensorBoard events.

`metrics.jsonl` is the record: one object a line, written whole. On a restart
the lines after the restored step are dropped, so the file of a run that was
killed equals that of one that was not.
"""

import contextlib
import json
import os
import pathlib
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax

FILE = 'metrics.jsonl'
EVENTS = 'events.jsonl'
Notify = Callable[[str], None]


class MetricWriter:
  """Writes the metrics of one folder; only the first host does.

  Attributes:
    path: the file.
    last_step: of the newest line; None without any.
  """

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
    self.path = pathlib.Path(directory) / FILE
    self._active = jax.process_index() == 0
    self._notify = notify
    self._tensorboard: _TensorBoard | None = None
    self._unwritten: list[dict[str, Any]] = []
    lines = read_jsonl(self.path)
    lines = [line for line in lines if line['step'] <= resume_step]
    self.last_step = max((line['step'] for line in lines), default=None)
    if self._active:
      self.path.parent.mkdir(parents=True, exist_ok=True)
      _rewrite(self.path, lines)
      if tensorboard:
        self._tensorboard = _TensorBoard(self.path.parent, resume_step)

  def write(self, step: int, scalars: Mapping[str, float]) -> None:
    """Appends one line, and the same to TensorBoard.

    A line that cannot be written is written with the next one.
    """
    self.last_step = step
    if not self._active:
      return
    self._unwritten.append({'step': step, **scalars})
    try:
      if len(self._unwritten) > 1:  # A failure may have torn the last line.
        _rewrite(self.path, [*read_jsonl(self.path), *self._unwritten])
      else:
        _append(self.path, self._unwritten[0])
      self._unwritten.clear()
      if self._tensorboard:
        self._tensorboard.write(step, scalars)
    except OSError as error:
      if len(self._unwritten) == 1:
        self._notify(f'warning: {self.path} was not written: {error.strerror}')

  def close(self) -> None:
    """Closes the files."""
    if self._tensorboard:
      with contextlib.suppress(OSError):
        self._tensorboard.close()


class EventLog:
  """What happened to a run beside its metrics; only the first host writes.

  A line has a step and the number of rollbacks before it. That is its place in
  the history of a run which may have passed a step more than once.

  Attributes:
    path: the file.
  """

  def __init__(
    self,
    directory: str | os.PathLike,
    resume_step: int = 0,
    rollbacks: int = 0,
    notify: Notify = print,
  ):
    """Opens a file, and drops the lines after a place in the history.

    Args:
      directory: exists, or there is nothing to drop.
      resume_step: step of the place.
      rollbacks: before it.
      notify: told, in one line, that writing failed.
    """
    self.path = pathlib.Path(directory) / EVENTS
    self._notify = notify
    place = (rollbacks, resume_step)
    lines = read_jsonl(self.path)
    kept = [x for x in lines if _place(x) <= place]
    if jax.process_index() == 0 and len(kept) < len(lines):
      _rewrite(self.path, kept)

  def write(self, step: int, rollbacks: int, event: Mapping[str, Any]) -> None:
    """Appends one event."""
    if jax.process_index() != 0:
      return
    try:
      self.path.parent.mkdir(parents=True, exist_ok=True)
      _append(self.path, {'step': step, 'rollbacks': rollbacks, **event})
    except OSError as error:
      self._notify(f'warning: {self.path} was not written: {error.strerror}')


def _place(event: Mapping[str, Any]) -> tuple[int, int]:
  rollbacks = event.get('rollbacks')
  return (rollbacks if isinstance(rollbacks, int) else 0, event['step'])


class _TensorBoard:
  """Event files through TensorBoard's own record writer.

  It needs no TensorFlow, whose import takes seconds of every start and prints
  what nobody asked for. Where tensorboard is not installed, nothing is written.
  """

  def __init__(self, directory: pathlib.Path, resume_step: int = 0):
    self._writer: Any = None
    try:
      from tensorboard.compat.proto import event_pb2, summary_pb2
      from tensorboard.summary.writer import record_writer
    except ImportError:
      return
    self._event = event_pb2.Event
    self._summary = summary_pb2.Summary
    name = f'events.out.tfevents.{time.time_ns()}.{os.getpid()}'
    self._file = (directory / name).open('wb')
    self._writer = record_writer.RecordWriter(self._file)
    self._append(file_version='brain.Event:2')
    # Makes TensorBoard forget what an earlier process wrote after this step.
    start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
    self._append(step=resume_step, session_log=start)

  def _append(self, **fields: Any) -> None:
    event = self._event(wall_time=time.time(), **fields)
    self._writer.write(event.SerializeToString())
    self._file.flush()

  def write(self, step: int, scalars: Mapping[str, float]) -> None:
    """Writes one event with all scalars."""
    if self._writer:
      value = self._summary.Value
      values = [value(tag=k, simple_value=v) for k, v in scalars.items()]
      self._append(step=step, summary=self._summary(value=values))

  def close(self) -> None:
    """Closes the file."""
    if self._writer:
      self._writer.close()


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
  lines = [line for line in read_jsonl(path) if line['step'] != step]
  lines.append({'step': step, **scalars})
  path.parent.mkdir(parents=True, exist_ok=True)
  _rewrite(path, sorted(lines, key=lambda line: line['step']))
  if tensorboard:
    writer = _TensorBoard(path.parent)
    writer.write(step, scalars)
    writer.close()


def read_jsonl(path: str | os.PathLike) -> list[dict[str, Any]]:
  """The lines of a metrics file, each with its step.

  What is none, a torn last line or what a disk has spoilt, is left out.
  """
  try:
    text = pathlib.Path(path).read_text(encoding='utf-8', errors='replace')
  except FileNotFoundError:
    return []
  lines = []
  for line in text.split('\n'):
    try:
      values = json.loads(line)
    except ValueError:
      continue
    if isinstance(values, dict) and isinstance(values.get('step'), int):
      lines.append(values)
  return lines


def _line(values: Mapping[str, Any]) -> str:
  return json.dumps(values) + '\n'


def _append(path: pathlib.Path, values: Mapping[str, Any]) -> None:
  with path.open('a') as file:
    file.write(_line(values))


def _rewrite(path: pathlib.Path, lines: list[dict[str, Any]]) -> None:
  """Replaces a file in one step: a kill leaves the old one or the new one."""
  temporary = path.with_suffix('.tmp')
  temporary.write_text(''.join(map(_line, lines)))
  temporary.replace(path)
