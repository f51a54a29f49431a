# SPDX-License-Identifier: Apache-2.0
"""What a disk can do to a checkpoint, and what is made of it."""

import json
import shutil

import hypothesis
import jax
import numpy as np
import pytest
import toy
from fuzzing import changed, changes, fuzz
from hypothesis import strategies

from metro_jax import training
from metro_jax.errors import UserError
from metro_jax.training import initialization
from metro_jax.training.state import named_leaves


def train(model_dir, steps=6, **overrides):
  options = {
    'model': toy.ToyModel(),
    'train_dataset': toy.ToyDataset(),
    'optimizer': training.adamw(1e-2),
    'checkpoints': training.CheckpointConfig(period=2, keep=2),
    'tensorboard': False,
    'stats_period': 4,
    **overrides,
  }
  return training.train(model_dir=str(model_dir), train_steps=steps, **options)


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
  """Checkpoints at steps 4 and 6, and the result."""
  folder = tmp_path_factory.mktemp('trained')
  return folder, train(folder)


def assert_equal(left, right):
  left, right = named_leaves(left), named_leaves(right)
  assert left.keys() == right.keys()
  for name, value in left.items():
    np.testing.assert_array_equal(value, right[name], err_msg=name)


def test_layout_and_contents(trained):
  folder, result = trained
  assert {p.name for p in folder.glob('checkpoint_*')} == {
    'checkpoint_4',
    'checkpoint_6',
  }
  assert (folder / 'vocabulary.model').read_text() == 'toy of 64'
  saved = json.loads((folder / 'checkpoint_6/dataset/metadata').read_text())
  assert saved['fingerprint'] == toy.ToyDataset().fingerprint
  assert saved['position'] == {'epoch': 2, 'example': 16}
  like = jax.tree.map(np.asarray, result.state.params)
  restored = training.restore_params(str(folder), like)
  assert_equal(restored, result.state.params)


def files_of(folder):
  return sorted(p for p in folder.rglob('*') if p.is_file())


