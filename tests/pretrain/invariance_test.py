# SPDX-License-Identifier: Apache-2.0
"""What must not change the numbers: slicing, order, packing, the run so far."""

import dataclasses
import functools
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pretrain_models
import pytest
from jax.tree_util import DictKey

from metro_jax import metrics, pretrain
from metro_jax.pretrain import MaskedTokens

EPS = float(np.finfo(np.float32).eps)


def test_microbatches_add_up_to_the_batch(tiny):
  """Loss, gradients and metrics, with dropout and sampling on."""
  batch = tiny.batch
  normalizers = tiny.model.normalizers(batch)
  # The masks differ from row to row: a mean of means would be another number.
  assert len(set(batch['encoder_loss_weights'].sum(1))) > 1
  (whole, whole_metrics), whole_grads = tiny.gradient(
    tiny.params, batch, tiny.rng
  )
  parts = [
    tiny.gradient(
      tiny.params,
      pretrain_models.rows_of(batch, slice(i, i + 1)),
      tiny.rng,
      normalizers,
    )
    for i in range(pretrain_models.BATCH)
  ]
  (loss, some_metrics), grads = functools.reduce(metrics.merge, parts)
  np.testing.assert_allclose(loss, whole, rtol=64 * EPS)
  expected = metrics.compute(whole_metrics)
  for name, value in metrics.compute(some_metrics).items():
    assert value == pytest.approx(expected[name], rel=64 * EPS), name

  largest = max(np.abs(x).max() for x in jax.tree.leaves(whole_grads))

  def close(path, a, b):
    # Sums of 64 positions' cotangents in another order. A key's bias has no
    # gradient but rounding: that of the kernels it is computed beside.
    no_gradient = path[-2:] == (DictKey('key'), DictKey('bias'))
    scale = largest if no_gradient else np.abs(b).max()
    np.testing.assert_allclose(
      a, b, rtol=0, atol=256 * EPS * scale, err_msg=str(path)
    )

  jax.tree_util.tree_map_with_path(close, grads, whole_grads)


def test_normalizers_are_counts_of_the_batch(tiny):
  counts = tiny.model.normalizers(tiny.batch)
  masks = tiny.batch['encoder_loss_weights'].sum()
  tokens = (tiny.batch['encoder_segment_ids'] > 0).sum()
  assert {k: float(v) for k, v in counts.items()} == {
    'mlm': masks,
    'rtd': tokens,
    'clm': masks,
  }


def test_replacements_follow_the_row_not_its_place(tiny):
  @jax.jit
  def corrupt(params, batch):
    def method(pretrainer, batch):
      masked = MaskedTokens.from_batch(batch, pretrainer.max_predictions)
      return pretrainer.corrupt(masked, 1.0, train=False).tokens

    rngs = {'sample': jax.random.key(1)}
    return tiny.pretrainer.apply(
      {'params': params}, batch, rngs=rngs, method=method
    )

  batch = tiny.batch
  whole = np.asarray(corrupt(tiny.params, batch))
  order = np.array([2, 0, 3, 1])
  np.testing.assert_array_equal(
    corrupt(tiny.params, pretrain_models.rows_of(batch, order)), whole[order]
  )
  # Without ids of their own the rows count from 0.
  unnumbered = {k: x for k, x in batch.items() if k != 'row_ids'}
  np.testing.assert_array_equal(corrupt(tiny.params, unnumbered), whole)
  other = batch | {'row_ids': batch['row_ids'] + np.uint32(100)}
  assert (np.asarray(corrupt(tiny.params, other)) != whole).any()


@dataclasses.dataclass(frozen=True)
class MostLikely:
  """A sampler without chance."""

  carries_gradient: ClassVar[bool] = False
  rides_along: ClassVar[bool] = False

  def __call__(self, logits, seed, rows):
    return pretrain.Sample(jnp.argmax(logits, axis=-1))


def packed_and_apart():
  """Four documents: a row each, and two to a row."""
  apart = pretrain_models.batch(rows=4, seed=1)
  sizes = (apart['encoder_segment_ids'] > 0).sum(1)
  length = int(max(sizes[0] + sizes[1], sizes[2] + sizes[3]))
  packed = {name: np.zeros((2, length), x.dtype) for name, x in apart.items()}
  for row in range(4):
    start = sizes[row - 1] if row % 2 else 0
    for name, x in apart.items():
      piece = x[row, : sizes[row]]
      if name == 'encoder_segment_ids':
        piece = piece + row % 2
      packed[name][row // 2, start : start + sizes[row]] = piece
  return packed, apart


def test_packed_documents_have_the_loss_of_documents_apart(tiny):
  model = pretrain_models.model(sampler=MostLikely(), max_predictions=None)
  loss_fn = pretrain_models.loss(model)
  packed, apart = packed_and_apart()
  results = [
    loss_fn(tiny.params, batch, tiny.rng, 0) for batch in (packed, apart)
  ]
  (loss, some), (expected, others) = results
  np.testing.assert_allclose(loss, expected, rtol=64 * EPS)
  some, others = metrics.compute(some), metrics.compute(others)
  assert some == pytest.approx(others, rel=64 * EPS)
  # And it is the packing that the segments undo: as one document it differs.
  joined = packed | {
    'encoder_segment_ids': np.minimum(packed['encoder_segment_ids'], 1)
  }
  assert abs(float(loss_fn(tiny.params, joined, tiny.rng, 0)[0]) - loss) > 1e-3


def test_padding_changes_nothing(tiny):
  """Longer rows, more slots."""
  batch = tiny.batch
  model = pretrain_models.model(max_predictions=None)
  longer = {
    name: np.pad(x, ((0, 0), (0, 3))) if x.ndim == 2 else x
    for name, x in batch.items()
  }
  long, _ = pretrain_models.loss(model)(tiny.params, longer, tiny.rng, 0)
  short, _ = tiny.loss(tiny.params, batch, tiny.rng, 0)
  np.testing.assert_allclose(long, short, rtol=64 * EPS)


def test_evaluation_depends_on_parameters_and_batch_alone(tiny):
  first = tiny.loss(tiny.params, tiny.batch, jax.random.key(0), 0)
  second = tiny.loss(tiny.params, tiny.batch, jax.random.key(9), 1000)
  jax.tree.map(np.testing.assert_array_equal, first, second)


def test_training_depends_on_the_key(tiny):
  losses = [
    float(tiny.gradient(tiny.params, tiny.batch, jax.random.key(k))[0][0])
    for k in (0, 0, 1)
  ]
  assert losses[0] == losses[1] != losses[2]


def test_rows_of_padding_count_for_nothing(tiny):
  """The last batch of an evaluation is filled up with empty rows."""
  empty = {name: np.zeros_like(x) for name, x in tiny.batch.items()}
  _, values = tiny.loss(tiny.params, tiny.batch, tiny.rng, 0)
  _, of_empty = tiny.loss(tiny.params, empty, tiny.rng, 0)
  both = metrics.compute(metrics.merge(values, of_empty))
  assert both == pytest.approx(metrics.compute(values), rel=4 * EPS)
  (nothing, values), grads = tiny.gradient(tiny.params, empty, tiny.rng)
  assert nothing == 0 and values['loss'].count == 0
  assert all(not np.asarray(g).any() for g in jax.tree.leaves(grads))
