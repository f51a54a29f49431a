# SPDX-License-Identifier: Apache-2.0
"""Streams that are damaged, unfinished, of others; what cannot be written."""

import pathlib
import shutil

import corruption_models as tiny
import numpy as np
import pytest

from metro_jax import pretrain
from metro_jax.data import stream_files, vocabulary_training
from metro_jax.errors import UserError
from metro_jax.training import checks


@pytest.fixture(scope='module')
def other(tmp_path_factory) -> pathlib.Path:
  """The same text with another vocabulary."""
  folder = tmp_path_factory.mktemp('other')
  path = tiny.write_text(folder)
  vocabulary_training.train(
    path.read_text().split('\n'), folder / 'vocabulary.model', size=140
  )
  return folder


def test_another_vocabulary_is_refused(place, stream, other):
  with pytest.raises(UserError, match=r'VOCABULARY: .* another vocabulary'):
    tiny.opened(stream, vocabulary=str(other / 'vocabulary.model'))
  tiny.opened(stream, vocabulary=str(place / 'vocabulary.model'))
  # A run that was begun with another one, and an auxiliary that was.
  (other / 'run').mkdir()
  shutil.copy(other / 'vocabulary.model', other / 'run')
  with pytest.raises(UserError, match='is not the vocabulary of this dataset'):
    checks.check_assets(tiny.opened(stream), other / 'run')
  with pytest.raises(UserError, match='is not the vocabulary of this dataset'):
    tiny.write(place, tiny.datasets(other), 'refused')


def change(path: pathlib.Path) -> None:
  content = bytearray(path.read_bytes())
  content[-5] ^= 1
  path.write_bytes(content)


@pytest.mark.parametrize(
  'name, damage, message',
  [
    ('epoch-001/00002.npy', change, 'epoch-001/00002.npy was altered'),
    ('originals/00000.npy', change, 'originals/00000.npy was altered'),
    (
      'epoch-000/00001.npy',
      lambda p: p.write_bytes(p.read_bytes()[:-1]),
      'epoch-000/00001.npy is cut short',
    ),
    ('epoch-002/00000.npy', pathlib.Path.unlink, 'is missing'),
    (
      'manifest.json',
      lambda p: p.write_text(p.read_text()[:50]),
      'manifest.json cannot be read',
    ),
    ('manifest.json', pathlib.Path.unlink, 'is not complete'),
    ('vocabulary.model', change, 'vocabulary'),
  ],
)
def test_damage_is_named(stream, tmp_path, name, damage, message):
  copy = tmp_path / 'copy'
  shutil.copytree(stream, copy)
  damage(copy / 'train' / name)
  with pytest.raises(UserError, match=message) as caught:
    tiny.opened(copy)
  assert '\n' not in str(caught.value)


def test_what_was_not_read_at_first_is_read_when_used(
  stream, tmp_path, monkeypatch
):
  monkeypatch.setattr(stream_files, '_CHECKED', 1)
  shutil.copytree(stream, tmp_path / 'copy')
  change(tmp_path / 'copy' / 'train' / 'epoch-001' / '00001.npy')
  dataset = tiny.opened(tmp_path / 'copy')
  dataset.batch(0)
  with pytest.raises(UserError, match=r'00001\.npy was altered'):
    dataset.corrupted(np.array([1]), np.array([0]))


def test_streams_that_do_not_fit_the_run(stream, tmp_path):
  rows = tiny.opened(stream).num_examples
  good = tiny.EPOCHS * rows // tiny.BATCH
  tiny.opened(stream, steps=good, length=tiny.LENGTH, max_predictions=2)
  for options, message in (
    ({'steps': good + 1}, f'holds 3 epochs of {rows} rows.* ask for 4'),
    ({'length': 32}, 'set LENGTH = 16'),
    ({'max_predictions': 1}, 'MASK_RATE'),
    ({'batch_size': 0}, 'BATCH_SIZE'),
    ({'split': 'test'}, 'holds no stream'),
  ):
    with pytest.raises(UserError, match=message):
      tiny.opened(stream, **options)
  with pytest.raises(UserError, match='ask for 4'):
    tiny.opened(stream).batch(good + 1)
  assert (
    tiny.opened(stream).fingerprint != tiny.opened(stream, seed=4).fingerprint
  )


@pytest.mark.parametrize(
  'changes, message',
  [
    ({'model': lambda: tiny.online(auxiliary=None)}, 'AUXILIARY is None'),
    (
      {'model': lambda: tiny.online(objectives=(pretrain.MLM(),))},
      'OBJECTIVES: MLM trains the auxiliary',
    ),
    ({'model': lambda: tiny.online(share=('token',))}, "SHARE: .* 'token'"),
    ({'partial_checkpoint': lambda: None}, 'AUX_CHECKPOINT_PATH is not set'),
    ({'epochs': lambda: 0}, 'EPOCHS is 0'),
    ({'process_index': lambda: 1}, 'go together'),
  ],
)
def test_what_cannot_be_corrupted_ahead(place, text, params, changes, message):
  made = {name: make() for name, make in changes.items()}
  with pytest.raises(UserError, match=message):
    tiny.write(place, text, 'refused', **made)
  assert not (place / 'refused').exists()