def broken_ways(path):
  data = path.read_bytes()
  yield 'truncated', data[: len(data) // 2]
  yield 'empty', b''
  if data:
    middle = len(data) // 2
    flipped = bytes([data[middle] ^ 1])
    yield 'flipped', data[:middle] + flipped + data[middle + 1 :]


def restore(folder, notify):
  """What a run in this folder would start from."""
  partitioner = training.Partitioner()
  with partitioner.context():
    layout = initialization.make_layout(
      toy.ToyModel(), training.adamw(1e-2), toy.ToyDataset(), partitioner
    )
    checkpointer = training.Checkpointer(
      folder, training.CheckpointConfig(), notify
    )
    restored = checkpointer.restore(layout.state)
    checkpointer.close()
  return restored


@pytest.mark.slow
@hypothesis.settings(fuzz, max_examples=60)
@hypothesis.given(strategies.integers(0, 10**6), changes(b'"shape": [2]'))
def test_any_change_of_the_newest_is_found_or_harmless(
  trained, tmp_path_factory, place, some
):
  folder, result = trained
  copy = tmp_path_factory.mktemp('changed') / 'run'
  shutil.copytree(folder, copy)
  files = files_of(copy / 'checkpoint_6')
  file = files[place % len(files)]
  file.write_bytes(changed(file.read_bytes(), some))
  warnings = []
  restored = restore(copy, warnings.append)
  assert int(restored.state.step) == (4 if warnings else 6), file.name
  if not warnings:
    assert_equal(restored.state.params, result.state.params)
    assert restored.dataset['position'] == {'epoch': 2, 'example': 16}
  shutil.rmtree(copy.parent)


def test_broken_newest_falls_back_with_one_line(trained, tmp_path, capfd):
  """Each file of the newest checkpoint, cut in half, emptied, a bit flipped.

  Either the file does not matter, and step 6 is restored as it was, or step 4
  is, with a line that says so; a wrong value never is.
  """
  folder, _ = trained
  good = {6: restore(folder, print)}
  older = tmp_path / 'older'
  shutil.copytree(folder, older)
  shutil.rmtree(older / 'checkpoint_6')
  good[4] = restore(older, print)
  fell_back = []
  for file in files_of(folder / 'checkpoint_6'):
    name = file.relative_to(folder)
    for way, data in broken_ways(file):
      copy = tmp_path / f'{name.name}_{way}'
      shutil.copytree(folder, copy)
      (copy / name).write_bytes(data)
      warnings = []
      restored = restore(copy, warnings.append)
      step = int(restored.state.step)
      assert step == (4 if warnings else 6), (name, way)
      if warnings:
        fell_back.append(str(name))
        assert len(warnings) == 1, warnings
        assert 'checkpoint_6' in warnings[0], (name, way)
        assert 'falling back to checkpoint_4' in warnings[0]
        assert (copy / 'broken_checkpoint_6').is_dir()
      assert_equal(restored.state.params, good[step].state.params)
      assert restored.dataset == good[step].dataset
      for left, right in zip(restored.window, good[step].window, strict=True):
        np.testing.assert_array_equal(left, right)
      shutil.rmtree(copy)
  assert capfd.readouterr().err == ''  # No tracebacks beside the lines.
  # All that holds values, and the manifests that lead there.
  for part in (
    'state/d/',
    'state/manifest.ocdbt',
    'window/metadata',
    'dataset/metadata',
    'guard/metadata',
  ):
    assert any(part in name for name in fell_back), (part, '\n'.join(fell_back))


def test_run_with_a_broken_newest_ends_as_it_would_have(trained, tmp_path):
  folder, result = trained
  copy = tmp_path / 'copy'
  shutil.copytree(folder, copy)
  (copy / 'checkpoint_6/state/manifest.ocdbt').write_bytes(b'')
  again = train(copy)
  assert_equal(again.state.params, result.state.params)
  assert (copy / 'checkpoint_6').is_dir()


def test_all_broken_is_an_error_and_touches_nothing(trained, tmp_path):
  folder, _ = trained
  copy = tmp_path / 'copy'
  shutil.copytree(folder, copy)
  for name in ('checkpoint_4', 'checkpoint_6'):
    (copy / name / 'window/metadata').write_text('{')
  with pytest.raises(UserError, match='no checkpoint can be read'):
    train(copy)
  assert (copy / 'checkpoint_6').is_dir()


def test_other_data_seed_model_or_vocabulary_are_refused(trained):
  folder, _ = trained

  def refused(words, **overrides):
    with pytest.raises(UserError, match=words) as error:
      train(folder, 8, **overrides)
    assert '\n' not in str(error.value)

  refused('SOURCE', train_dataset=toy.ToyDataset(seed=9))
  refused('RANDOM_SEED', random_seed=1)
  refused(
    r'embedder/token/embedding is \(64, 16\) there and \(64, 32\)',
    model=toy.ToyModel(width=32),
  )
  refused(
    'vocabulary.model is not the vocabulary',
    train_dataset=toy.ToyDataset(vocabulary='other'),
  )
  assert (folder / 'vocabulary.model').read_text() == 'toy of 64'


def test_initial_checkpoint_subset(trained, tmp_path):
  folder, result = trained
  fresh = train(
    tmp_path / 'fresh',
    1,
    random_seed=3,
    optimizer=training.adamw(0.0, weight_decay=0.0),
  )
  started = train(
    tmp_path / 'started',
    1,
    random_seed=3,
    optimizer=training.adamw(0.0, weight_decay=0.0),
    initial_checkpoint_path=str(folder / 'checkpoint_6'),
    initial_parameters=('main/.*',),
  )
  assert_equal(started.state.params['main'], result.state.params['main'])
  assert_equal(started.state.params['embedder'], fresh.state.params['embedder'])
  assert int(started.state.step) == 1


@pytest.mark.parametrize(
  'path, words',
  [
    ('nowhere', 'does not exist'),
    ('.', 'holds no checkpoint'),
  ],
)
def test_initial_checkpoint_missing(tmp_path, path, words):
  with pytest.raises(UserError, match=words):
    train(tmp_path / 'run', initial_checkpoint_path=str(tmp_path / path))


def test_checkpoint_of_one_device_restores_on_eight(tmp_path):
  alone = training.Partitioner(data=8, zero_stage=0)
  split = training.Partitioner(data=2, fsdp=2, tensor=2, zero_stage=3)
  train(tmp_path / 'a', 4, partitioner=alone)
  shutil.copytree(tmp_path / 'a', tmp_path / 'b')
  one = train(tmp_path / 'a', 6, partitioner=alone)
  other = train(tmp_path / 'b', 6, partitioner=split)
  kernel = other.state.params['main']['wi']['kernel']
  assert (
    kernel.addressable_shards[0].data.size == kernel.size // 4
  )  # fsdp and tensor; none free
  # Two steps of fp32 sums in another order, through Adam at rate 1e-2: its
  # update moves by at most the relative error of the gradient, about 1e-6.
  for name, value in named_leaves(one.state.params).items():
    np.testing.assert_allclose(
      value, named_leaves(other.state.params)[name], rtol=0, atol=1e-6
    )
