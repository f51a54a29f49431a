# SPDX-License-Identifier: Apache-2.0
"""Counter hashes and permutations: randomness that is a function of a place.

Nothing here has a state. What is drawn for (seed, epoch, index) is the same
in every process, on every host and after every restart.
"""

import hashlib

import numpy as np

_GOLDEN = np.uint32(0x9E3779B9)
_FEISTEL_ROUNDS = 8


def mix(x: np.ndarray) -> np.ndarray:
  """The 32-bit finaliser lowbias32, element by element, in place.

  Args:
    x: uint32 array of any shape; overwritten.

  Returns:
    The same array, now with avalanched bits.
  """
  scratch = np.right_shift(x, np.uint32(16))
  x ^= scratch
  x *= np.uint32(0x7FEB352D)
  np.right_shift(x, np.uint32(15), out=scratch)
  x ^= scratch
  x *= np.uint32(0x846CA68B)
  np.right_shift(x, np.uint32(16), out=scratch)
  x ^= scratch
  return x


def keys(seed: int, stream: int, *fields: np.ndarray) -> np.ndarray:
  """One 32-bit key for each element, from a seed and 64-bit integers.

  Args:
    seed: any integer; 64 bits of it count.
    stream: what the key is for, so that two uses never share draws.
    *fields: integer arrays of one shape [n].

  Returns:
    uint32 array [n].
  """
  state = np.full(np.shape(fields[0]), stream & 0xFFFFFFFF, np.uint32)
  words = [np.uint64(seed & 0xFFFFFFFFFFFFFFFF)]
  words += [np.asarray(f).astype(np.uint64) for f in fields]
  for word in words:
    for shift in (0, 32):
      half = (word >> np.uint64(shift)).astype(np.uint32)
      state = mix((state ^ half) + _GOLDEN)
  return state


def permute(
  index: np.ndarray, size: int, seed: int, epoch: np.ndarray
) -> np.ndarray:
  """A pseudo-random permutation of 0..size-1, one for each (seed, epoch).

  A Feistel network over a grid of a x b >= size cells, a close to b: each
  half-round adds a hash of one coordinate to the other (mod its range), which
  can be undone, so the whole is a bijection of the grid. Cells past `size` are
  walked on from until they land inside. Memory does not grow with `size`.

  Args:
    index: int64 array [n] of places in the epoch, 0 <= index < size.
    size: how many rows an epoch has.
    seed: the seed of the order.
    epoch: int64 array [n]: a batch may cross an epoch.

  Returns:
    int64 array [n] of row numbers.
  """
  rows = int(np.ceil(np.sqrt(size)))
  columns = -(-size // rows)
  key = keys(seed, 1, epoch)
  x = np.array(index, np.int64)
  inside = np.zeros(x.shape, bool)
  while not inside.all():
    moved = _feistel(x, rows, columns, key)
    x = np.where(inside, x, moved)
    inside = x < size
  return x


def _feistel(
  x: np.ndarray, rows: int, columns: int, key: np.ndarray
) -> np.ndarray:
  """One pass of the network: a bijection of 0..rows*columns-1 per key."""
  left, right = np.divmod(x, columns)
  for round_ in range(_FEISTEL_ROUNDS):
    salt = np.uint32((round_ * 0x85EBCA6B + 0xC2B2AE35) & 0xFFFFFFFF)
    if round_ % 2:
      left = (left + mix(mix(right.astype(np.uint32) + salt) ^ key)) % rows
    else:
      right = (right + mix(mix(left.astype(np.uint32) + salt) ^ key)) % columns
  return left * columns + right


def text_hash(text: str) -> int:
  """64 bits that identify a document, whatever the process or platform."""
  data = text.encode('utf-8', 'surrogatepass')
  return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), 'little')


def short_hash(*parts: object) -> str:
  """12 hexadecimal digits naming the `repr` of plain values."""
  return hashlib.sha256(repr(parts).encode()).hexdigest()[:12]
