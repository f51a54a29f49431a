# SPDX-License-Identifier: Apache-2.0
"""Files as disks, networks and strangers leave them: valid ones, changed."""

from collections.abc import Callable
from typing import Any, NamedTuple

import hypothesis
from hypothesis import strategies

from metro_jax.errors import UserError

CASES = 200  # Of each parser; docs/reliability.md states the number.

fuzz = hypothesis.settings(
  max_examples=CASES,
  deadline=None,
  derandomize=True,
  database=None,
  suppress_health_check=list(hypothesis.HealthCheck),
)


class Change(NamedTuple):
  """One change of some bytes; places are fractions of them, in millionths."""

  way: str
  place: int
  size: int
  value: bytes

  def apply(self, data: bytes) -> bytes:
    """The bytes, changed."""
    at = self.place * len(data) // 1_000_000
    end = min(len(data), at + self.size)
    if self.way == 'flip' and data:
      return (
        data[:at] + bytes([data[at] ^ (1 << self.size % 8)]) + data[at + 1 :]
      )
    if self.way == 'cut':
      return data[:at]
    if self.way == 'drop':
      return data[:at] + data[end:]
    if self.way == 'repeat':
      return data[:end] + data[at:end] + data[end:]
    if self.way == 'put':
      return data[:at] + self.value + data[at:]
    return data[:at] + self.value + data[at + len(self.value) :]


def changes(*pieces: bytes) -> Any:
  """A strategy for one to three changes; `pieces` are what to put in."""
  value = strategies.one_of(
    strategies.binary(max_size=8), strategies.sampled_from(_TROUBLE + pieces)
  )
  return strategies.lists(
    strategies.builds(
      Change,
      strategies.sampled_from(
        ('flip', 'cut', 'drop', 'repeat', 'put', 'replace')
      ),
      strategies.integers(0, 999_999),
      strategies.integers(0, 40),
      value,
    ),
    min_size=1,
    max_size=3,
  )


_TROUBLE = (
  b'\x00',
  b'\xff' * 8,
  b'\n',
  b'"',
  b'{',
  b'}',
  b'[',
  b']',
  b'-1',
  b'1e999',
  b'NaN',
  b'null',
  b'999999999999999999999999',
  b'"\\ud800"',
  b'../../etc/passwd',
)


def changed(data: bytes, some: list[Change]) -> bytes:
  """The bytes after some changes."""
  for change in some:
    data = change.apply(data)
  return data


def or_one_line(read: Callable[..., Any], *arguments: Any) -> Any:
  """What a reader returns, or None after an error of one line; no other."""
  try:
    return read(*arguments)
  except UserError as error:
    assert '\n' not in str(error)
    return None
