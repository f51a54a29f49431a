# SPDX-License-Identifier: Apache-2.0
"""Span corruption: T5's exact counts, METRO-T5's measured statistics."""

import collections
import itertools

import numpy as np
import pytest
from scipy import stats

from metro_jax import data
from metro_jax.data import masking, span_corruption, spans, vocabulary_training
from metro_jax.data import vocabularies as v
from metro_jax.errors import UserError

STYLES = span_corruption.STYLES


def runs(mask: np.ndarray) -> list[int]:
  """Lengths of the runs of True."""
  return [len(list(g)) for inside, g in itertools.groupby(mask) if inside]


def exact(sizes, width, rate=0.15, mean=3.0, seed=0):
  index = np.arange(len(sizes))
  sizes = np.asarray(sizes)
  return spans.exact(sizes, width, rate, mean, seed, 0 * index, index)


def scattered(size, rows, rate=0.15, seed=0):
  index = np.arange(rows)
  sizes = np.full(rows, size)
  return spans.scattered(sizes, size, rate, seed, 0 * index, index)


def test_t5s_numbers_for_inputs_of_512():
  noise, count = spans.exact_counts(np.array(568), 0.15, 3.0)
  assert (noise, count) == (85, 28)
  assert 568 - noise == 483
  assert data.row_length(512) == 568 + 2  # [CLS] and [SEP], not used.
  assert data.target_length(512) == 114
  assert data.target_length(512, targets='all') == 568 + 1


def test_exact_spans_have_exact_counts():
  sizes = np.array([0, 1, 2, 3, 5, 10, 37, 100, 100])
  masks = exact(sizes, 100)
  noise, count = spans.exact_counts(sizes, 0.15, 3.0)
  for row, size in enumerate(sizes):
    assert masks[row].sum() == noise[row]
    assert len(runs(masks[row])) == count[row]
    assert not masks[row, size:].any() and not masks[row, 0]
    if size > 1:
      assert masks[row, size - 1]  # Rest and noise alternate, noise last.
  assert noise.tolist() == [0, 0, 1, 1, 1, 2, 6, 15, 15]
  assert count.tolist() == [0, 0, 1, 1, 1, 1, 2, 5, 5]
  assert (masks[-1] != masks[-2]).any()


def test_exact_spans_are_uniform_over_all_divisions():
  """10 tokens, 4 of them in 2 spans: 3 ways to cut noise, 5 to cut the rest."""
  count = 6000
  masks = exact(np.full(count, 10), 10, rate=0.4, mean=2.0)
  seen = collections.Counter(tuple(m) for m in masks)
  assert len(seen) == 15
  assert stats.chisquare(list(seen.values())).pvalue > 1e-3


def test_scattered_spans_have_the_measured_statistics():
  """Those of the public code, for rows of n = 512 tokens.

  12.9 % masked, merged spans of 3.24 tokens, inputs of 0.927 n and targets of
  0.186 n tokens, ends and specials counted.
  """
  rows, n = 2000, 512
  masked, empty = scattered(n, rows)
  lengths = [length for row in masked for length in runs(row)]
  sentinels = len(lengths) + empty.sum()
  # Half a unit of the last printed digit, and 4 standard errors.
  error = 4 * masked.mean(axis=1).std() / rows**0.5
  assert abs(masked.mean() - 0.129) < 0.0005 + error
  error = 4 * np.std(lengths) / len(lengths) ** 0.5
  assert abs(np.mean(lengths) - 3.24) < 0.005 + error
  # One token in 512 is 0.002.
  inputs = ((~masked).sum() + sentinels) / (rows * n)
  targets = (masked.sum() + sentinels + rows) / (rows * n)
  assert abs(inputs - 0.927) < 0.0025
  assert abs(targets - 0.186) < 0.0025


def test_scattered_spans_begin_anywhere_and_wrap():
  masked, empty = scattered(50, 4000)
  share = masked.mean(axis=0)
  error = (masked.mean() / 4000) ** 0.5
  assert np.abs(share - share.mean()).max() < 5 * error
  before = np.roll(masked, 1, axis=1)
  assert not (empty & masked).any()
  assert not (empty[:, 1:] & before[:, 1:]).any()
  assert empty.any()
  # An input is never longer than its row.
  begins = masked & ~np.pad(masked[:, :-1], ((0, 0), (1, 0)))
  assert ((begins | empty).sum(axis=1) <= masked.sum(axis=1)).all()


@pytest.mark.parametrize('size', [24, 32, 128])
def test_scattered_spans_keep_to_their_limits(size):
  """What array sizes and the number of sentinels rely on."""
  masked, empty = scattered(size, 20000)
  begins = masked & ~np.pad(masked[:, :-1], ((0, 0), (1, 0)))
  spans_seen = (begins | empty).sum(axis=1).max()
  tokens, most = spans.scattered_limits(size, 0.15)
  assert spans_seen <= most and masked.sum(axis=1).max() <= tokens
  # Not much too generous either: all spans at once are rare.
  assert spans_seen >= most - 2


def test_span_masks_hide_as_many_tokens_as_single_masks():
  maskable = np.zeros((3, 40), bool)
  maskable[0, 1:39] = True
  maskable[1, 1:10] = True
  maskable[2, 1:20] = maskable[2, 22:39] = True  # Two packed texts.
  index = np.arange(3)
  drawn = spans.draw_masks(maskable, 0.15, 0, 0 * index, index, 3.0)
  counts = masking.mask_counts(maskable.sum(axis=1), 0.15)
  np.testing.assert_array_equal(drawn.sum(axis=1), counts)
  assert not (drawn & ~maskable).any()
  assert len(runs(drawn[0])) == 2  # 6 tokens, 3 each.


