# SPDX-License-Identifier: Apache-2.0
"""Tab-separated and JSON-lines files, with errors that name the line."""

import json
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from metro_jax.errors import UserError

# What JSON may hold in the place of what belongs there is without end.
OTHER_LAYOUT = (
  LookupError,
  TypeError,
  ValueError,
  AttributeError,
  RecursionError,
)


def lines(path: pathlib.Path) -> list[str]:
  """Lines of a UTF-8 file, a byte-order mark left out."""
  try:
    text = path.read_text(encoding='utf-8-sig')
  except FileNotFoundError:
    raise UserError(
      f'{path} does not exist; TASK_DIR must be the folder of the task, or of'
      ' the benchmark, as it is distributed'
    ) from None
  except (OSError, UnicodeDecodeError) as error:
    raise UserError(f'{path}: cannot be read as UTF-8 text: {error}') from None
  # Only newlines end a line: str.splitlines would part at U+2028, too.
  found = text.replace('\r\n', '\n').split('\n')
  return found[:-1] if found and not found[-1] else found


def tsv(
  path: pathlib.Path, needed: Sequence[str], lenient: bool = False
) -> Iterator[tuple[int, dict[str, str]]]:
  """Rows of a file with a header, as (line number, column -> cell).

  Quotation marks are text, as in all of GLUE.

  Args:
    path: the file.
    needed: columns that must be there.
    lenient: leave out rows with too few cells (QQP has some) instead of
      raising.
  """
  header, *rest = lines(path) or ['']
  names = header.split('\t')
  for name in needed:
    if name not in names:
      raise UserError(f'{path}: no column {name!r}; it has {names}')
  last = max(names.index(name) for name in needed)
  for number, line in enumerate(rest, 2):
    cells = line.split('\t')
    if len(cells) <= last:
      if lenient:
        continue
      raise UserError(
        f'{path}, line {number}: {len(cells)} cells, and column'
        f' {names[last]!r} is number {last + 1}'
      )
    yield number, dict(zip(names, cells, strict=False))


def jsonl(
  path: pathlib.Path, needed: Sequence[str] = ()
) -> Iterator[tuple[int, dict[str, Any]]]:
  """Objects of a JSON-lines file, as (line number, object).

  Args:
    path: the file.
    needed: fields that each must have.
  """
  for number, line in enumerate(lines(path), 1):
    if not line.strip():
      continue
    try:
      record = json.loads(line)
    except json.JSONDecodeError as error:
      raise UserError(f'{path}, line {number}: not JSON: {error}') from None
    for name in needed:
      if not isinstance(record, Mapping) or name not in record:
        raise UserError(f'{path}, line {number}: no field {name!r}')
    yield number, record


def known(
  path: pathlib.Path, number: int, label: str, labels: Sequence[str]
) -> str:
  """The label, if it is one.

  Args:
    path: for the message; likewise the line number.
    number: of the line.
    label: to check.
    labels: those that there are.
  """
  if label not in labels:
    raise UserError(
      f'{path}, line {number}: label {label!r} is none of {list(labels)}'
    )
  return label


def number(path: pathlib.Path, line: int, text: Any, upper: float) -> float:
  """A label of a regression, in 0..upper."""
  try:
    value = float(text)
  except (TypeError, ValueError):
    raise UserError(
      f'{path}, line {line}: label {text!r} is not a number'
    ) from None
  if not 0 <= value <= upper:
    raise UserError(
      f'{path}, line {line}: label {value} is not in 0..{upper:g}'
    )
  return value
