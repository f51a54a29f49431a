# SPDX-License-Identifier: Apache-2.0
"""Vocabulary loss kernels, interpreted, against the reference."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import quick

import pallas_kernels
from pallas_kernels import backend
from pallas_kernels.vocab_cross_entropy import chunked, gpu, tpu

# Half the distance between neighbours.
ROUNDING = {jnp.float32: 2.0**-24, jnp.bfloat16: 2.0**-8}
TOKENS, WIDTH, IDS = (3, 30), 48, 150


def inputs(dtype):
  rng = np.random.default_rng(0)
  x = jnp.asarray(rng.standard_normal((*TOKENS, WIDTH)), dtype)
  table = rng.standard_normal((IDS, WIDTH)).round(1).astype(np.float32)
  bias = rng.standard_normal(IDS).astype(np.float32)
  table[100], bias[100] = table[20], bias[20]  # Equals: the lower id wins.
  x = x.at[0, 0].set(table[20].astype(dtype))
  targets = rng.integers(0, IDS, TOKENS)
  targets[0, :2] = 0, IDS - 1
  return x, jnp.asarray(table), jnp.asarray(bias), jnp.asarray(targets)


def run(platform, args, g, draw=None):
  """Loss, log-sum-exp, cotangents of features, table and bias, and ids."""
  with backend.target(platform or 'cpu', interpret=True):
    return compiled(platform)(args, g, draw)


@functools.cache
def compiled(platform):
  """For all tests: they have the blocks of the fixture in common."""
  name = 'xla' if platform is None else 'pallas'

  @quick.jit
  def both(args, g, draw):
    def f(x, table, bias):
      out = pallas_kernels.vocab_cross_entropy(
        x, table, bias, args[3], draw=draw, backend=name
      )
      return out[:2], out[2:]

    out, pull, ids = jax.vjp(f, *args[:3], has_aux=True)
    return *out, *pull(g), ids

  return both


@pytest.fixture(params=['gpu', 'tpu'])
def platform(request, monkeypatch):
  """Small blocks: ragged ends of tokens and ids, several parts and chunks."""
  monkeypatch.setattr(gpu, '_TOKENS', 64)
  monkeypatch.setattr(gpu, '_IDS', 32)
  monkeypatch.setattr(gpu, '_SAMPLED_IDS', 16)
  monkeypatch.setattr(gpu, '_PROGRAMS', 6)
  monkeypatch.setattr(tpu, '_TOKENS', 64)
  monkeypatch.setattr(tpu, '_IDS', 64)
  monkeypatch.setattr(chunked, '_MIN_CHUNK', 80)
  monkeypatch.setattr(chunked, '_MAX_CHUNK', 80)
  monkeypatch.setattr(chunked, '_ALIGNED', 16)
  return request.param


@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16])
def test_forward_and_gradients(platform, dtype):
  """With bfloat16 also a sample of each token, in the same pass."""
  args = inputs(dtype)
  draw = None if dtype == jnp.float32 else sampled(1.0)
  rng = np.random.default_rng(1)
  g = tuple(jnp.asarray(rng.standard_normal(TOKENS), jnp.float32) for _ in 'ab')
  got, want = run(platform, args, g, draw), run(None, args, g, draw)
  np.testing.assert_array_equal(got[-1][0], want[-1][0])
  assert want[-1][0][0, 0] == 20
  eps = ROUNDING[dtype]
  tokens = args[-1].size
  # Logits are sums of WIDTH products of inputs that both take as they are;
  # cotangents of logits are rounded to dtype before they are multiplied.
  logit = 16 * 2.0**-24 * WIDTH**0.5 * 4
  for a, b, terms, rounding in (
    (got[0], want[0], 1, 0),
    (got[1], want[1], 1, 0),
    (got[2], want[2], IDS, eps),
    (got[3], want[3], tokens, eps),
    (got[4], want[4], tokens, 0),
  ):
    assert a.dtype == b.dtype and a.shape == b.shape
    a, b = np.float64(a), np.float64(b)
    atol = (logit + rounding) * terms**0.5 * max(1, np.abs(b).max())
    np.testing.assert_allclose(a, b, rtol=0, atol=atol)


def test_large_gradients_are_not_mixed_up(platform):
  """One token at a time: its cotangent reaches its own features alone."""
  args = inputs(jnp.float32)
  for token in ((0, 1), (2, 29)):
    g = (jnp.zeros(TOKENS).at[token].set(1.0), jnp.zeros(TOKENS))
    dx = np.abs(run(platform, args, g)[2]).sum(-1)
    assert dx[token] > 0.1 and np.count_nonzero(dx) == 1


def sampled(temperature):
  rows = jnp.array([4, 0, 9], jnp.uint32)
  return pallas_kernels.Draw(jnp.uint32(3), rows, jnp.float32(temperature))


def test_samples_are_those_of_the_reference(platform):
  args = inputs(jnp.bfloat16)
  g = (jnp.ones(TOKENS), jnp.zeros(TOKENS))
  for temperature in (1.0, 0.5):
    draw = sampled(temperature)
    got, want = (run(p, args, g, draw) for p in (platform, None))
    np.testing.assert_array_equal(got[-1][1], want[-1][1])
    assert len(set(np.asarray(got[-1][1]).ravel().tolist())) > 5


def test_no_array_of_tokens_by_vocabulary(platform):
  args = inputs(jnp.float32)
  g = (jnp.ones(TOKENS), jnp.ones(TOKENS))
  tokens, ids = args[-1].size, args[1].shape[0]

  def sizes(platform):
    jaxpr = jax.make_jaxpr(lambda *a: run(platform, a[:4], a[4]))(*args, g)
    return [v.aval.shape for v in variables(jaxpr.jaxpr)]

  def whole(shape):
    return len(shape) > 1 and np.prod(shape) >= tokens * ids

  assert any(map(whole, sizes(None)))
  assert not any(map(whole, sizes(platform)))


def variables(jaxpr):
  """Results of all equations, except those inside a kernel."""
  for equation in jaxpr.eqns:
    yield from equation.outvars
    if equation.primitive.name == 'pallas_call':
      continue
    for sub in jax.tree.leaves(
      equation.params, is_leaf=lambda x: hasattr(x, 'jaxpr')
    ):
      if hasattr(sub, 'jaxpr'):
        yield from variables(sub.jaxpr)
      elif hasattr(sub, 'eqns'):
        yield from variables(sub)


def test_widths_that_do_not_fit_are_refused(platform):
  width = 5000 if platform == 'tpu' else 20
  x, table = jnp.ones((1, 1, width)), jnp.ones((8, width))
  with (
    backend.target(platform, interpret=True),
    pytest.raises(NotImplementedError, match=rf'width.*not {width}'),
  ):
    pallas_kernels.vocab_cross_entropy(
      x, table, None, jnp.zeros((1, 1), jnp.int32), backend='pallas'
    )


def test_a_split_vocabulary_needs_the_kernel():
  with pytest.raises(ValueError, match="needs 'pallas'"):
    pallas_kernels.vocab_cross_entropy(
      jnp.ones((1, 4)), jnp.ones((8, 4)), None, jnp.zeros(1, int), axis='tensor'
    )


@pytest.mark.parametrize('tokens,ids', [(1, 100), (10**6, 32768), (4000, 9000)])
def test_chunks_are_small_and_cover_the_vocabulary(tokens, ids):
  size = chunked.chunk_size(tokens, ids, 2)
  assert size % 128 == 0 and size <= max(chunked._MAX_CHUNK, 128)
  chunks = -(-ids // size)
  assert chunks * size - ids < chunks * 128
