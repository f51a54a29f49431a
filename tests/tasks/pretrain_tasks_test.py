# SPDX-License-Identifier: Apache-2.0
"""The SeqIO registry: names, stock converter, same rules as TokenDataset."""

import itertools
import os
import subprocess
import sys

import numpy as np
import pytest
import seqio
import tensorflow as tf

import tasks
from metro_jax import data
from metro_jax.data import (
  seqio_preprocessors,
  seqio_text,
  sources,
  vocabulary_training,
)
from metro_jax.errors import UserError

NAMES = (
  'metro_docstrings',
  'metro_text',
  'metro_wikipedia',
  'metro_bookcorpus',
  'metro_wikibook',
  'metro_c4',
  'metro_openwebtext',
  'metro_ccnews',
  'metro_160gb',
)
TEXTS = [f'{i} the people of the water ' * (1 + i % 7) for i in range(40)]


@pytest.fixture(scope='module')
def own_task(tmp_path_factory):
  """A registered task over a text file, with a vocabulary of its own."""
  folder = tmp_path_factory.mktemp('own')
  path = folder / 'own.txt'
  path.write_text('\n'.join(TEXTS))
  model = folder / 'own.model'
  vocabulary = vocabulary_training.train(TEXTS, model, size=140)
  source = data.TextFiles(str(path), document='line', validation_fraction=0.25)
  tasks.pretrain.text_task('metro_own', source)
  before = os.environ.get('METRO_VOCABULARY')
  os.environ['METRO_VOCABULARY'] = str(model)
  yield source, vocabulary
  seqio.TaskRegistry.remove('metro_own')
  if before is None:
    del os.environ['METRO_VOCABULARY']
  else:
    os.environ['METRO_VOCABULARY'] = before


def converted(length, pack, seed=0, split='train'):
  return list(
    seqio.get_dataset(
      'metro_own',
      {'inputs': length, 'targets': length},
      dataset_split=split,
      shuffle=False,
      feature_converter=seqio.EncoderFeatureConverter(mask_id=4, pack=pack),
      num_epochs=1,
      seed=seed,
    ).as_numpy_iterator()
  )


def test_names_are_registered():
  assert set(NAMES) <= set(seqio_text.names())


@pytest.mark.parametrize('name', NAMES)
def test_tasks_are_built_for_the_cache(name):
  provider = seqio.get_mixture_or_task(name)
  mixture = isinstance(provider, seqio.Mixture)
  for task in provider.tasks if mixture else [provider]:
    steps = [type(p) for p in task.preprocessors]
    assert steps.count(seqio.CacheDatasetPlaceholder) == 1
    assert {'train', 'validation'} <= set(task.splits)
    assert set(task.output_features) == {'inputs', 'targets'}
    before = steps.index(seqio.CacheDatasetPlaceholder)
    after = task.preprocessors[before + 1 :]
    assert after == [seqio_preprocessors.chunk, seqio_preprocessors.mask]


@pytest.mark.parametrize('pack', [False, True])
@pytest.mark.parametrize('length', [16, 48])
def test_stock_converter(own_task, pack, length):
  source, vocabulary = own_task
  found, masks = [], 0
  for row in converted(length, pack):
    targets, inputs = row['encoder_target_tokens'], row['encoder_input_tokens']
    weights = row['encoder_loss_weights'].astype(bool)
    assert len(targets) == length
    assert (inputs[weights] == 4).all()
    assert np.array_equal(inputs[~weights], targets[~weights])
    assert not np.isin(targets[weights], [0, 2, 3]).any()
    bounds = [*np.flatnonzero(targets == 2).tolist(), length]
    for start, end in itertools.pairwise(bounds):
      part, chosen = targets[start:end], weights[start:end]
      text = part[~np.isin(part, [0, 2, 3])]
      assert chosen.sum() == max(1, np.floor(0.15 * len(text) + 0.5))
      found.append(tuple(text))
      masks += chosen.sum()
  expected = []
  for text in source.documents('train'):
    ids, body = vocabulary.encode(text), length - 2
    expected += [
      tuple(ids[i : i + body])
      for i in range(0, len(ids), body)
      if len(ids[i : i + body]) > 1
    ]
  assert sorted(found) == sorted(expected)
  assert masks > 0


def test_masks_follow_the_seed(own_task):
  first, again, other = (
    np.stack([r['encoder_input_tokens'] for r in converted(32, False, seed)])
    for seed in (0, 0, 1)
  )
  assert np.array_equal(first, again)
  assert not np.array_equal(first, other)