@pytest.fixture(scope='module')
def sentinels(tmp_path_factory, documents):
  path = tmp_path_factory.mktemp('sentinels') / 'vocabulary.model'
  return vocabulary_training.train(documents, path, size=256, extra_ids=12)


@pytest.fixture
def make(text_file, sentinels, tmp_path):
  def make(style='t5', length=48, rows=None, options=None, **changes):
    source = data.TextFiles(
      str(text_file), document='line', validation_fraction=0.1
    )
    defaults = {
      'length': data.row_length(length, style) if rows is None else rows,
      'batch_size': 16,
      'vocabulary': sentinels,
      'data_dir': str(tmp_path / 'root'),
    }
    dataset = data.TokenDataset(source, **(defaults | changes))
    return data.SpanCorruption(dataset, style, **options or {})

  return make


def restored(inputs, targets, sentinels):
  """The original: spans put back where their sentinels stand."""
  pieces, out = {}, []
  for token in targets:
    if token in sentinels:
      pieces[token] = current = []
    else:
      current.append(token)
  for token in inputs:
    out += pieces.pop(token) if token in sentinels else [token]
  assert not pieces
  return out


@pytest.mark.parametrize('style', STYLES)
def test_inputs_and_targets_together_are_the_original(make, style):
  dataset = make(style)
  ids = [dataset.dataset.vocabulary.sentinel_id(i) for i in range(12)]
  several = 0
  for step in range(3):
    batch = dataset.batch(step)
    _, index = dataset.dataset.examples(step)
    original, segments, _, _ = dataset.dataset.originals(index)
    for row in range(16):
      used = batch['encoder_segment_ids'][row] > 0
      inputs = batch['encoder_input_tokens'][row][used].tolist()
      used = batch['decoder_segment_ids'][row] > 0
      targets = batch['decoder_target_tokens'][row][used].tolist()
      want = original[row][segments[row] > 0].tolist()
      if style == 't5':
        assert inputs.pop() == v.SEP and targets.pop() == v.SEP
        want = want[1:-1]
        assert len(inputs) == len(want) - sum(t not in ids for t in targets) + (
          sum(t in ids for t in targets)
        )
      else:
        assert targets.pop() == v.MASK
      there = [t for t in targets if t in ids]
      assert there == ids[: len(there)]  # In order, from the first.
      assert there == [t for t in inputs if t in ids]
      assert restored(inputs, targets, ids) == want
      several += len(there) > 1
  assert several > 10


def test_features(make):
  dataset = make()
  batch = dataset.batch(0)
  assert dataset.length == 48 and dataset.dataset.length == 54
  shapes = {'encoder': (16, 48), 'decoder': (16, dataset.target_length)}
  for name, x in batch.items():
    assert x.shape == shapes[name.split('_')[0]], name
    assert x.dtype == (np.float32 if 'weights' in name else np.int32)
  for stream in shapes:
    segments = batch[f'{stream}_segment_ids']
    place = np.arange(segments.shape[1])
    np.testing.assert_array_equal(
      batch[f'{stream}_positions'], place * segments
    )
  np.testing.assert_array_equal(
    batch['decoder_loss_weights'], batch['decoder_segment_ids']
  )
  # A full row fills input and target to the last place.
  assert batch['encoder_segment_ids'].all(axis=1).any()
  assert batch['decoder_segment_ids'].all(axis=1).any()


@pytest.mark.parametrize('style', STYLES)
def test_a_batch_is_a_pure_function_of_its_step(make, style):
  one, other = make(style), make(style)
  whole = one.batch(7)
  one.batch(8)
  part = other.batch(7, slice(3, 9))
  for name, x in part.items():
    np.testing.assert_array_equal(whole[name][3:9], x)
  again = one.batch(7 + one.steps_per_epoch)
  assert any((whole[n] != again[n]).any() for n in whole)
  assert one.position(9) == one.dataset.position(9)
  assert one.fingerprint == other.fingerprint
  assert one.fingerprint != make(style, seed=1).fingerprint


@pytest.mark.parametrize('style', STYLES)
def test_all_token_targets_are_the_original(make, style):
  dataset = make(style, options={'targets': 'all'})
  batch = dataset.batch(0)
  _, index = dataset.dataset.examples(0)
  want = dataset.dataset.originals(index)[0]
  if style == 't5':  # [SEP] is the end here too.
    want = want[:, 1:]
  np.testing.assert_array_equal(batch['decoder_target_tokens'], want)


def test_validation_fills_up_with_empty_rows(make):
  dataset = make(split='validation', shuffle=False, batch_size=15)
  batch = dataset.batch(dataset.steps_per_epoch - 1)
  last = dataset.dataset.num_examples % 15
  assert last
  for x in batch.values():
    assert x[:last].any() and not x[last:].any()


def test_a_trained_vocabulary_has_the_sentinels_asked_for(make):
  dataset = make(vocabulary=None, vocabulary_size=256, extra_ids=9)
  assert dataset.dataset.vocabulary.extra_ids == 9


def test_bad_input_is_refused(make):
  with pytest.raises(UserError, match='one text per row; set PACKING = False'):
    make(packing=True)
  with pytest.raises(UserError, match=r"style: 'T5' is not one of"):
    make('T5')
  with pytest.raises(UserError, match=r"targets: 'none' is not one of"):
    make(options={'targets': 'none'})
  with pytest.raises(UserError, match=r'12 sentinels are fewer than the 28'):
    make(length=512)
  with pytest.raises(UserError, match=r'inputs of 48 need rows of 54'):
    make(rows=48, options={'length': 48})
  with pytest.raises(UserError, match=r'rate, mean_span: 1\.5'):
    make(options={'rate': 1.5})
