# SPDX-License-Identifier: Apache-2.0
"""LayerNorm, matmul, vocabulary loss and backend choice against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import quick

import pallas_kernels
from pallas_kernels import backend
from pallas_kernels.vocab_cross_entropy import reference

EPS = {jnp.float32: 2.0**-23, jnp.bfloat16: 2.0**-8}


def normal(seed, *shape, dtype=np.float32):
  return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), dtype)


@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize('shape', [(3, 7), (2, 5, 64), (1, 1, 2, 33)])
def test_layer_norm(shape, dtype):
  x = normal(0, *shape, dtype=dtype) * 3 + 5
  scale, bias = normal(1, shape[-1]), normal(2, shape[-1])
  wide = np.asarray(x, np.float64)
  centred = wide - wide.mean(-1, keepdims=True)
  want = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)
  want = want * np.asarray(scale, np.float64) + np.asarray(bias, np.float64)
  got = pallas_kernels.layer_norm(x, scale, bias, 1e-5)
  assert got.dtype == dtype
  # The mean of values near 5 loses a few units in the last place of 5 / 3.
  np.testing.assert_allclose(
    np.asarray(got, np.float64),
    want,
    rtol=EPS[dtype],
    atol=16 * 2.0**-23 * np.abs(want).max() + EPS[dtype],
  )


def test_layer_norm_gradient():
  """The closed form of the gradient, in float64."""
  x, g = normal(0, 4, 16), normal(1, 4, 16)
  scale, bias = normal(2, 16), normal(3, 16)

  @quick.jit
  def pull(g):
    return jax.vjp(
      lambda *a: pallas_kernels.layer_norm(*a, 1e-5), x, scale, bias
    )[1](g)

  w, h, s = (np.asarray(a, np.float64) for a in (x, g, scale))
  centred = w - w.mean(-1, keepdims=True)
  inverse = 1 / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)
  unit, hs = centred * inverse, h * s
  dx = hs - hs.mean(-1, keepdims=True)
  dx = inverse * (dx - unit * (hs * unit).mean(-1, keepdims=True))
  want = dx, (h * unit).sum(0), h.sum(0)
  for a, b in zip(pull(g), want, strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('inputs,outputs', [(8, 24), (24, 8), (16, 16)])
def test_matmul_and_its_gradients(inputs, outputs):
  x, w = normal(0, 3, 5, inputs), normal(1, inputs, outputs)
  g = normal(2, 3, 5, outputs)
  y, pull = jax.vjp(pallas_kernels.matmul, x, w)
  dx, dw = pull(g)
  n = dict(rtol=1e-5, atol=1e-5)
  np.testing.assert_allclose(y, np.asarray(x) @ np.asarray(w), **n)
  np.testing.assert_allclose(dx, np.asarray(g) @ np.asarray(w).T, **n)
  np.testing.assert_allclose(dw, np.einsum('abi,abo->io', x, g), **n)


def test_matmul_weight_gradient_is_not_rounded_to_bfloat16():
  x = jnp.ones((1000, 1), jnp.bfloat16)
  g = jnp.ones((1000, 1), jnp.bfloat16)
  w = jnp.ones((1, 1), jnp.float32)
  _, pull = jax.vjp(pallas_kernels.matmul, x, w)
  dx, dw = pull(g)
  assert (dx.dtype, dw.dtype) == (jnp.bfloat16, jnp.float32)
  assert float(dw[0, 0]) == 1000.0  # bfloat16 has 1000 but not 1001.
  _, pull = jax.vjp(pallas_kernels.matmul, x.at[0].set(2.0), w)
  assert float(pull(g)[1][0, 0]) == 1001.0


def test_vocab_logits_gradients_are_not_rounded_to_bfloat16():
  features = jnp.ones((1001, 1), jnp.bfloat16)
  table, bias = jnp.ones((3, 1), jnp.float32), jnp.zeros(3, jnp.float32)
  y, pull = jax.vjp(pallas_kernels.vocab_logits, features, table, bias)
  d_features, d_table, d_bias = pull(jnp.ones_like(y))
  assert (y.dtype, d_features.dtype) == (jnp.float32, jnp.bfloat16)
  np.testing.assert_array_equal(d_features, 3.0)
  np.testing.assert_array_equal(d_table, 1001.0)
  np.testing.assert_array_equal(d_bias, 1001.0)


def test_targets_logits_are_the_same_on_all_platforms():
  x, targets = normal(0, 2, 3, 11), jnp.array([[0, 10, 4], [4, 4, 7]])
  want = np.take_along_axis(np.asarray(x), np.asarray(targets)[..., None], -1)
  for of_targets in (reference.gathered, reference.summed):
    np.testing.assert_array_equal(of_targets(x, targets), want[..., 0])


def naive_cross_entropy(features, table, bias, targets):
  logits = features @ table.T + bias
  lse = jax.scipy.special.logsumexp(logits, axis=-1)
  hit = jnp.take_along_axis(logits, targets[..., None], -1)[..., 0]
  return lse - hit, lse


def test_vocab_cross_entropy():
  features, table, bias = normal(0, 2, 3, 8), normal(1, 11, 8), normal(2, 11)
  targets = jnp.array([[0, 10, 4], [4, 4, 7]])
  loss, lse, best = quick.jit(pallas_kernels.vocab_cross_entropy)(
    features, table, bias, targets
  )
  logits = np.einsum('bpe,ve->bpv', *map(np.float64, (features, table)))
  logits = logits + np.float64(bias)
  want = np.log(np.exp(logits).sum(-1))
  np.testing.assert_allclose(lse, want, rtol=1e-5)
  hit = np.take_along_axis(logits, np.asarray(targets)[..., None], -1)[..., 0]
  np.testing.assert_allclose(loss, want - hit, rtol=1e-5, atol=1e-5)
  np.testing.assert_array_equal(best, logits.argmax(-1))
  assert best.dtype == jnp.int32


def test_vocab_cross_entropy_gradients_reach_loss_and_lse():
  args = normal(0, 2, 3, 8), normal(1, 11, 8), normal(2, 11)
  targets = jnp.array([[0, 10, 4], [4, 4, 7]])
  weights = normal(3, 2, 2, 3)

  def total(function):
    def f(*args):
      loss, lse = function(*args, targets)[:2]
      return jnp.sum(weights[0] * loss + weights[1] * lse)

    return f

  got, want = (
    quick.jit(jax.grad(total(f), (0, 1, 2)))(*args)
    for f in (pallas_kernels.vocab_cross_entropy, naive_cross_entropy)
  )
  for a, b in zip(got, want, strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_vocab_cross_entropy_is_stable_and_breaks_ties_low():
  table = jnp.array([[0.0], [1e4], [1e4], [-1e4]])
  loss, lse, best = pallas_kernels.vocab_cross_entropy(
    jnp.ones((2, 1)), table, None, jnp.array([1, 3])
  )
  assert best.tolist() == [1, 1]
  # At 1e4 a float32 is 2^-10 from its neighbours.
  np.testing.assert_allclose(lse, 1e4 + np.log([2, 2]), atol=2.0**-10)
  np.testing.assert_allclose(loss, np.array([0, 2e4]) + np.log(2), atol=2.0**-9)


def test_backends(monkeypatch):
  def reference(x):
    return ('reference', x)

  def kernel(x, interpret):
    assert not interpret
    backend.require(x >= 0, 'negative')
    return ('kernel', x)

  here = {jax.default_backend(): kernel}
  call = backend.call
  assert call('op', 'auto', reference, {}, 1) == ('reference', 1)
  # A kernel that never ran on this hardware has to be asked for.
  assert call('op', 'auto', reference, here, 1) == ('reference', 1)
  proven = frozenset({('op', jax.default_backend())})
  monkeypatch.setattr(backend, 'AUTO', proven)
  assert call('op', 'auto', reference, here, 1) == ('kernel', 1)
  assert call('op', 'auto', reference, here, -1) == ('reference', -1)
  assert call('op', 'xla', reference, here, 1) == ('reference', 1)
  assert call('op', 'pallas', reference, here, 1) == ('kernel', 1)
  with pytest.raises(NotImplementedError, match='negative'):
    call('op', 'pallas', reference, here, -1)
  with pytest.raises(NotImplementedError, match='op: no Pallas kernel for'):
    call('op', 'pallas', reference, {}, 1)
  with pytest.raises(ValueError, match='cuda'):
    call('op', 'cuda', reference, here, 1)
