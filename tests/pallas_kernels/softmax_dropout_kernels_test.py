# SPDX-License-Identifier: Apache-2.0
"""Softmax and dropout kernels, interpreted, against the reference."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import jax.test_util
import numpy as np
import pytest
import quick

import pallas_kernels
from pallas_kernels import PositionBias, backend
from pallas_kernels.softmax_dropout import gpu, tpu

# Half the distance between neighbours.
ROUNDING = {jnp.float32: 2.0**-24, jnp.bfloat16: 2.0**-8}
B, H = 2, 2
PLATFORMS = ('gpu', 'tpu')
ROWS = jnp.array([7, 2], jnp.uint32)
# Queries, keys, dtype, causal, whose untied term: nobody's, the batch's, each
# row's.
CASES = {
  'float32': (37, 45, jnp.float32, False, 0),
  'bfloat16': (40, 40, jnp.bfloat16, False, 1),
  'causal': (21, 21, jnp.float32, True, B),
}


def normal(seed, *shape, dtype=jnp.float32):
  return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), dtype)


def inputs(case):
  """Arguments with a gradient, the others, and a cotangent."""
  queries, keys, dtype, causal, untied = CASES[case]

  def packed(n):
    # Row 0: two segments, then padding. Row 1: one segment. [CLS] is first.
    segments = np.ones((B, n), np.int32)
    segments[0, n // 2 :] = 2
    segments[0, n - n // 5 :] = 0
    first = np.zeros((B, n), bool)
    first[:, 0] = first[0, n // 2] = True
    return jnp.asarray(segments), jnp.asarray(first)

  (q_segments, q_first), (k_segments, k_first) = packed(queries), packed(keys)
  bias = PositionBias(
    queries,
    keys,
    normal(1, H, queries + keys - 1),
    normal(2, H, 2),
    q_first,
    k_first,
    normal(3, untied, H, queries, keys) if untied else None,
  )
  shape = (B, H, queries, keys)
  how = {
    'q_segments': q_segments,
    'kv_segments': k_segments,
    'causal': causal,
    'scale': 0.7,
    'seed': jnp.uint32(5),
    'rows': ROWS,
  }
  args = (normal(0, *shape, dtype=dtype), bias)
  return args, how, normal(4, *shape, dtype=dtype)


def run(platform, case, rate=0.3):
  """Result, then cotangents of logits and bias."""
  args, how, g = inputs(case)
  name = 'xla' if platform is None else 'pallas'

  def f(logits, floats):
    bias = dataclasses.replace(args[1], **floats)
    return pallas_kernels.softmax_dropout(
      logits, bias=bias, backend=name, dropout_rate=rate, **how
    )

  @quick.jit
  def both(logits, floats, g):
    y, pull = jax.vjp(f, logits, floats)
    return y, *pull(g)

  floats = {n: getattr(args[1], n) for n in ('vector', 'reset', 'untied')}
  with backend.target(platform or 'cpu', interpret=True):
    return both(args[0], floats, g)


@functools.cache
def wanted(case):
  return run(None, case, jnp.float32(0.3))


@pytest.mark.parametrize('case', quick.cases(CASES, slow=('float32',)))
@pytest.mark.parametrize('platform', PLATFORMS)
def test_forward_and_gradients(case, platform, monkeypatch):
  """In blocks that end within the rows; and one mask, whatever the blocks."""
  monkeypatch.setattr(gpu, '_TILE', 512)
  monkeypatch.setattr(tpu, '_MAX_ROWS', 16)
  got, want = run(platform, case, jnp.float32(0.3)), wanted(case)
  queries, keys, dtype, *_ = CASES[case]
  eps = ROUNDING[dtype]
  # Sums of so many terms; the cotangents that the bias's gradient sums are
  # rounded to the logits' dtype first.
  terms = {
    'y': keys,
    'd_logits': keys,
    'vector': B * queries,
    'reset': B * queries,
    'untied': B,
  }
  for name, a, b in zip(
    terms,
    (*got[:2], *(got[2][n] for n in ('vector', 'reset', 'untied'))),
    (*want[:2], *(want[2][n] for n in ('vector', 'reset', 'untied'))),
    strict=True,
  ):
    if b is None:
      assert a is None
      continue
    assert a.dtype == b.dtype and a.shape == b.shape, name
    a, b = np.float64(a), np.float64(b)
    roundings = 16 * 2.0**-24 + 2 * eps
    atol = roundings * terms[name] ** 0.5 * max(1, np.abs(b).max())
    np.testing.assert_allclose(a, b, rtol=0, atol=atol, err_msg=name)
  np.testing.assert_array_equal(got[0] == 0, want[0] == 0)
  # Padding queries see nothing; a [CLS] row's own scalar has no gradient.
  assert not np.any(np.asarray(got[0], np.float32)[0, :, -3:])
  assert not np.any(got[2]['reset'][:, 1])


@pytest.mark.parametrize('platform', PLATFORMS)
def test_no_bias_no_mask_no_dropout(platform):
  x, g = normal(0, 1, 1, 24, 20), normal(1, 1, 1, 24, 20)

  @functools.partial(quick.jit, static_argnums=0)
  def both(name):
    f = functools.partial(pallas_kernels.softmax_dropout, backend=name)
    y, pull = jax.vjp(f, x)
    return y, *pull(g)

  with backend.target(platform, interpret=True):
    got, want = both('pallas'), both('xla')
  for a, b in zip(got, want, strict=True):
    np.testing.assert_allclose(a, b, rtol=0, atol=16 * 2.0**-24 * 20**0.5)


@pytest.mark.slow
def test_gradient_by_finite_differences():
  args, how, _ = inputs('causal')
  at = {n: x[..., :5] for n, x in how.items() if n.endswith('segments')}
  bias = PositionBias(5, 5, args[1].vector[:, 16:25])

  def f(logits, vector):
    full = dataclasses.replace(bias, vector=vector)
    return pallas_kernels.softmax_dropout(
      logits, bias=full, dropout_rate=0.2, backend='pallas', **(how | at)
    )

  with backend.target('tpu', interpret=True):
    jax.test_util.check_grads(
      jax.jit(f),
      (args[0][..., :5, :5], bias.vector),
      order=1,
      modes=['rev'],
      eps=1e-2,
      rtol=2e-3,
      atol=2e-3,
    )


@pytest.mark.parametrize('platform', PLATFORMS)
def test_rows_that_do_not_fit_are_refused(platform):
  x = jax.ShapeDtypeStruct((1, 1, 2, 20000), jnp.float32)
  with (
    backend.target(platform, interpret=True),
    pytest.raises(NotImplementedError, match='softmax_dropout: 20000 keys'),
  ):
    jax.eval_shape(
      functools.partial(pallas_kernels.softmax_dropout, backend='pallas'), x
    )
