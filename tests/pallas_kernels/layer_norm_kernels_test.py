# SPDX-License-Identifier: Apache-2.0
"""LayerNorm kernels, interpreted, against the reference."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import quick

import pallas_kernels
from pallas_kernels import backend
from pallas_kernels.layer_norm import gpu, tpu

ROUNDING = {jnp.float32: 2.0**-24, jnp.bfloat16: 2.0**-8}


# Shape, elements of a GPU tile, dtype, and the branch: none, added, dropped.
CASES = {
  'float32': ((70, 24), 64, jnp.float32, None),
  'added': ((1, 128), 4096, jnp.bfloat16, 0.0),
  'dropped': ((3, 37, 33), 512, jnp.float32, 0.3),
  'dropped bfloat16': ((2, 37, 24), 256, jnp.bfloat16, 0.3),
}


def run(platform, args, g, rate):
  """Result, cotangents of x, scale and bias, and of the branch if any."""
  name = 'xla' if platform is None else 'pallas'

  @quick.jit
  def both(args, g, rate):
    def f(x, scale, bias, branch=None):
      drop = {}
      if rate is not None:
        rows = jnp.arange(x.shape[0], dtype=jnp.uint32) * 5
        drop = {'dropout_rate': rate, 'seed': jnp.uint32(3), 'rows': rows}
      return pallas_kernels.layer_norm(
        x, scale, bias, 1e-5, branch=branch, backend=name, **drop
      )

    y, pull = jax.vjp(f, *args)
    return y, *pull(g)

  with backend.target(platform or 'cpu', interpret=True):
    return both(args, g, rate)


def inputs(case):
  shape, _, dtype, rate = CASES[case]
  rng = np.random.default_rng(0)
  x, branch, g = (
    jnp.asarray(rng.normal(i, 2, shape), dtype) for i in (5, 0, 0)
  )
  vectors = (jnp.asarray(rng.normal(1, 1, shape[-1:])) for _ in range(2))
  args = (x, *(v.astype(jnp.float32) for v in vectors))
  return args if rate is None else (*args, branch), g, rate or None


@functools.cache
def wanted(case):
  return run(None, *inputs(case))


@pytest.mark.parametrize('case', CASES)
@pytest.mark.parametrize('platform', ['gpu', 'tpu'])
def test_forward_and_gradients(case, platform, monkeypatch):
  shape, tile, dtype, _ = CASES[case]
  monkeypatch.setattr(gpu, '_TILE', tile)
  monkeypatch.setattr(gpu, '_PROGRAMS', 3)  # Several tiles a program.
  monkeypatch.setattr(tpu, '_BLOCK', 16 * shape[-1])
  args, g, rate = inputs(case)
  got, want = run(platform, args, g, rate), wanted(case)
  rows, eps = g.size // shape[-1], ROUNDING[dtype]
  # Sums of n terms in another order differ by sqrt(n) roundings or so; what
  # is stored in x's dtype is rounded once more. With a branch, the reference
  # rounds survivors, their scale and the sum before it normalizes: by up to
  # 3 eps of the sum, which is 1 + mean / deviation in units of y.
  before = 0 if len(got) == 4 else 3 * eps * (1 + 5 / 2)
  for i, (a, b) in enumerate(zip(got, want, strict=True)):
    summed = i in (2, 3)
    terms = rows if summed else shape[-1]
    assert a.dtype == b.dtype and a.shape == b.shape
    a, b = np.float64(a), np.float64(b)
    atol = (16 * 2.0**-24 + before * summed) * terms**0.5 + before
    atol *= max(1, np.abs(b).max())
    rtol = 0 if summed else 2 * eps
    np.testing.assert_allclose(a, b, rtol=rtol, atol=atol)
  if rate:
    # The cotangent of the branch shows the mask, which is the reference's.
    np.testing.assert_array_equal(got[-1] == 0, want[-1] == 0)
    assert 0.2 < np.mean(got[-1] == 0) < 0.4


def test_too_wide_rows_are_refused_with_the_reason():
  x = jax.ShapeDtypeStruct((2, 40000), jnp.float32)
  v = jax.ShapeDtypeStruct((40000,), jnp.float32)
  for platform in ('gpu', 'tpu'):
    with (
      backend.target(platform, interpret=True),
      pytest.raises(NotImplementedError, match='layer_norm: 40000 features'),
    ):
      jax.eval_shape(
        lambda *a: pallas_kernels.layer_norm(*a, backend='pallas'), x, v, v
      )


def test_other_dtypes_are_refused():
  x, v = jnp.ones((2, 4), jnp.float16), jnp.ones(4)
  with (
    backend.target('gpu', interpret=True),
    pytest.raises(NotImplementedError, match='float16'),
  ):
    pallas_kernels.layer_norm(x, v, v, backend='pallas')
