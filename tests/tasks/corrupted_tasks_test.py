# SPDX-License-Identifier: Apache-2.0
"""A corrupted stream through SeqIO is the stream."""

import json

import corruption_models
import numpy as np
import pytest
import seqio

import tasks
from metro_jax.data import seqio_corrupted, stream_files, vocabulary_training
from metro_jax.errors import UserError

ROWS, LENGTH, SLOTS, EPOCHS = 21, 12, 3, 2


@pytest.fixture(scope='module')
def stream(tmp_path_factory):
  """Written by hand: two texts in each row, three replaced tokens."""
  folder = tmp_path_factory.mktemp('stream')
  path = corruption_models.write_text(folder)
  vocabulary = vocabulary_training.train(
    path.read_text().split('\n'), folder / 'made.model', size=160
  )
  rng = np.random.default_rng(0)
  text = rng.integers(5, 90, (ROWS, LENGTH)).astype('<u2')
  text[:, [0, 6]], text[:, [5, 10]], text[:, 11] = 2, 3, 0
  for split, epochs in (('train', EPOCHS), ('validation', 1)):
    plan = dict(
      rows=ROWS,
      length=LENGTH,
      slots=SLOTS,
      shard_rows=8,
      vocabulary_size=vocabulary.size,
      epochs=[{'progress': 1.0}] * epochs,
    )
    writer = stream_files.StreamWriter(folder / split, plan, vocabulary)
    for shard in stream_files.shards(writer.plan):
      array = text[shard.rows.start : shard.rows.stop]
      if shard.epoch is not None:
        array = np.zeros(
          (len(shard.rows), SLOTS), stream_files.slot_dtype(LENGTH, 160)
        )
        array['position'] = [1, 4, 8]
        array['token'] = 100 + shard.epoch
      writer.write(shard, array, {})
    assert writer.finish() == 0
  return folder, text


@pytest.fixture
def task(stream):
  folder, text = stream
  tasks.corrupted.corrupted_task('metro_written', str(folder))
  yield text
  seqio.TaskRegistry.remove('metro_written')


def test_every_text_of_every_epoch(task):
  loaded = seqio.get_mixture_or_task('metro_written')
  dataset = loaded.get_dataset(None, 'validation', shuffle=False)
  found = list(dataset.as_numpy_iterator())
  assert len(found) == 2 * ROWS
  for row in range(ROWS):
    first, second = found[2 * row : 2 * row + 2]
    np.testing.assert_array_equal(first['targets'], task[row, :6])
    np.testing.assert_array_equal(second['targets'], task[row, 6:11])
    for example, at in ((first, [1, 4]), (second, [2])):
      for name, token in (('inputs', 100), ('masked', 4)):
        expected = example['targets'].copy()
        expected[at] = token
        np.testing.assert_array_equal(example[name], expected)
  trained = loaded.get_dataset(None, 'train', shuffle=False)
  tokens = [x['inputs'][x['masked'] == 4] for x in trained.as_numpy_iterator()]
  assert len(tokens) == 2 * ROWS * EPOCHS
  assert {int(t[0]) for t in tokens[: 2 * ROWS]} == {100}
  assert {int(t[0]) for t in tokens[2 * ROWS :]} == {101}


def test_features_of_the_model(task):
  lengths = {'inputs': 8, 'targets': 8, 'masked': 8}
  dataset = seqio.get_dataset(
    'metro_written',
    lengths,
    dataset_split='validation',
    shuffle=False,
    feature_converter=seqio_corrupted.CorruptedFeatureConverter(pack=True),
  )
  row = next(dataset.as_numpy_iterator())
  assert row.keys() >= {
    'encoder_input_tokens',
    'encoder_target_tokens',
    'encoder_loss_weights',
  }
  np.testing.assert_array_equal(
    row['encoder_loss_weights'], [0, 1, 0, 0, 1, 0, 0, 0]
  )
  np.testing.assert_array_equal(
    row['encoder_target_tokens'], [*task[0, :6], 0, 0]
  )
  np.testing.assert_array_equal(row['encoder_segment_ids'], [1] * 6 + [0] * 2)


def test_the_stream_of_the_environment(stream, monkeypatch):
  task = seqio.get_mixture_or_task('metro_corrupted')
  monkeypatch.delenv('METRO_STREAM_DIR', raising=False)
  with pytest.raises(UserError, match='set METRO_STREAM_DIR'):
    task.get_dataset(None, 'train')
  monkeypatch.setenv('METRO_STREAM_DIR', str(stream[0]))
  assert len(list(task.get_dataset(None, 'validation', shuffle=False)))
  held = json.loads((stream[0] / 'train' / 'vocabulary.json').read_text())
  assert task.output_features['inputs'].vocabulary.vocab_size == held['size']
