# SPDX-License-Identifier: Apache-2.0
"""Random bits by counter: a hash of (seed, plane, row, column).

The bits of an element depend on its coordinates and on nothing else: not on
the backend, the tiling, the sharding, the microbatch or the order of calls.
So the backward pass draws the mask of the forward pass again instead of
keeping it, and a kernel can be compared with its reference exactly.

The layout, which every implementation must reproduce bit for bit (all uint32,
arithmetic modulo 2^32):

  mix(x):  x ^= x >> 16;  x *= 0x7feb352d;  x ^= x >> 15;  x *= 0x846ca68b;
           x ^= x >> 16
  k    = mix(seed ^ mix(plane + 0x9e3779b9))
  bits = mix(mix(row * 0x9e3779b1 ^ k) + column)

  keep     = bits >= uint32(float32(rate) * 2^32)
  uniform  = (bits >> 8) * 2^-24, in [0, 1)
  gumbel   = -log(-log1p(-min(((bits >> 1) + 1/2) * 2^-31, 1 - 2^-24)))

Who uses which coordinates (`row_id` is the row's index in the global batch):

  op                     plane                   row       column
  attention probability  row_id * heads + head   query     key
  hidden states [B,L,E]  row_id                  position  feature
  categorical sample     row_id                  draw      0, 1
  Gumbel-max sample      row_id                  draw      vocabulary id
"""

import jax
import jax.numpy as jnp
from jax import lax

# What a row's index is multiplied by.
ROW = 0x9E3779B1


def mix(x: jax.Array) -> jax.Array:
  """A bijection of uint32 in which every input bit reaches every output bit."""
  x = x ^ (x >> 16)
  x = x * jnp.uint32(0x7FEB352D)
  x = x ^ (x >> 15)
  x = x * jnp.uint32(0x846CA68B)
  return x ^ (x >> 16)


def fold(seed: jax.Array, index: int | jax.Array) -> jax.Array:
  """A new uint32 seed for each `index` (a layer, a place of use)."""
  return mix(_u32(seed) ^ mix(_u32(index) + jnp.uint32(0x9E3779B9)))


def bits(
  seed: jax.Array, plane: jax.Array, row: jax.Array, col: jax.Array
) -> jax.Array:
  """Random uint32 of the coordinates' broadcast shape."""
  return mix(row_key(seed, plane, row) + _u32(col))


def keep(
  rate: float | jax.Array,
  seed: jax.Array,
  plane: jax.Array,
  row: jax.Array,
  col: jax.Array,
) -> jax.Array:
  """Boolean mask, False with probability `rate` (which may be traced)."""
  return bits(seed, plane, row, col) >= threshold(rate)


def never(rate: float | jax.Array) -> bool:
  """Whether a rate is a Python 0, known before tracing: it costs nothing."""
  return isinstance(rate, int | float) and rate == 0


def threshold(rate: float | jax.Array) -> jax.Array:
  """`rate` of the uint32 range; 2^32 itself does not fit, its float is cut."""
  scaled = jnp.asarray(rate, jnp.float32) * 2.0**32
  return jnp.clip(scaled, 0.0, 2.0**32 - 2.0**8).astype(jnp.uint32)


def keep_scale(rate: float | jax.Array) -> jax.Array:
  """1 / (1 - rate), what survivors are multiplied by; 0 at rate 1."""
  rate = jnp.asarray(rate, jnp.float32)
  return jnp.where(rate < 1.0, 1.0 / jnp.maximum(1.0 - rate, 2.0**-24), 0.0)


def uniform(
  seed: jax.Array, plane: jax.Array, row: jax.Array, col: jax.Array
) -> jax.Array:
  """float32 in [0, 1), multiples of 2^-24."""
  high = bits(seed, plane, row, col) >> 8
  return high.astype(jnp.float32) * jnp.float32(2.0**-24)


def gumbel(bits: jax.Array) -> jax.Array:
  """float32 Gumbel noise from random uint32.

  The uniform number stands where small ones become large noise: float32 is
  fine there, so the tail reaches 22 without steps. Taken from the other end
  it would round to 1 once in 2^24, and -log(-log(1)) is infinite.
  """
  half = (bits >> 1).astype(jnp.int32).astype(jnp.float32) + 0.5
  u = jnp.minimum(half * jnp.float32(2.0**-31), 1.0 - 2.0**-24)
  return -jnp.log(-jnp.log1p(-u))


def row_key(seed: jax.Array, plane: jax.Array, row: jax.Array) -> jax.Array:
  """What `bits` shares along a row: bits = mix(row_key + column)."""
  return mix(_u32(row) * jnp.uint32(ROW) ^ fold(seed, plane))


def iota(shape: tuple[int, ...], axis: int) -> jax.Array:
  """uint32 index along `axis`, of rank len(shape), 1 elsewhere."""
  axis %= len(shape)
  ones = tuple(n if i == axis else 1 for i, n in enumerate(shape))
  return lax.broadcasted_iota(jnp.uint32, ones, axis)


def _u32(x: int | jax.Array) -> jax.Array:
  return jnp.asarray(x).astype(jnp.uint32)
