# SPDX-License-Identifier: Apache-2.0
"""The collectives of a compiled step, read from its text.

XLA puts a loop's body into the text once. Here a body counts as often as it
runs, where the text says how often (a scan's always does).

What an operation costs is what a ring moves through one device's links: with
n devices a reduce-scatter or all-gather of S bytes (the whole, not a part)
moves (n - 1) / n S, an all-reduce twice that.
"""

import collections
import dataclasses
import math
import re
from collections.abc import Iterator, Mapping

KINDS = (
  'all-reduce',
  'all-gather',
  'reduce-scatter',
  'all-to-all',
  'collective-permute',
)
_BYTES = {'pred': 1, 'bf16': 2, 'c64': 8, 'c128': 16}
_ARRAY = re.compile(r'\b(pred|bf16|[fsuc]\d+)\w*\[([\d,]*)\]')
_OPERATION = re.compile(
  r'= (?P<result>.*?) (?P<kind>' + '|'.join(KINDS) + r')(?P<start>-start)?\('
)
_CALLS = re.compile(
  r'(?:body|condition|calls|to_apply|called_computations|branch_computations)'
  r'=(?:\{([^}]*)\}|(%?[\w.\-]+))'
)
_TRIPS = re.compile(r'known_trip_count[":{ n]+(\d+)')


@dataclasses.dataclass(frozen=True)
class Collective:
  """All operations of one kind in one step, on one device.

  Attributes:
    kind: One of KINDS.
    count: How often it runs.
    size: Bytes of the whole arrays.
    moved: Bytes through the device's links, by a ring.
  """

  kind: str
  count: int
  size: int
  moved: int


def find(text: str, devices: int) -> list[Collective]:
  """The collectives of a compiled program, those that move most first.

  Args:
    text: `compiled.as_text()`.
    devices: How many run it; the size of a group that the text leaves out.
  """
  computations, entry = _parse(text)
  times = _run_counts(computations, entry)
  totals = collections.defaultdict(lambda: [0, 0, 0.0])
  for name, lines in computations.items():
    for line in lines if times.get(name) else ():
      found = _OPERATION.search(line)
      if found:
        size, moved = _cost(found, line, devices)
        total = totals[found['kind']]
        total[0] += times[name]
        total[1] += times[name] * size
        total[2] += times[name] * moved
  out = [Collective(k, n, s, round(m)) for k, (n, s, m) in totals.items()]
  return sorted(out, key=lambda c: -c.moved)


def _parse(text: str) -> tuple[dict[str, list[str]], str]:
  """Lines of each computation, and the name of the first to run."""
  computations: dict[str, list[str]] = {}
  entry, lines = '', []
  for line in text.splitlines():
    head = re.match(r'(ENTRY )?(%?[\w.\-]+) \(.*\{\s*$', line)
    if head:
      lines = computations.setdefault(head.group(2).lstrip('%'), [])
      entry = head.group(2).lstrip('%') if head.group(1) else entry
    else:
      lines.append(line)
  return computations, entry


def _run_counts(
  computations: Mapping[str, list[str]], entry: str
) -> dict[str, int]:
  """How often each computation runs in one run of the entry."""
  times: dict[str, int] = collections.defaultdict(int)

  def visit(name: str, count: int) -> None:
    times[name] += count
    for line in computations.get(name, ()):
      for called, trips in _calls(line):
        visit(called, count * trips)

  visit(entry, 1)
  return dict(times)


def _calls(line: str) -> Iterator[tuple[str, int]]:
  found = _CALLS.findall(line)
  if not found:
    return
  trips = _TRIPS.search(line) if ' while(' in line else None
  for several, one in found:
    for name in (several or one).split(','):
      yield name.strip().lstrip('%'), int(trips.group(1)) if trips else 1


def _cost(found: re.Match, line: str, devices: int) -> tuple[int, float]:
  """Bytes of the whole array, and bytes that a ring moves."""
  group = _group_size(line, devices)
  arrays = [_array_bytes(a) for a in _ARRAY.finditer(found['result'])]
  if found['start'] and len(arrays) > 1 and found['kind'] != 'all-reduce':
    arrays = arrays[len(arrays) // 2 :]  # (operands, results, ...).
  result = sum(arrays)
  if found['kind'] == 'reduce-scatter':
    result *= group
  if found['kind'] == 'collective-permute':
    return result, float(result)
  factor = 2 if found['kind'] == 'all-reduce' else 1
  return result, factor * result * (group - 1) / group


def _array_bytes(array: re.Match) -> int:
  kind, dims = array.groups()
  size = _BYTES.get(kind) or int(re.search(r'\d+', kind).group()) / 8
  return math.ceil(math.prod(int(n) for n in dims.split(',') if n) * size)


def _group_size(line: str, devices: int) -> int:
  """Devices that take part together."""
  listed = re.search(r'replica_groups=\{\{([\d,]+)\}', line)
  if listed:
    return len(listed.group(1).split(','))
  iota = re.search(r'replica_groups=\[(\d+),(\d+)\]', line)
  return int(iota.group(2)) if iota else devices
