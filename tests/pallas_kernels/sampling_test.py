# SPDX-License-Identifier: Apache-2.0
"""Both samplers draw from softmax(logits)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import quick

from pallas_kernels import sampling

SAMPLERS = {
  f: quick.jit(getattr(sampling, f)) for f in ('categorical', 'gumbel')
}


@pytest.mark.parametrize('sampler', SAMPLERS)
@pytest.mark.parametrize('size', [3, 128, 300])
def test_frequencies(sampler, size):
  """Pearson's chi-square over ids expected at least five times."""
  batch, draws = 40, 500
  row = 2 * np.random.default_rng(size).standard_normal(size)
  logits = jnp.broadcast_to(jnp.float32(row), (batch, draws, size))
  ids = SAMPLERS[sampler](logits, jnp.uint32(9), jnp.arange(batch))
  assert ids.dtype == jnp.int32 and ids.shape == (batch, draws)
  n = batch * draws
  expected = np.exp(row) / np.exp(row).sum() * n
  counts = np.bincount(np.asarray(ids).ravel(), minlength=size)
  assert counts.size == size
  often = expected >= 5
  observed = np.append(counts[often], counts[~often].sum())
  wanted = np.append(expected[often], max(expected[~often].sum(), 1e-9))
  chi = ((observed - wanted) ** 2 / wanted)[: None if wanted[-1] > 1 else -1]
  freedom = chi.size - 1
  assert chi.sum() < freedom + 5 * (2 * freedom) ** 0.5


@pytest.mark.parametrize('sampler', SAMPLERS)
def test_draws_do_not_depend_on_how_rows_are_split(sampler):
  logits = jax.random.normal(jax.random.key(0), (4, 5, 200))
  rows = jnp.array([7, 3, 100, 0])
  draw = SAMPLERS[sampler]
  whole = draw(logits, jnp.uint32(1), rows)
  for i in range(4):
    part = draw(logits[i : i + 1], jnp.uint32(1), rows[i : i + 1])
    np.testing.assert_array_equal(whole[i : i + 1], part)


@pytest.mark.parametrize('sampler', SAMPLERS)
def test_certain_id_is_always_drawn(sampler):
  for sure in (0, 127, 128, 199):
    logits = np.full((8, 100, 200), -1e9, np.float32)
    logits[..., sure] = 0.0
    ids = SAMPLERS[sampler](logits, jnp.uint32(1), jnp.arange(8))
    assert np.all(ids == sure)


def test_ids_of_no_weight_are_never_drawn():
  """Also at the ends of blocks, where rounding could fall over the edge."""
  logits = np.zeros((64, 200, 256), np.float32)
  logits[..., 100:128] = logits[..., 250:] = -np.inf
  draw = SAMPLERS['categorical']
  ids = np.asarray(draw(logits, jnp.uint32(1), jnp.arange(64)))
  assert not np.any((ids >= 100) & (ids < 128)) and ids.max() < 250
