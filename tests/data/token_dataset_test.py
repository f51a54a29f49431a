# SPDX-License-Identifier: Apache-2.0
"""Batches: right features, pure in (seed, step), the same however split."""

import dataclasses

import numpy as np
import pytest

from metro_jax import data
from metro_jax.data import packing
from metro_jax.errors import UserError

LENGTH = 24


@pytest.fixture
def make(text_file, vocabulary, tmp_path):
  def make(**options) -> data.TokenDataset:
    source = data.TextFiles(
      str(text_file), document='line', validation_fraction=0.1
    )
    defaults = dict(length=LENGTH, batch_size=16, vocabulary=vocabulary)
    return data.TokenDataset(
      source, **(defaults | options), data_dir=str(tmp_path / 'root')
    )

  return make


def assert_equal(a, b):
  assert a.keys() == b.keys()
  for name in a:
    assert a[name].dtype == b[name].dtype, name
    assert np.array_equal(a[name], b[name]), name


@pytest.mark.parametrize('packed', [False, True])
def test_features(make, packed):
  dataset = make(packing=packed)
  batch = dataset.batch(0)
  assert {name: (v.shape, v.dtype.name) for name, v in batch.items()} == {
    'encoder_input_tokens': ((16, LENGTH), 'int32'),
    'encoder_target_tokens': ((16, LENGTH), 'int32'),
    'encoder_loss_weights': ((16, LENGTH), 'float32'),
    'encoder_segment_ids': ((16, LENGTH), 'int32'),
    'encoder_positions': ((16, LENGTH), 'int32'),
  }
  inputs = batch['encoder_input_tokens']
  targets = batch['encoder_target_tokens']
  masked = batch['encoder_loss_weights'] == 1
  segments = batch['encoder_segment_ids']
  assert (inputs[masked] == 4).all()
  assert np.array_equal(inputs[~masked], targets[~masked])
  assert not np.isin(targets[masked], [0, 2, 3, 4]).any()
  assert np.array_equal(targets == 0, segments == 0)
  text = ~np.isin(targets, [0, 2, 3])
  expected = np.maximum(1, np.floor(0.15 * text.sum(1) + 0.5))
  assert np.array_equal(masked.sum(1), expected)
  assert masked.sum(1).max() <= dataset.max_predictions
  for row in range(16):
    check_row(targets[row], segments[row], batch['encoder_positions'][row])
  if packed:
    assert segments.max() > 1
  else:
    assert segments.max() == 1


def check_row(targets, segments, positions):
  """Segments are 1, 2, .. side by side, each [CLS] .. [SEP] from position 0."""
  at = 0
  for segment in range(1, segments.max() + 1):
    n = np.count_nonzero(segments == segment)
    assert (segments[at : at + n] == segment).all()
    assert targets[at] == 2
    assert targets[at + n - 1] == 3
    assert np.array_equal(positions[at : at + n], np.arange(n))
    at += n
  assert (segments[at:] == 0).all()
  assert (positions[at:] == 0).all()


@pytest.mark.parametrize('packed', [False, True])
def test_an_epoch_holds_every_chunk_once(make, packed, documents, vocabulary):
  dataset = make(packing=packed, split='all', batch_size=7)
  found = []
  for n in range(dataset.num_examples):
    step, row = divmod(n, 7)
    batch = dataset.batch(step, slice(row, row + 1))
    for line in packing.unpack(batch)['encoder_target_tokens']:
      found.append(tuple(line[line > 4]))
  expected = []
  for text in documents:
    ids = vocabulary.encode(text)
    chunks = [ids[i : i + 22] for i in range(0, len(ids), 22)]
    expected += [tuple(c) for c in chunks if len(c) > 1]
  clean = [tuple(i for i in c if i > 4) for c in expected]
  assert sorted(found) == sorted(clean)


@pytest.mark.parametrize('packed', [False, True])
@pytest.mark.parametrize('shuffle', [False, True])
def test_rows_are_slices_of_the_batch(make, packed, shuffle):
  dataset = make(packing=packed, shuffle=shuffle)
  for step in (0, 3, dataset.steps_per_epoch - 1, dataset.steps_per_epoch):
    whole = dataset.batch(step)
    for hosts in (1, 2, 4, 16):
      size = 16 // hosts
      parts = [
        dataset.batch(step, slice(i * size, i * size + size))
        for i in range(hosts)
      ]
      joined = {k: np.concatenate([p[k] for p in parts]) for k in whole}
      assert_equal(joined, whole)
    assert_equal(
      dataset.batch(step, slice(1, 16, 4)),
      {k: v[1:16:4] for k, v in whole.items()},
    )


@pytest.mark.parametrize('packed', [False, True])
def test_any_step_in_any_order_and_process(make, packed):
  one, two = make(packing=packed), make(packing=packed)
  assert one.fingerprint == two.fingerprint
  steps = [0, 5, 10**6, 10**9, 2**40, 1]
  for step, batch in zip(steps, map(one.batch, steps), strict=True):
    assert_equal(batch, two.batch(step))


