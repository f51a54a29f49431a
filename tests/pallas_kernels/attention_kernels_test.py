# SPDX-License-Identifier: Apache-2.0
"""Attention kernels, interpreted, against the reference."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import quick

import pallas_kernels
from pallas_kernels import PositionBias, backend
from pallas_kernels.attention import KERNELS, gpu, tpu, tpu_logits

# Half the distance between neighbours.
ROUNDING = {jnp.float32: 2.0**-24, jnp.bfloat16: 2.0**-8}
B, H, D = 2, 2, 16
PLATFORMS = sorted(KERNELS)


def normal(seed, *shape, dtype=jnp.float32):
  return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), dtype)


def inputs(queries, keys, dtype):
  """Arguments that are differentiated, and the rest."""
  rng = np.random.default_rng(9)
  q, k, v, g = (
    normal(i, B, n, H, D, dtype=dtype)
    for i, n in enumerate((queries, keys, keys, queries))
  )

  def packed(n):
    # Row 0: two segments, then padding. Row 1: one segment. [CLS] is first.
    segments = np.ones((B, n), np.int32)
    segments[0, n // 2 :] = 2
    segments[0, n - n // 5 :] = 0
    first = np.zeros((B, n), bool)
    first[:, 0] = first[0, n // 2] = True
    return jnp.asarray(segments), jnp.asarray(first)

  (q_segments, q_first), (k_segments, k_first) = packed(queries), packed(keys)
  vector = jnp.asarray(rng.standard_normal((H, queries + keys - 1)))
  bias = PositionBias(
    queries,
    keys,
    vector.astype(jnp.float32),
    normal(8, H, 2),
    q_first,
    k_first,
  )
  how = {
    'q_segments': q_segments,
    'kv_segments': k_segments,
    'dropout_rate': jnp.float32(0.3),
    'seed': jnp.uint32(5),
    'rows': jnp.array([7, 2], jnp.uint32),
  }
  return (q, k, v, bias.vector, bias.reset), bias, how, g


def run(platform, args, bias, how, g, causal=False):
  """Result, then cotangents of q, k, v, vector and reset."""
  name = 'xla' if platform is None else 'pallas'

  def f(q, k, v, vector, reset):
    full = bias and dataclasses.replace(bias, vector=vector, reset=reset)
    return pallas_kernels.attention(
      q, k, v, bias=full, causal=causal, backend=name, **how
    )

  @quick.jit
  def both(args, g):
    y, pull = jax.vjp(f, *args)
    return y, *pull(g)

  with backend.target(platform or 'cpu', interpret=True):
    return both(args, g)


def compare(got, want, dtype, queries, keys):
  """What differs by roundings of sums of so many terms, and of bfloat16.

  Tiles add in another order; in bfloat16 either side rounds probabilities or
  cotangents of logits before it multiplies them, and then the result.
  """
  eps = ROUNDING[dtype]
  terms = (keys, keys, queries, queries, B * queries, B * queries)
  for name, a, b, n in zip(
    ('y', 'dq', 'dk', 'dv', 'd_vector', 'd_reset'), got, want, terms,
    strict=False,  # Without a bias there are fewer.
  ):  # fmt: skip
    if a is None and b is None:
      continue  # No scalars of [CLS].
    assert a.dtype == b.dtype and a.shape == b.shape, name
    a, b = np.float64(a), np.float64(b)
    atol = (16 * 2.0**-24 * n**0.5 + 4 * eps) * max(1, np.abs(b).max())
    np.testing.assert_allclose(a, b, rtol=0, atol=atol, err_msg=name)


@pytest.fixture
def blocks(monkeypatch):
  """Small tiles of unequal sides."""
  tiles = gpu.Tiles((32, 16), (16, 32), (32, 16), 16)
  monkeypatch.setattr(gpu, '_tiles', lambda q: tiles)
  monkeypatch.setattr(tpu, '_BLOCK', 16)
  monkeypatch.setattr(tpu_logits, 'LANES', 16)


# Queries, keys, dtype, causal. The causal one has no scalars of [CLS].
CASES = {
  'float32': (40, 40, jnp.float32, False),
  'bfloat16': (37, 45, jnp.bfloat16, False),
  'causal': (37, 19, jnp.float32, True),
}


@functools.cache
def wanted(case):
  return run(None, *arguments(case))


def arguments(case):
  queries, keys, dtype, causal = CASES[case]
  args, bias, how, g = inputs(queries, keys, dtype)
  if causal:
    args = (*args[:4], None)
    bias = dataclasses.replace(bias, q_first=None, k_first=None)
  return args, bias, how, g, causal


@pytest.mark.parametrize('case', quick.cases(CASES, slow=('causal',)))
@pytest.mark.parametrize('platform', PLATFORMS)
def test_forward_and_gradients(case, platform, blocks):
  queries, keys, dtype, causal = CASES[case]
  got = run(platform, *arguments(case))
  # A weight that only one of them dropped would stand out.
  compare(got, wanted(case), dtype, queries, keys)
  # Padding queries see nothing; a [CLS] row's own scalar has no gradient.
  assert not np.any(np.asarray(got[0], np.float32)[0, -3:])
  if not causal:
    assert not np.any(got[-1][:, 1]) and np.all(got[-1][:, 0] != 0)


@pytest.mark.parametrize('platform', PLATFORMS)
def test_plain_attention(platform, blocks):
  """No bias, no segments, no dropout."""
  args, _, _, g = inputs(20, 20, jnp.float32)
  args = (*args[:3], None, None)
  got, want = (run(p, args, None, {}, g)[:4] for p in (platform, None))
  compare(got, want, jnp.float32, 20, 20)


@pytest.mark.parametrize('platform', PLATFORMS)
def test_nothing_of_queries_by_keys_in_memory(platform, blocks):
  args, bias, how, g = inputs(96, 96, jnp.float32)

  def whole(platform):
    jaxpr = jax.make_jaxpr(lambda a, g: run(platform, a, bias, how, g))(args, g)
    return [s for s in shapes(jaxpr.jaxpr) if s[-2:] == (96, 96)]

  assert whole(None) and not whole(platform)


def shapes(jaxpr):
  """Of the results of all equations, except those inside a kernel."""
  for equation in jaxpr.eqns:
    yield from (v.aval.shape for v in equation.outvars)
    if equation.primitive.name != 'pallas_call':
      for sub in jax.tree.leaves(
        equation.params, is_leaf=lambda x: hasattr(x, 'jaxpr')
      ):
        sub = getattr(sub, 'jaxpr', sub)
        if hasattr(sub, 'eqns'):
          yield from shapes(sub)


@pytest.mark.parametrize('platform', PLATFORMS)
def test_what_is_not_supported_is_refused(platform):
  q = jnp.ones((1, 4, 1, 24))
  untied = PositionBias(4, 4, untied=jnp.ones((1, 1, 4, 4)))
  with backend.target(platform, interpret=True):
    with pytest.raises(NotImplementedError, match='untied'):
      pallas_kernels.attention(
        q[..., :16], q[..., :16], q[..., :16], bias=untied, backend='pallas'
      )
    reason = 'head widths.*not 24'
    if platform == 'tpu':
      q, reason = jnp.ones((1, 4000, 1, 16)), '4000 keys'
    with pytest.raises(NotImplementedError, match=reason):
      pallas_kernels.attention(q, q, q, backend='pallas')
