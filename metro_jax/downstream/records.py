# SPDX-License-Identifier: Apache-2.0
"""What a task is made of: examples as its files give them, and their kinds."""

import dataclasses
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any


@dataclasses.dataclass(frozen=True)
class Example:
  """A text or a pair with a label.

  Attributes:
    id: what submission files call it.
    texts: one text, or two.
    label: a class's name, a number, or None where it is not told.
  """

  id: Any
  texts: tuple[str, ...]
  label: str | float | None = None


@dataclasses.dataclass(frozen=True)
class Question:
  """Texts of which some are better than the others.

  Attributes:
    id: what submission files call it.
    choices: a text or pair for each choice.
    names: what each choice is called in predictions.
    best: the numbers of the right choices; empty where they are not told.
    answers: what a prediction is compared with, where that is no choice's
      name.
  """

  id: Any
  choices: tuple[tuple[str, ...], ...]
  names: tuple[Any, ...]
  best: tuple[int, ...] = ()
  answers: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Passage:
  """A question whose answer is a piece of a text.

  Attributes:
    id: what prediction files call it.
    question: the question.
    context: the text.
    answers: (text, where it starts in the context), as annotators gave them;
      empty where there is none.
  """

  id: str
  question: str
  context: str
  answers: tuple[tuple[str, int], ...] = ()


Record = Example | Question | Passage

# path, split -> the records of one file.
Reader = Callable[[pathlib.Path, str], Iterable[Record]]
# path, task, records, predictions: writes a submission file.
Writer = Callable[[pathlib.Path, 'Task', Sequence[Record], Sequence[Any]], None]
# records, predictions -> scores by metric.
Scorer = Callable[[Sequence[Record], Sequence[Any]], dict[str, float]]


@dataclasses.dataclass(frozen=True)
class Task:
  """A benchmark's task, or the user's own.

  Attributes:
    name: by which it is asked for.
    kind: 'classification', 'regression', 'ranking' or 'span'.
    splits: files of each split, relative to the folder: 'train', and any
      number that start with 'validation' or 'test'.
    read: reads one of those files.
    metrics: what to measure, the deciding one first; see `metrics.METRICS`.
    labels: the classes, in the order of their numbers.
    upper: labels of a regression lie in 0..upper.
    folder: name of its folder in the benchmark's own distribution.
    submissions: split -> name of the file that the benchmark takes.
    write: writes such a file; None if there is none.
    score: replaces `metrics` where a task has a definition of its own.
  """

  name: str
  kind: str
  splits: Mapping[str, tuple[str, ...]]
  read: Reader
  metrics: tuple[str, ...]
  labels: tuple[str, ...] = ()
  upper: float = 1.0
  folder: str = ''
  submissions: Mapping[str, str] = dataclasses.field(default_factory=dict)
  write: Writer | None = None
  score: Scorer | None = None

  def splits_like(self, start: str) -> tuple[str, ...]:
    """Names of the splits that start so."""
    return tuple(name for name in self.splits if name.startswith(start))
