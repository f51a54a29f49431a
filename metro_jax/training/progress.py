# SPDX-License-Identifier: Apache-2.0
"""What a person sees: a live bar on a terminal, plain lines in a log."""

import math
import sys
import types
from collections.abc import Mapping, Sequence
from typing import Any, TextIO

import jax

# Shown after the losses, when a model reports them: metric, words, format.
DEFAULT_COLUMNS = (
  ('replace_rate', 'replaced', 'percent'),
  ('replace_accuracy', 'found', 'percent'),
)


class Progress:
  """Progress of one run. Enter it; only the first host prints.

  Attributes:
    total: Steps of the whole run.
    columns: (metric, words, 'percent' or 'number') shown after the losses.
  """

  def __init__(
    self,
    total: int,
    columns: Sequence[tuple[str, str, str]] = DEFAULT_COLUMNS,
    stream: TextIO | None = None,
  ):
    self.total = total
    self.columns = columns
    self._stream = stream or sys.stdout
    self._quiet = jax.process_index() != 0
    self._bar = None
    self._task: Any = None

  def __enter__(self) -> 'Progress':
    if self._stream.isatty() and not self._quiet:
      self._bar = _make_bar(self._stream)
    if self._bar:
      self._bar.start()
      self._task = self._bar.add_task('', total=self.total)
    return self

  def __exit__(
    self,
    kind: type[BaseException] | None,
    error: BaseException | None,
    traceback: types.TracebackType | None,
  ) -> None:
    if self._bar:
      self._bar.stop()
      self._bar = None

  def advance(self, step: int) -> None:
    """Moves the bar; costs nothing without one."""
    if self._bar:
      self._bar.update(self._task, completed=step)

  def report(
    self, step: int, metrics: Mapping[str, float], rates: Mapping[str, float]
  ) -> None:
    """Prints the line of a stats period."""
    self.note(format_line(step, self.total, metrics, rates, self.columns))

  def report_eval(
    self, step: int, name: str, metrics: Mapping[str, float]
  ) -> None:
    """Prints the line of an evaluation."""
    parts = format_metrics(metrics, self.columns)
    self.note(' | '.join([f'eval {name} at step {step}', *parts]))

  def note(self, message: str) -> None:
    """Prints a line, above the bar if there is one."""
    if self._quiet:
      return
    if self._bar:
      self._bar.console.print(
        message, markup=False, highlight=False, soft_wrap=True
      )
    else:
      print(message, file=self._stream, flush=True)


def _make_bar(stream: TextIO) -> Any:
  """A rich progress bar, or None where rich is not installed."""
  try:
    from rich import console, progress
  except ImportError:
    return None
  return progress.Progress(
    progress.BarColumn(bar_width=None),
    progress.MofNCompleteColumn(),
    progress.TaskProgressColumn(),
    progress.TimeElapsedColumn(),
    progress.TimeRemainingColumn(),
    console=console.Console(file=stream),
  )


def format_line(
  step: int,
  total: int,
  metrics: Mapping[str, float],
  rates: Mapping[str, float],
  columns: Sequence[tuple[str, str, str]] = DEFAULT_COLUMNS,
) -> str:
  """One line: step, losses, columns, speed, time left."""
  parts = [
    f'step {step:>{len(str(total))}}/{total}',
    *format_metrics(metrics, columns),
  ]
  if rates:
    parts.append(f'{human(rates["timing/tokens_per_second"])} tokens/s')
    if 'timing/tflops_per_second_per_device' in rates:
      tflops = rates['timing/tflops_per_second_per_device']
      parts.append(f'{tflops:.3g} TFLOP/s/device')
    if 'timing/mfu' in rates:
      parts.append(f'MFU {rates["timing/mfu"]:.1%}')
    left = (total - step) / max(rates['timing/steps_per_second'], 1e-9)
    parts.append(f'ETA {duration(left)}')
  return ' | '.join(parts)


def format_metrics(
  metrics: Mapping[str, float],
  columns: Sequence[tuple[str, str, str]] = DEFAULT_COLUMNS,
) -> list[str]:
  """Losses first, then the asked columns, each as `name value`."""
  losses = [name for name in metrics if name.split('/')[0] == 'loss']
  parts = [
    f'{name.removeprefix("loss/")} {metrics[name]:.4g}'
    for name in sorted(losses)
  ]
  for name, words, kind in columns:
    if name in metrics:
      value = metrics[name]
      text = f'{value:.1%}' if kind == 'percent' else f'{value:.4g}'
      parts.append(f'{words} {text}')
  return parts


def human(number: float) -> str:
  """1234567 -> '1.23M'."""
  for power, suffix in ((15, 'P'), (12, 'T'), (9, 'B'), (6, 'M'), (3, 'k')):
    if abs(number) >= 10**power:
      return f'{number / 10**power:.3g}{suffix}'
  return f'{number:.3g}'


def duration(seconds: float) -> str:
  """3725 -> '1h02m'; the two largest units."""
  if not math.isfinite(seconds):
    return '?'
  whole = round(seconds)
  for size, big, small, unit in (
    (86400, 'd', 'h', 3600),
    (3600, 'h', 'm', 60),
    (60, 'm', 's', 1),
  ):
    if whole >= size:
      return f'{whole // size}{big}{whole % size // unit:02d}{small}'
  return f'{whole}s'