def test_text_comes_back_from_the_registry(own_task):
  source, _vocabulary = own_task
  for split in ('train', 'validation'):
    found = list(sources.Registered('metro_own').documents(split))
    assert found == list(source.documents(split))
  assert len(found) > 0


def test_token_dataset_from_a_registered_task(own_task, tmp_path):
  source, vocabulary = own_task
  options = dict(length=16, batch_size=4, vocabulary=vocabulary, shuffle=False)
  for split in ('train', 'validation'):
    by_name, by_files = (
      data.TokenDataset(origin, split, data_dir=str(tmp_path), **options)
      for origin in ('metro_own', source)
    )
    assert by_name.num_examples == by_files.num_examples
    for step in range(by_name.steps_per_epoch):
      a, b = by_name.batch(step), by_files.batch(step)
      for name in a:
        assert np.array_equal(a[name], b[name])


def test_a_corpus_that_is_not_prepared(tmp_path, monkeypatch):
  monkeypatch.setenv('TFDS_DATA_DIR', str(tmp_path))
  for name in ('metro_c4', 'metro_wikipedia', 'metro_wikibook'):
    with pytest.raises(UserError, match='TFDS_DATA_DIR') as caught:
      next(sources.Registered(name).documents('train'))
    assert '\n' not in str(caught.value)
  assert not list(tmp_path.iterdir())  # Nothing was begun to be downloaded.


def test_unknown_names_and_splits(own_task):
  with pytest.raises(UserError, match='metro_wikibook'):
    next(sources.Registered('metro_nothing').documents())
  with pytest.raises(UserError, match='validation'):
    next(sources.Registered('metro_own').documents('test'))


def test_errors_of_a_python_source_come_through(tmp_path):
  path = tmp_path / 'bad.jsonl'
  path.write_text('{"text": "x"}\n{oops\n')
  tasks.pretrain.text_task('metro_bad', data.TextFiles(str(path)))
  try:
    with pytest.raises(UserError, match='line 2: not JSON'):
      list(sources.Registered('metro_bad').documents())
  finally:
    seqio.TaskRegistry.remove('metro_bad')


def test_text_of_the_environment(tmp_path, monkeypatch):
  with pytest.raises(UserError, match='METRO_TEXT_FILES'):
    sources.resolve('metro_text')
  path = tmp_path / 'a.txt'
  path.write_text('one\ntwo\n')
  monkeypatch.setenv('METRO_TEXT_FILES', str(path))
  monkeypatch.setenv('METRO_TEXT_DOCUMENT', 'line')
  assert list(sources.resolve('metro_text').documents()) == ['one', 'two']


def test_the_embedded_corpus_needs_no_tensorflow():
  code = (
    "import sys\nfor n in ('tensorflow', 'seqio'): sys.modules[n] = None\n"
    'from metro_jax import data\n'
    "print(data.TokenDataset('metro_docstrings', 'validation', length=128,"
    ' batch_size=8, shuffle=False).num_examples)\n'
  )
  done = subprocess.run(
    [sys.executable, '-c', code], check=True, capture_output=True, text=True
  )
  assert int(done.stdout) > 300


@pytest.fixture
def records(tmp_path):
  """A registered task over 100 TFRecords of three texts each."""
  for index in range(100):
    with tf.io.TFRecordWriter(f'{tmp_path}/{index:02}.tfrecord') as writer:
      for number in range(3):
        text = tf.train.BytesList(value=[f'{index}.{number} water'.encode()])
        feature = {'text': tf.train.Feature(bytes_list=text)}
        example = tf.train.Example(features=tf.train.Features(feature=feature))
        writer.write(example.SerializeToString())
  source = seqio.TFExampleDataSource(
    {'train': f'{tmp_path}/*.tfrecord'},
    {'text': tf.io.FixedLenFeature([], tf.string)},
  )
  seqio.TaskRegistry.add(
    'metro_records', source=source, preprocessors=[], output_features={}
  )
  yield tmp_path
  seqio.TaskRegistry.remove('metro_records')


def test_one_broken_tfrecord_in_a_hundred_costs_its_rest(records, capsys):
  whole = list(seqio_text.documents('metro_records', 'train'))
  assert len(set(whole)) == 300
  for index in (7, 8):
    path = records / f'{index:02}.tfrecord'
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1  # In the second of three.
    if index == 7:
      path.write_bytes(data)
  found = list(seqio_text.documents('metro_records', 'train'))
  assert set(whole) - set(found) == {'7.1 water', '7.2 water'}
  assert '07.tfrecord is broken' in capsys.readouterr().err
  path.write_bytes(data)
  with pytest.raises(UserError, match='of 100 files 1 may be') as error:
    list(seqio_text.documents('metro_records', 'train'))
  assert '\n' not in str(error.value)