def test_epoch_crossing(make):
  """The stream of rows does not care where batches begin."""
  small, large = make(batch_size=1), make(batch_size=13)
  size = small.num_examples
  first = size // 13 - 1
  seen = []
  for step in range(first, first + 3):
    batch = large.batch(step)
    for row in range(13):
      n = step * 13 + row
      assert_equal(
        {k: v[row : row + 1] for k, v in batch.items()}, small.batch(n)
      )
      seen.append(n // size)
    assert large.position(step) == {
      'epoch': step * 13 // size,
      'example': step * 13 % size,
    }
  assert set(seen) == {0, 1}


def test_each_epoch_has_its_order_and_masks(make):
  dataset = make(batch_size=1)
  size = dataset.num_examples

  def epoch(number):
    batches = [dataset.batch(number * size + i) for i in range(size)]
    rows = [b['encoder_target_tokens'][0].tobytes() for b in batches]
    masks = {
      row: b['encoder_loss_weights'][0].tobytes()
      for row, b in zip(rows, batches, strict=True)
      if b['encoder_segment_ids'].sum() == LENGTH
    }
    return rows, masks

  rows0, masks0 = epoch(0)
  rows1, masks1 = epoch(1)
  assert sorted(rows0) == sorted(rows1)
  assert sum(a == b for a, b in zip(rows0, rows1, strict=True)) < size / 10
  same = [masks0[row] == masks1[row] for row in masks0]
  assert len(same) > 100
  assert np.mean(same) < 0.05  # 3 of 22: one in 1,540 by chance.


def test_seed_changes_order_and_masks(make):
  a, b = make(seed=0), make(seed=1)
  assert a.fingerprint != b.fingerprint
  assert not np.array_equal(
    a.batch(0)['encoder_target_tokens'], b.batch(0)['encoder_target_tokens']
  )


def test_evaluation_order(make):
  dataset = make(shuffle=False, split='validation')
  steps = dataset.steps_per_epoch
  batches = [dataset.batch(i) for i in range(steps)]
  rows = np.concatenate([b['encoder_target_tokens'] for b in batches])
  used = rows.any(axis=1)
  assert used.sum() == dataset.num_examples < len(rows)
  assert used[: dataset.num_examples].all()  # Empty rows only at the end.
  last = batches[-1]
  empty = ~last['encoder_target_tokens'].any(axis=1)
  for name, value in last.items():
    assert not value[empty].any(), name
  for i in range(steps):
    assert_equal(dataset.batch(steps * 5 + i), batches[i])
  assert dataset.position(steps) == {'epoch': 0, 'example': 0}


def test_train_and_validation_are_parts_of_one_cache(make):
  train, validation = make(), make(split='validation')
  assert train.cache.path == validation.cache.path
  both = make(split='all')
  assert train.num_examples + validation.num_examples == both.num_examples
  a = {train.rows.starts[i] for i in range(train.num_examples)}
  b = {validation.rows.starts[i] for i in range(validation.num_examples)}
  assert not a & b


def test_mask_special(make):
  dataset = make(mask_special=True, batch_size=64)
  chosen = [dataset.batch(i)['encoder_loss_weights'][:, 0] for i in range(5)]
  assert 0.05 < np.mean(chosen) < 0.3
  targets = dataset.batch(0)['encoder_target_tokens']
  weights = dataset.batch(0)['encoder_loss_weights']
  assert not weights[targets == 0].any()
  assert weights[targets == 3].any()


def test_trains_a_vocabulary_when_none_is_given(text_file, tmp_path):
  def make(source):
    return data.TokenDataset(
      source, length=LENGTH, vocabulary_size=250, data_dir=str(tmp_path)
    )

  source = data.TextFiles(str(text_file), document='line')
  dataset = make(source)
  assert dataset.vocab_size == 250
  assert make(dataclasses.replace(source)).vocabulary.path == (
    dataset.vocabulary.path
  )
  dataset.save_assets(tmp_path / 'model')
  assert data.Vocabulary(tmp_path / 'model').hash == dataset.vocabulary.hash


def test_fingerprint_tells_what_matters(make, text_file):
  base = make().fingerprint
  changed = [
    make(length=16),
    make(batch_size=8),
    make(mask_rate=0.2),
    make(packing=True),
    make(split='validation'),
    make(shuffle=False),
    make(mask_special=True),
  ]
  assert len({base, *(d.fingerprint for d in changed)}) == 8
  text_file.touch()  # Another time of change, the same text.
  assert make().fingerprint == base
  with text_file.open('a') as file:
    file.write('and more people\n')
  assert make().fingerprint != base


def test_unpack_keeps_masks_and_tokens(make):
  batch = make(packing=True, length=96).batch(2)
  apart = packing.unpack(batch)
  assert apart['encoder_segment_ids'].max() == 1
  assert len(apart['encoder_segment_ids']) > 16
  for name in ('encoder_input_tokens', 'encoder_target_tokens'):
    assert np.array_equal(
      np.bincount(apart[name].ravel(), minlength=256)[1:],
      np.bincount(batch[name].ravel(), minlength=256)[1:],
    )
  total = apart['encoder_loss_weights'].sum()
  assert total == batch['encoder_loss_weights'].sum()
  for i in range(len(apart['encoder_segment_ids'])):
    check_row(
      *(
        apart[k][i]
        for k in (
          'encoder_target_tokens',
          'encoder_segment_ids',
          'encoder_positions',
        )
      )
    )


@pytest.mark.parametrize(
  'options, message',
  [
    (dict(split='test'), 'validation'),
    (dict(length=4), 'LENGTH'),
    (dict(batch_size=0), 'BATCH_SIZE'),
    (dict(mask_rate=1.5), 'MASK_RATE'),
  ],
)
def test_bad_arguments(make, options, message):
  with pytest.raises(UserError, match=message):
    make(**options)


def test_no_validation_text(tmp_path, vocabulary):
  path = tmp_path / 'one.txt'
  path.write_text('the people of the water')
  with pytest.raises(UserError, match="no text in split 'validation'"):
    data.TokenDataset(
      data.TextFiles(str(path)),
      'validation',
      16,
      2,
      vocabulary=vocabulary,
      data_dir=str(tmp_path),
    )
  with pytest.raises(UserError, match='SOURCE'):
    data.TokenDataset(3, data_dir=str(tmp_path))
