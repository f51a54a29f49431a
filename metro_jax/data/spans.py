# SPDX-License-Identifier: Apache-2.0
"""Random spans of tokens, drawn for a whole batch at once.

Two kinds. T5's are exact: so many tokens in so many spans, never adjacent,
and a row begins with a token that is in none. METRO-T5's T5 baseline scatters
spans of 1 to 5 tokens, which may meet and merge, and adds empty ones.
"""

import numpy as np

from metro_jax.data import hashing, masking

_STREAM = 3  # And up: one for each use of a draw.
_LONGEST = 5  # Of METRO-T5's spans, whose lengths are uniform from 1.
_EMPTY = 0.1  # Of METRO-T5's spans.


def exact_counts(
  sizes: np.ndarray, rate: float, mean: float
) -> tuple[np.ndarray, np.ndarray]:
  """T5's numbers of noise tokens and of spans for rows of `sizes` tokens.

  Halves round up. A row of fewer than two tokens has neither.

  Args:
    sizes: int array [...].
    rate: fraction of the tokens that is noise.
    mean: tokens per span.

  Returns:
    int64 arrays [...].
  """
  tokens = np.minimum(
    masking.mask_counts(sizes, rate), np.maximum(sizes, 1) - 1
  )
  spans = np.floor(tokens / mean + 0.5).astype(np.int64)
  spans = np.clip(spans, 1, np.minimum(tokens, sizes - tokens))
  return tokens, np.where(tokens > 0, spans, 0)


def exact(
  sizes: np.ndarray,
  width: int,
  rate: float,
  mean: float,
  seed: int,
  epoch: np.ndarray,
  index: np.ndarray,
) -> np.ndarray:
  """T5's noise: both noise and the rest are cut at random into as many pieces.

  Args:
    sizes: int array [batch]: how many tokens each row has.
    width: of the result.
    rate: fraction of the tokens that is noise.
    mean: tokens per span.
    seed: of the draws.
    epoch: int array [batch].
    index: int array [batch]: which example each row is.

  Returns:
    bool array [batch, width], True in a span.
  """
  noise, spans = exact_counts(sizes, rate, mean)
  most = int(spans.max(initial=0))
  pieces = [
    _pieces(total, spans, width, most, hashing.keys(seed, stream, epoch, index))
    for total, stream in ((sizes - noise, _STREAM), (noise, _STREAM + 1))
  ]
  # Rest, noise, rest, noise, ...: inside after an odd number of ends.
  ends = np.cumsum(np.stack(pieces, axis=2).reshape(len(sizes), -1), axis=1)
  passed = np.zeros((len(sizes), width + 1), np.int64)
  np.add.at(passed, (np.arange(len(sizes))[:, None], ends), 1)
  inside = np.cumsum(passed[:, :width], axis=1) % 2 == 1
  return inside & (np.arange(width) < sizes[:, None])


def _pieces(
  total: np.ndarray, pieces: np.ndarray, width: int, most: int, key: np.ndarray
) -> np.ndarray:
  """Cuts `total` [batch] items into `pieces` non-empty runs, uniformly.

  Returns:
    int array [batch, most] of lengths, 0 past the number of pieces.
  """
  place = np.arange(width)
  inside = place < total[:, None]
  cuts = masking.choose(inside & (place > 0), np.maximum(pieces - 1, 0), key)
  cell = np.arange(len(total))[:, None] * most + np.cumsum(cuts, axis=1)
  inside = inside & (pieces > 0)[:, None]
  lengths = np.bincount(cell[inside], minlength=len(total) * most)
  return lengths.reshape(len(total), most)


def draw_masks(
  maskable: np.ndarray,
  rate: float,
  seed: int,
  epoch: np.ndarray,
  index: np.ndarray,
  mean: float,
) -> np.ndarray:
  """`masking.draw_masks` in spans of `mean` tokens on average.

  The maskable tokens of a row are taken as if they stood side by side: a span
  may go on behind a token that may not be masked.
  """
  sizes = np.count_nonzero(maskable, axis=1)
  inside = exact(sizes, maskable.shape[1], rate, mean, seed, epoch, index)
  rank = np.maximum(np.cumsum(maskable, axis=1) - 1, 0)
  return np.take_along_axis(inside, rank, axis=1) & maskable


def scattered(
  sizes: np.ndarray,
  width: int,
  rate: float,
  seed: int,
  epoch: np.ndarray,
  index: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
  """The noise of METRO-T5's T5 baseline.

  Of a row's n tokens, rate * 0.9 * n / 3 on average begin a span of 1 to 5
  tokens; spans meet, merge and go on at the row's start. And rate * 0.1 * n
  tokens that neither are in a span nor follow one have an empty span before
  them; not more than the spans save, so that an input is never longer than
  the row.

  Args:
    sizes: int array [batch]: how many tokens each row has.
    width: of the result.
    rate: what fraction of the tokens would be noise if no spans met.
    seed: of the draws.
    epoch: int array [batch].
    index: int array [batch]: which example each row is.

  Returns:
    bool arrays [batch, width]: in a span; an empty span before the token.
  """
  keys = [
    hashing.keys(seed, _STREAM + 2 + use, epoch, index) for use in range(5)
  ]
  place = np.arange(width, dtype=np.int64)
  real = place < sizes[:, None]
  mean = (1 + _LONGEST) / 2

  def count(expected: np.ndarray, key: np.ndarray) -> np.ndarray:
    """Rounded up or down at random, `expected` on average."""
    return np.floor(expected + _uniform(key)).astype(np.int64)

  wanted = count(rate * (1 - _EMPTY) / mean * sizes, keys[0])
  starts = masking.choose(real, np.minimum(wanted, sizes), keys[1])
  draws = hashing.mix(place.astype(np.uint32)[None] + keys[2][:, None])
  length = 1 + (_uniform(draws) * _LONGEST).astype(np.int64)
  masked = np.zeros_like(real)
  rows, columns = np.nonzero(starts)
  for step in range(_LONGEST):
    reach = length[rows, columns] > step
    r, c = rows[reach], columns[reach]
    masked[r, (c + step) % sizes[r]] = True
  before = np.pad(masked[:, :-1], ((0, 0), (1, 0)))
  free = real & ~masked & ~before
  saved = masked.sum(axis=1) - (masked & ~before).sum(axis=1)
  wanted = count(rate * _EMPTY * sizes, keys[3])
  room = np.minimum(free.sum(axis=1), saved)
  empty = masking.choose(free, np.minimum(wanted, room), keys[4])
  return masked, empty


def _uniform(bits: np.ndarray) -> np.ndarray:
  """In [0, 1), from uint32 of any shape."""
  return (bits >> np.uint32(8)) * 2.0**-24


def scattered_limits(size: int, rate: float) -> tuple[int, int]:
  """The most tokens in spans, and the most spans, of `scattered`."""
  starts = int(rate * (1 - _EMPTY) / ((1 + _LONGEST) / 2) * size) + 1
  empty = int(rate * _EMPTY * size) + 1
  # A span that goes on at the row's start is two there.
  return min(starts * _LONGEST, size), starts + 1 + empty
