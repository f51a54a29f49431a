# SPDX-License-Identifier: Apache-2.0
"""Known ways for ELECTRA-style pretraining to go wrong, read off its metrics.

An alarm looks at the lines of metrics.jsonl and says in plain words what it
sees, and what has helped others. It changes nothing. Each looks at means over
the last few lines, so that a single odd line raises none.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence

Line = Mapping[str, float]

RECENT = 5  # Lines whose mean counts.
# Steps after which a run has found its way; half of a run that is shorter, but
# not fewer than the second number.
_SETTLED, _LEAST_SETTLED = 20_000, 500


@dataclasses.dataclass(frozen=True)
class Finding:
  """What an alarm saw.

  Attributes:
    name: of the alarm.
    step: of the line at which it was raised.
    words: what there is to see, with numbers.
    advice: what to try.
  """

  name: str
  step: int
  words: str
  advice: str

  def __str__(self) -> str:
    return f'alarm at step {self.step}: {self.words}; {self.advice}'


class History:
  """The lines of a run so far.

  Attributes:
    train_steps: steps of the whole run.
  """

  def __init__(self, train_steps: int):
    self.train_steps = train_steps
    self._series: dict[str, list[float]] = {}
    self._best: dict[str, tuple[float, float]] = {}
    self.step = 0

  def add(self, line: Line) -> None:
    """Takes one more line."""
    self.step = int(line['step'])
    for name, value in line.items():
      if isinstance(value, int | float) and math.isfinite(value):
        self._series.setdefault(name, []).append(float(value))
        mean = self.recent(name)
        if mean is not None:
          low, high = self._best.get(name, (mean, mean))
          self._best[name] = (min(low, mean), max(high, mean))

  def names(self, prefix: str) -> list[str]:
    """Metrics whose names start so."""
    return [name for name in self._series if name.startswith(prefix)]

  def recent(self, name: str) -> float | None:
    """Mean of the last lines; None until there are enough."""
    values = self._series.get(name, ())
    return sum(values[-RECENT:]) / RECENT if len(values) >= RECENT else None

  def first(self, name: str) -> float:
    """The first value."""
    return self._series[name][0]

  def lowest(self, name: str) -> float:
    """The lowest that `recent` has been."""
    return self._best[name][0]

  def highest(self, name: str) -> float:
    """The highest that `recent` has been."""
    return self._best[name][1]

  def settled(self) -> bool:
    """Whether the run should have found its way by now."""
    half = min(_SETTLED, self.train_steps / 2)
    return self.step >= max(half, _LEAST_SETTLED)


@dataclasses.dataclass(frozen=True)
class Alarm:
  """One thing to look for.

  Attributes:
    name: in a word or two.
    look: history -> what there is to see, or None.
    advice: what to try.
  """

  name: str
  look: Callable[[History], str | None]
  advice: str


def _diverging(history: History) -> str | None:
  # The RTD loss may rise by right, when the auxiliary gets better.
  names = [n for n in ('loss/mlm', 'loss/clm', 'loss/lm') if history.names(n)]
  for name in names or ['loss']:
    now = history.recent(name)
    if now is not None and now > 1.15 * history.lowest(name):
      return (
        f'{name} is {now:.3g}, {now / history.lowest(name) - 1:.0%} above its'
        f' lowest, {history.lowest(name):.3g}: training diverges'
      )
  return None


def _big_updates(history: History) -> str | None:
  for name in history.names('update_ratio/'):
    now = history.recent(name)
    # Heads start at zero, where every update is big.
    if name.endswith('head') or now is None or now < _BIG_UPDATE:
      continue
    return (
      f'a step changes {name.split("/")[1]} by {now:.0%} of its size: the'
      ' learning rate is too high'
    )
  # Updates of a constant size look small when the parameters have blown up.
  now = history.recent('param_norm')
  if now is None or now < _BLOWN_UP * history.first('param_norm'):
    return None
  return (
    f'the parameters are {now / history.first("param_norm"):.0f} times as large'
    ' as at the first log line: the learning rate is too high'
  )


_BIG_UPDATE, _BLOWN_UP = 0.2, 10.0


def _often_refused(history: History) -> str | None:
  now = history.recent('refused_steps')
  if now is None or now < 0.05:
    return None
  return f'the guard refuses {now:.0%} of the steps'


def _all_original(history: History) -> str | None:
  found, auc = history.recent('replace_accuracy'), history.recent('rtd_auc')
  if None in (found, auc) or not history.settled():
    return None
  if found > 0.02 or auc > 0.53:
    return None
  return (
    f'the main model answers "original" to everything (it finds {found:.1%} of'
    f' the replaced tokens; area under ROC {auc:.2f}, and 0.5 is chance)'
  )


def _auxiliary_strong(history: History) -> str | None:
  right, auc = history.recent('auxiliary_accuracy'), history.recent('rtd_auc')
  if right is None or auc is None:
    return None
  if right > 0.8:
    return (
      f'the auxiliary is too strong: it fills in {right:.0%} of the masked'
      ' tokens rightly, so that hardly anything is left to detect'
    )
  best = history.highest('rtd_auc')
  if best > 0.65 and auc < best - 0.1:
    return (
      'the auxiliary is too strong: the main model detected replacements'
      f' better before (area under ROC {auc:.2f}, at best {best:.2f})'
    )
  return None


def _auxiliary_weak(history: History) -> str | None:
  auc = history.recent('rtd_auc')
  if auc is not None and auc > 0.98:
    return (
      'replacements are too easy to detect (area under ROC'
      f' {auc:.3f}): the auxiliary is too weak, or its proposals too random'
    )
  now = history.recent('loss/mlm')
  if now is None or not history.settled():
    return None
  if history.lowest('loss/mlm') < 0.9 * history.first('loss/mlm'):
    return None
  return (
    f'the auxiliary hardly learns: its loss is {now:.3g}, and was'
    f' {history.first("loss/mlm"):.3g} at the first log line'
  )


def _collapsed(history: History) -> str | None:
  weights = {n: history.recent(n) for n in history.names('mixture/')}
  if len(weights) < 2 or None in weights.values():
    return None
  name = max(weights, key=weights.get)
  if weights[name] < 0.95:
    return None
  return (
    f'the mixture of auxiliary heads has collapsed: {name} has'
    f' {weights[name]:.0%} of the weight'
  )


def _schedule_over(history: History) -> str | None:
  now = history.recent('curriculum/gamma')
  if now is None or history.step > 0.2 * history.train_steps:
    return None
  if now > 0.02 * history.first('curriculum/gamma'):
    return None
  return (
    f'the temperature schedule is over after {history.step} of'
    f' {history.train_steps} steps'
  )


ALARMS = (
  Alarm(
    'diverging',
    _diverging,
    'go back to a checkpoint before the rise, with a lower LEARNING_RATE, a'
    ' longer WARMUP_STEPS or a smaller CLIP_NORM',
  ),
  Alarm(
    'updates too big', _big_updates, 'lower LEARNING_RATE, or clip (CLIP_NORM)'
  ),
  Alarm(
    'steps refused',
    _often_refused,
    'lower LEARNING_RATE; events.jsonl names the reasons and the examples',
  ),
  Alarm(
    'all original',
    _all_original,
    'raise RTD_WEIGHT or LEARNING_RATE, or train longer before you judge',
  ),
  Alarm(
    'auxiliary too strong',
    _auxiliary_strong,
    'make it shallower (AUX_LAYERS), or raise MASK_RATE or the temperature',
  ),
  Alarm(
    'auxiliary too weak',
    _auxiliary_weak,
    'make it deeper (AUX_LAYERS), or train it longer or with a higher'
    ' LEARNING_RATE',
  ),
  Alarm(
    'mixture collapsed',
    _collapsed,
    'lower the learning rate of the mixture weights, or fix them',
  ),
  Alarm(
    'schedule over too early',
    _schedule_over,
    'let the curriculum last longer: the main model sees no easy noise from'
    ' here on',
  ),
)


class Monitor:
  """Looks at each line once, and tells what is new."""

  def __init__(self, train_steps: int, alarms: Sequence[Alarm] = ALARMS):
    self._history = History(train_steps)
    self._alarms = alarms
    self._raised: set[str] = set()

  def see(self, line: Line) -> list[Finding]:
    """Takes one line of metrics, with its step.

    Returns:
      The alarms that this line raises. One is raised again only after it has
      been silent.
    """
    self._history.add(line)
    found = []
    for alarm in self._alarms:
      words = alarm.look(self._history)
      if words is None:
        self._raised.discard(alarm.name)
      elif alarm.name not in self._raised:
        self._raised.add(alarm.name)
        step = self._history.step
        found.append(Finding(alarm.name, step, words, alarm.advice))
    return found


def findings(
  lines: Sequence[Line], train_steps: int, alarms: Sequence[Alarm] = ALARMS
) -> list[Finding]:
  """All that the lines of a run raise."""
  monitor = Monitor(train_steps, alarms)
  return [finding for line in lines for finding in monitor.see(line)]
