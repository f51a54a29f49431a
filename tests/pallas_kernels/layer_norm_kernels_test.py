# SPDX-License-Identifier: Apache-2.0
"""LayerNorm kernels, interpreted, against the reference."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pallas_kernels
from pallas_kernels import backend
from pallas_kernels.layer_norm import gpu, tpu

ROUNDING = {jnp.float32: 2.0**-24, jnp.bfloat16: 2.0**-8}


def run(platform, args, g):
  name = 'xla' if platform is None else 'pallas'

  def f(*args):
    return pallas_kernels.layer_norm(*args, 1e-5, backend=name)

  with backend.target(platform or 'cpu', interpret=True):
    y, pull = jax.vjp(f, *args)
    return y, *pull(g)


@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize('platform', ['gpu', 'tpu'])
@pytest.mark.parametrize(
  'shape,tile', [((2, 5, 33), 128), ((70, 24), 64), ((1, 128), 4096)]
)
def test_forward_and_gradients(shape, tile, platform, dtype, monkeypatch):
  monkeypatch.setattr(gpu, '_TILE', tile)
  monkeypatch.setattr(gpu, '_PROGRAMS', 3)  # Several tiles a program.
  monkeypatch.setattr(tpu, '_BLOCK', 16 * shape[-1])
  rng = np.random.default_rng(0)
  x, g = (jnp.asarray(rng.normal(i, 2, shape), dtype) for i in (5, 0))
  scale, bias = (jnp.asarray(rng.normal(1, 1, shape[-1:])) for _ in range(2))
  args = (x, scale.astype(jnp.float32), bias.astype(jnp.float32))
  got, want = run(platform, args, g), run(None, args, g)
  rows = x.size // shape[-1]
  # Sums of n terms in another order differ by sqrt(n) roundings or so; what
  # is stored in x's dtype is rounded once more.
  for a, b, terms, eps in (
    (got[0], want[0], shape[-1], ROUNDING[dtype]),
    (got[1], want[1], shape[-1], ROUNDING[dtype]),
    (got[2], want[2], rows, 0),
    (got[3], want[3], rows, 0),
  ):
    assert a.dtype == b.dtype and a.shape == b.shape
    a, b = np.float64(a), np.float64(b)
    atol = 16 * 2.0**-24 * terms**0.5 * max(1, np.abs(b).max())
    np.testing.assert_allclose(a, b, rtol=2 * eps, atol=atol)


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
