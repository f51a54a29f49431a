# SPDX-License-Identifier: Apache-2.0
"""Several short chunks in one row.

Rows are filled by the histogram of lengths, not chunk by chunk: the longest
length left is taken and filled up with the longest that still fit, and the
pattern is repeated as often as there are chunks for it. A million chunks cost
a few thousand steps, and little room is left over.
"""

import numpy as np


def pack(lengths: np.ndarray, room: int) -> tuple[np.ndarray, np.ndarray]:
  """Assigns chunks to rows.

  Args:
    lengths: int array [chunks] of tokens each takes, all in 1..room.
    room: tokens that a row holds.

  Returns:
    int64 array [chunks]: chunk numbers, row after row; int64 array [rows + 1]:
    where each row's begin.
  """
  order = np.argsort(lengths, kind='stable')
  left = np.bincount(lengths, minlength=room + 1)
  next_ = np.concatenate([[0], np.cumsum(left)[:-1]])
  members, sizes = [], []
  longest = room
  while longest > 0:
    if not left[longest]:
      longest -= 1
      continue
    pattern, repeat = _pattern(left, longest, room)
    columns = []
    for length, times in pattern:
      first = next_[length]
      taken = order[first : first + times * repeat]
      columns.append(taken.reshape(times, repeat).T)
      next_[length] += times * repeat
      left[length] -= times * repeat
    block = np.concatenate(columns, axis=1)
    members.append(block.reshape(-1))
    sizes.append(np.full(repeat, block.shape[1], np.int64))
  if not members:
    return np.zeros(0, np.int64), np.zeros(1, np.int64)
  bounds = np.concatenate([[0], np.cumsum(np.concatenate(sizes))])
  return np.concatenate(members).astype(np.int64), bounds


def _pattern(
  left: np.ndarray, longest: int, room: int
) -> tuple[list[tuple[int, int]], int]:
  """Lengths (and how many of each) that fill a row, and how many such rows."""
  pattern, used, length = [(longest, 1)], longest, longest
  free = left.copy()
  free[longest] -= 1
  while used < room:
    length = min(length, room - used)
    fitting = np.flatnonzero(free[1 : length + 1])
    if not len(fitting):
      break
    length = int(fitting[-1]) + 1
    times = min(int(free[length]), (room - used) // length)
    if length == pattern[-1][0]:
      pattern[-1] = (length, pattern[-1][1] + times)
    else:
      pattern.append((length, times))
    free[length] -= times
    used += times * length
  return pattern, min(int(left[n]) // times for n, times in pattern)


def unpack(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
  """The same batch with one segment to a row: masks and tokens unchanged.

  Args:
    batch: features [batch, length] with `encoder_segment_ids`.

  Returns:
    Features [segments, length], left-aligned.
  """
  segments = batch['encoder_segment_ids']
  pairs = [
    (row, segment)
    for row in range(len(segments))
    for segment in range(1, int(segments[row].max(initial=0)) + 1)
  ]
  out = {
    name: np.zeros((len(pairs), segments.shape[1]), value.dtype)
    for name, value in batch.items()
  }
  for i, (row, segment) in enumerate(pairs):
    where = segments[row] == segment
    n = np.count_nonzero(where)
    for name, value in batch.items():
      out[name][i, :n] = value[row, where]
    out['encoder_segment_ids'][i, :n] = 1
  return out
