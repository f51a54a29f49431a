# SPDX-License-Identifier: Apache-2.0
"""Attention and its position bias against NumPy, and its gradients."""

import dataclasses

import jax
import jax.numpy as jnp
import jax.test_util
import numpy as np
import pytest
import quick

import pallas_kernels
from pallas_kernels import PositionBias, random_bits
from pallas_kernels.attention import bias as bias_lib

B, Q, K, H, D = 3, 6, 8, 2, 4


def normal(seed, *shape):
  return jnp.asarray(
    np.random.default_rng(seed).standard_normal(shape), jnp.float32
  )


def inputs():
  return normal(0, B, Q, H, D), normal(1, B, K, H, D), normal(2, B, K, H, D)


def segments():
  q = jnp.array([[1] * 6, [1, 1, 1, 2, 2, 0], [0] * 6])
  k = jnp.array([[1] * 8, [1, 1, 1, 2, 2, 2, 0, 0], [1] * 8])
  return q, k


def full_bias():
  q_first = jnp.zeros((B, Q), bool).at[:, 0].set(True).at[1, 3].set(True)
  k_first = jnp.zeros((B, K), bool).at[:, 0].set(True).at[1, 3].set(True)
  return PositionBias(
    Q,
    K,
    normal(3, H, Q + K - 1),
    normal(4, H, 2),
    q_first,
    k_first,
    normal(5, B, H, Q, K),
  )


def dense_oracle(bias: PositionBias) -> np.ndarray:
  """[B, H, Q, K] by loops: column of [CLS] first, then its row."""
  out = np.zeros((B, H, Q, K))
  bias = jax.tree.map(np.asarray, bias)
  for b, h, q, k in np.ndindex(*out.shape):
    value = bias.vector[h, k - q + Q - 1]
    if bias.reset is not None:
      if bias.k_first[b, k]:
        value = bias.reset[h, 0]
      if bias.q_first[b, q]:
        value = bias.reset[h, 1]
    out[b, h, q, k] = value + bias.untied[b, h, q, k]
  return out


def attention_oracle(q, k, v, bias, q_segments, k_segments, scale, keep, rate):
  out = np.zeros(q.shape)
  q, k, v = (np.asarray(a, np.float64) for a in (q, k, v))
  for b, i, h in np.ndindex(B, Q, H):
    seen = [
      j
      for j in range(K)
      if q_segments[b, i] != 0 and q_segments[b, i] == k_segments[b, j]
    ]
    if not seen:
      continue
    x = np.array(
      [scale * q[b, i, h] @ k[b, j, h] + bias[b, h, i, j] for j in seen]
    )
    p = np.exp(x - x.max())
    p = p / p.sum() * keep[b, h, i, seen] / (1 - rate)
    out[b, i, h] = p @ v[b, seen, h]
  return out


def test_dense_bias():
  bias = full_bias()
  np.testing.assert_allclose(bias.dense(), dense_oracle(bias), rtol=1e-6)
  plain = dataclasses.replace(bias, reset=None)
  np.testing.assert_allclose(plain.dense(), dense_oracle(plain), rtol=1e-6)
  only = PositionBias(Q, K, untied=bias.untied)
  np.testing.assert_array_equal(only.dense(), bias.untied)
  assert PositionBias(Q, K).dense() is None


@pytest.mark.parametrize('q,k', [(1, 1), (1, 5), (5, 1), (4, 4), (3, 7)])
def test_toeplitz_and_its_gradient(q, k):
  vector, g = normal(0, H, q + k - 1), normal(1, H, q, k)
  got, pull = jax.vjp(lambda v: bias_lib.toeplitz(v, q, k), vector)
  index = np.arange(k)[None] - np.arange(q)[:, None] + q - 1
  np.testing.assert_array_equal(got, np.asarray(vector)[:, index])
  want = np.zeros((H, q + k - 1))
  for h, i, j in np.ndindex(H, q, k):
    want[h, j - i + q - 1] += g[h, i, j]
  np.testing.assert_allclose(pull(g)[0], want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('rate', [0.0, 0.3])
def test_attention(rate):
  q, k, v = inputs()
  q_segments, k_segments = segments()
  bias, rows = full_bias(), jnp.array([5, 0, 9], jnp.uint32)
  got = quick.jit(
    lambda q, k, v: pallas_kernels.attention(
      q,
      k,
      v,
      bias=bias,
      q_segments=q_segments,
      kv_segments=k_segments,
      scale=0.7,
      dropout_rate=rate,
      seed=jnp.uint32(3),
      rows=rows,
    )
  )(q, k, v)
  keep = np.ones((B, H, Q, K), bool)
  if rate:
    for b, h in np.ndindex(B, H):
      at = np.arange(Q)[:, None], np.arange(K)
      keep[b, h] = random_bits.keep(rate, 3, int(rows[b]) * H + h, *at)
  want = attention_oracle(
    q, k, v, dense_oracle(bias), q_segments, k_segments, 0.7, keep, rate
  )
  np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)
  assert not np.any(got[2])  # No key allowed: zeros, not NaN.


