# SPDX-License-Identifier: Apache-2.0
"""The counter hash against its written layout, and its statistics."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import quick

from pallas_kernels import dropout, random_bits

MASK = 0xFFFFFFFF


def mix(x: int) -> int:
  """The layout of the module docstring, in Python integers."""
  x ^= x >> 16
  x = x * 0x7FEB352D & MASK
  x ^= x >> 15
  x = x * 0x846CA68B & MASK
  return x ^ x >> 16


def oracle(seed: int, plane: int, row: int, col: int) -> int:
  k = mix(seed ^ mix(plane + 0x9E3779B9 & MASK))
  return mix(mix((row * 0x9E3779B1 & MASK) ^ k) + col & MASK)


def test_bits_follow_the_layout():
  rng = np.random.default_rng(0)
  points = rng.integers(0, 2**32, (50, 4), dtype=np.uint32)
  points[0] = 0
  points[1] = MASK
  got = random_bits.bits(*points.T)
  assert got.dtype == jnp.uint32
  assert got.tolist() == [oracle(*map(int, p)) for p in points]


def test_bits_are_pinned():
  """Literal values: a kernel written years from now must give these."""
  assert int(random_bits.bits(0, 0, 0, 0)) == oracle(0, 0, 0, 0)
  assert int(random_bits.bits(0, 0, 0, 0)) == PINNED[0]
  assert int(random_bits.bits(1, 2, 3, 4)) == PINNED[1]


PINNED = (1106484830, 2882570220)


def test_uniform_is_high_bits():
  u = random_bits.uniform(7, 1, np.arange(1000)[:, None], np.arange(100))
  assert float(u.min()) >= 0.0 and float(u.max()) < 1.0
  want = [oracle(7, 1, 5, c) >> 8 for c in range(100)]
  np.testing.assert_array_equal(np.asarray(u[5]) * 2**24, want)
  # Mean of n uniforms: standard deviation 1 / sqrt(12 n); 5 of them.
  assert abs(float(u.mean()) - 0.5) < 5 / (12 * u.size) ** 0.5


@pytest.mark.parametrize('rate', [0.0, 0.1, 0.5, 0.9, 1.0])
def test_rate_traced_or_not_gives_one_mask(rate):
  def mask(rate):
    return random_bits.keep(rate, 3, 4, np.arange(64)[:, None], np.arange(512))

  static, traced = mask(rate), jax.jit(mask)(rate)
  np.testing.assert_array_equal(static, traced)
  n = static.size
  error = abs(float(static.mean()) - (1 - rate))
  assert error <= 5 * (rate * (1 - rate) / n) ** 0.5 + 2.0**-23


def test_neighbours_are_independent():
  """Products of centred bits along each coordinate average to zero."""
  at = np.meshgrid(*[np.arange(n) for n in (4, 16, 64, 64)], indexing='ij')
  x = np.asarray(random_bits.uniform(*at)) - 0.5
  for axis in range(4):
    a, b = np.take(x, range(x.shape[axis] - 1), axis), np.diff(x, axis=axis)
    product = a * (a + b) * 12  # Unit variance under independence.
    assert abs(product.mean()) < 5 / product.size**0.5


def test_fold_gives_other_seeds():
  seeds = {int(random_bits.fold(5, i)) for i in range(1000)}
  assert len(seeds) == 1000


def test_dropout_drops_scales_and_keeps_dtype():
  x = jnp.ones((8, 32, 64), jnp.bfloat16)
  drop = quick.jit(dropout, static_argnums=1)
  y = drop(x, 0.25, jnp.uint32(1), jnp.arange(8))
  assert y.dtype == x.dtype
  values = set(np.unique(np.asarray(y, np.float32)).tolist())
  assert values == {0.0, float(jnp.bfloat16(1 / 0.75))}
  kept = np.asarray(y != 0)
  assert kept[2, 3].tolist() == [oracle(1, 2, 3, e) >= 2**30 for e in range(64)]


def test_dropout_mask_depends_on_coordinates_only():
  """Other batch splits, lengths and widths give the same mask."""
  x = jnp.ones((6, 10, 20))
  rows = jnp.array([3, 9, 1, 0, 4, 7])
  drop = quick.jit(dropout)
  whole = drop(x, 0.3, jnp.uint32(5), rows)
  parts = [
    drop(x[i::2, :7, :13], 0.3, jnp.uint32(5), rows[i::2]) for i in (0, 1)
  ]
  for i in (0, 1):
    np.testing.assert_array_equal(whole[i::2, :7, :13], parts[i])


def test_dropout_gradient_is_the_mask():
  x = jax.random.normal(jax.random.key(0), (2, 3, 8))

  def f(x, rate):
    return dropout(x, rate, jnp.uint32(5), jnp.arange(2))

  g = quick.jit(jax.grad(lambda x: f(x, 0.5).sum()))(x)
  want = quick.jit(f, static_argnums=1)(jnp.ones_like(x), 0.5)
  np.testing.assert_array_equal(g, want)


def test_rate_zero_and_one():
  x = jax.random.normal(jax.random.key(0), (2, 3, 8))
  assert dropout(x, 0.0, jnp.uint32(5), jnp.arange(2)) is x
  ends = jax.jit(dropout)
  np.testing.assert_array_equal(ends(x, 0.0, jnp.uint32(5), jnp.arange(2)), x)
  assert not np.any(ends(x, 1.0, jnp.uint32(5), jnp.arange(2)))


def test_gumbel_is_finite_and_monotonic_in_the_bits():
  """At the ends of the range, where one in 2^24 would round to infinity."""
  words = jnp.array(
    [0, 1, 2, 2**8, 2**31, 2**32 - 2**24, 2**32 - 1], jnp.uint32
  )
  noise = np.asarray(random_bits.gumbel(words), np.float64)
  assert np.all(np.isfinite(noise)) and np.all(np.diff(noise) <= 0)
  u = ((np.asarray(words, np.float64) // 2) + 0.5) * 2.0**-31
  want = -np.log(-np.log1p(-np.minimum(u, 1 - 2.0**-24)))
  # 1 - u is 2^-8 at the last but one, and off by up to 2^-25.
  np.testing.assert_allclose(noise, want, rtol=1e-5, atol=2.0**-17)