def test_causal_and_default_scale():
  q, k, v = normal(0, 1, 5, 1, 4), normal(1, 1, 5, 1, 4), normal(2, 1, 5, 1, 4)
  got = pallas_kernels.attention(q, k, v, causal=True)
  for i in range(5):
    x = np.asarray(k)[0, : i + 1, 0] @ np.asarray(q)[0, i, 0] / 2
    p = np.exp(x) / np.exp(x).sum()
    np.testing.assert_allclose(
      got[0, i, 0], p @ np.asarray(v)[0, : i + 1, 0], rtol=1e-5, atol=1e-6
    )


def test_gradients_by_finite_differences():
  q_segments, k_segments = segments()
  bias = full_bias()

  def f(q, k, v, vector, to_cls, untied):
    reset = bias.reset.at[:, 0].set(to_cls)
    return pallas_kernels.attention(
      q,
      k,
      v,
      bias=dataclasses.replace(bias, vector=vector, reset=reset, untied=untied),
      q_segments=q_segments,
      kv_segments=k_segments,
      causal=True,
      dropout_rate=0.2,
      seed=jnp.uint32(3),
      rows=jnp.arange(B),
    )

  args = (*inputs(), bias.vector, bias.reset[:, 0], bias.untied)
  jax.test_util.check_grads(
    jax.jit(f), args, order=1, modes=['rev'], eps=1e-2, rtol=2e-3, atol=2e-3
  )


def test_gradient_of_the_cls_row_is_exactly_zero():
  """A shift of a whole row cancels, also where one-sided: not even noise."""
  q, k, v = inputs()

  def f(reset):
    bias = dataclasses.replace(full_bias(), reset=reset)
    return jnp.sum(pallas_kernels.attention(q, k, v, bias=bias) ** 2)

  g = quick.jit(jax.grad(f))(full_bias().reset)
  assert not np.any(g[:, 1]) and np.all(g[:, 0] != 0)
  shifted = full_bias().reset.at[:, 1].add(1.0)
  np.testing.assert_allclose(f(shifted), f(full_bias().reset), rtol=1e-5)


def test_fully_masked_rows_have_finite_gradients():
  q, k, v = inputs()
  q_segments, k_segments = segments()

  def f(q, k, v):
    return jnp.sum(
      pallas_kernels.attention(
        q,
        k,
        v,
        q_segments=q_segments,
        kv_segments=k_segments,
        dropout_rate=0.5,
        seed=jnp.uint32(0),
        rows=jnp.arange(B),
      )
    )

  dq, dk, dv = quick.jit(jax.grad(f, (0, 1, 2)))(q, k, v)
  assert all(np.all(np.isfinite(g)) for g in (dq, dk, dv))
  assert not np.any(dq[2]) and not np.any(dv[2])


def test_large_logits_do_not_overflow():
  q, k, v = inputs()
  got = pallas_kernels.attention(q * 1e4, k * 1e4, v)
  assert np.all(np.isfinite(got))


def test_bfloat16_in_and_out():
  q, k, v = (x.astype(jnp.bfloat16) for x in inputs())
  got = pallas_kernels.attention(q, k, v)
  want = pallas_kernels.attention(*(x.astype(jnp.float32) for x in (q, k, v)))
  assert got.dtype == jnp.bfloat16
  # Weights (sum 1) and the result are each rounded once, at 2^-9.
  bound = 2 * 2.0**-9 * float(jnp.abs(v).max())
  np.testing.assert_allclose(np.float32(got), want, atol=bound)


def test_dropout_does_not_depend_on_how_rows_are_split():
  q, k, v = inputs()
  rows = jnp.array([4, 7, 2], jnp.uint32)

  @quick.jit
  def f(q, k, v, rows):
    return pallas_kernels.attention(
      q, k, v, dropout_rate=0.4, seed=jnp.uint32(1), rows=rows
    )

  whole = f(q, k, v, rows)
  part = f(q[1:2], k[1:2], v[1:2], rows[1:2])
  np.testing.assert_allclose(whole[1:2], part, rtol=1e-6, atol=1e-6)
