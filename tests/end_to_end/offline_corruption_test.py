# SPDX-License-Identifier: Apache-2.0
"""A stream written ahead is what the auxiliary would have made in training."""

import os
import pathlib
import signal
import subprocess
import sys
from collections.abc import Callable

import corruption_models as tiny
import jax
import numpy as np
import pytest

from metro_jax import (
  cli,
  data,
  frozen_auxiliary,
  gin_loading,
  metrics,
  pretrain,
)
from metro_jax.data import files
from metro_jax.errors import UserError


def loss_of(model):
  """Compiled (params, batch, rng, step) -> metrics of training."""

  def metrics_of(params, batch, rng, step):
    return model.loss_fn(params, batch, rng, step, train=True)[1]

  options = {'xla_backend_optimization_level': 0}
  compiled = jax.jit(metrics_of, compiler_options=options)
  return lambda *arguments: metrics.compute(compiled(*arguments))


def test_training_on_a_stream_is_training_with_the_auxiliary(
  text, params, stream
):
  """With the same draws: the same losses and metrics."""
  online, offline = (
    loss_of(model) for model in (tiny.online(), tiny.online(auxiliary=None))
  )
  main = {k: v for k, v in params.items() if k != 'auxiliary'}
  dataset = tiny.opened(stream)
  for epoch in range(dataset.epochs):
    at = dataset.manifest['epochs'][epoch]['progress']
    index = np.arange(tiny.BATCH) * 7 % text['train'].num_examples
    where = (np.full(tiny.BATCH, epoch), index)
    batch = {**text['train'].masked(*where), 'row_ids': index.astype('uint32')}
    rng = jax.random.fold_in(jax.random.key(tiny.SEED), epoch)
    expected = online(params, batch, rng, np.float32(at * tiny.STEPS))
    stored = dataset.corrupted(*where)
    got = offline(main, stored, jax.random.key(0), np.float32(0))
    assert set(expected) - set(got) == {'curriculum/gamma'}
    assert got['replace_rate'] == expected['replace_rate'] > 0.02
    for name, value in got.items():
      # The same numbers up to the order of sums in two programs.
      wanted = pytest.approx(expected[name], rel=1e-5, nan_ok=True)
      assert value == wanted, name


def test_a_stream_is_its_text_but_for_the_masked_positions(text, stream):
  dataset = tiny.opened(stream)
  plain = text['train']
  assert dataset.num_examples == plain.num_examples > 3 * 48
  seen = 0
  for step in range(tiny.EPOCHS * plain.num_examples // tiny.BATCH):
    got, expected = dataset.batch(step), plain.batch(step)
    masked = expected.pop('encoder_loss_weights') > 0
    np.testing.assert_array_equal(got.pop('encoder_loss_weights') > 0, masked)
    hidden = expected.pop('encoder_input_tokens')
    tokens = got.pop('encoder_input_tokens')
    np.testing.assert_array_equal(tokens[~masked], hidden[~masked])
    seen += np.count_nonzero(tokens[masked] != hidden[masked])
    for name, x in expected.items():
      assert x.dtype == got[name].dtype
      np.testing.assert_array_equal(x, got[name])
    part = dataset.batch(step, slice(3, 9))
    np.testing.assert_array_equal(part['encoder_input_tokens'], tokens[3:9])
  assert seen > 100


def test_the_manifest_says_what_was_done(text, stream):
  manifest, rows = tiny.manifest_of(stream), text['train'].num_examples
  dataset = tiny.opened(stream)
  per_epoch = rows / tiny.BATCH  # Steps.
  assert [len(manifest['epochs']), dataset.epochs] == [tiny.EPOCHS, tiny.EPOCHS]
  for number, epoch in enumerate(manifest['epochs']):
    end = min((number + 1) * per_epoch, tiny.STEPS)
    u = (number * per_epoch + end) / 2 / tiny.STEPS
    assert epoch['progress'] == pytest.approx(u)
    assert epoch['temperature'] == pytest.approx(1 + np.exp(-u / 0.1))
    batch = dataset.corrupted(np.full(rows, number), np.arange(rows))
    original = batch['encoder_target_tokens']
    assert epoch['rows'] == rows
    assert epoch['tokens'] == np.count_nonzero(original)
    assert epoch['masked'] == batch['encoder_loss_weights'].sum()
    replaced = batch['encoder_input_tokens'] != original
    assert epoch['replaced'] == np.count_nonzero(replaced)
  last = tiny.manifest_of(stream, 'validation')['epochs']
  assert [epoch['progress'] for epoch in last] == [1.0]
  assert manifest['vocabulary'] == text['train'].vocabulary.hash
  assert manifest['checkpoint'].endswith('auxiliary/checkpoint_1')
  assert manifest['auxiliary']['augmentation']['class'] == 'Temperature'
  names = {
    name for name in tiny.tree(stream / 'train') if name.endswith('.npy')
  }
  assert names == manifest['files'].keys()


def test_validation_rows_come_in_order_and_the_last_are_empty(text, stream):
  dataset = tiny.opened(stream, 'validation', shuffle=False)
  plain = text['validation']
  last = plain.steps_per_epoch - 1
  for step in (0, last, plain.steps_per_epoch):
    for name in ('encoder_target_tokens', 'encoder_segment_ids'):
      np.testing.assert_array_equal(
        dataset.batch(step)[name], plain.batch(step)[name]
      )
  empty = plain.num_examples - last * tiny.BATCH
  assert not dataset.batch(last)['encoder_input_tokens'][empty:].any()


def test_a_distribution_needs_no_checkpoint(place, text):
  path = tiny.write(
    place,
    text,
    'uniform',
    model=tiny.online(auxiliary=pretrain.Uniform()),
    partial_checkpoint=None,
    eval_datasets={},
    epochs=1,
  )
  (epoch,) = tiny.manifest_of(path)['epochs']
  assert epoch['temperature'] is None and epoch['gamma'] is None
  # Of all ids alike, one in VOCAB is the original.
  p, n = 1 - 1 / tiny.VOCAB, epoch['masked']
  sigma = (p * (1 - p) / n) ** 0.5
  assert epoch['replaced'] / n == pytest.approx(p, abs=5 * sigma)


def test_packed_texts_are_told_apart(place, params):
  packed = tiny.datasets(place, packing=True)
  path = tiny.write(place, packed, 'packed', epochs=1, eval_datasets={})
  got, expected = tiny.opened(path).batch(0), packed['train'].batch(0)
  assert expected['encoder_segment_ids'].max() > 1
  for name in ('encoder_segment_ids', 'encoder_positions'):
    np.testing.assert_array_equal(got[name], expected[name])


def die_at(write: int, die: Callable[[], None], monkeypatch) -> None:
  """Ends the process in the middle of that many-th file."""
  left, whole = [write], files.write_atomically

  def write_or_die(path, content, parameter=''):
    left[0] -= 1
    if not left[0]:
      path.with_name(f'.{path.name}.{os.getpid()}').write_bytes(content[:9])
      die()
    whole(path, content, parameter)

  monkeypatch.setattr(files, 'write_atomically', write_or_die)


def interrupt() -> None:
  """Ctrl-C, also where the shell has this process ignore SIGINT."""
  raise KeyboardInterrupt


KILLED = """
import os, pathlib, signal, sys
sys.path[:0] = {paths!r}
import pytest
import corruption_models as tiny
from offline_corruption_test import die_at
place = pathlib.Path({place!r})
die_at(7, lambda: os.kill(os.getpid(), signal.SIGKILL), pytest.MonkeyPatch())
tiny.write(place, tiny.datasets(place), 'killed')
"""


def test_killed_and_shared_by_two_it_is_the_same_to_the_byte(
  place, text, stream, monkeypatch
):
  # In the middle of a file.
  here = pathlib.Path(__file__).parent
  script = KILLED.format(paths=[str(here), str(here.parent)], place=str(place))
  done = subprocess.run(
    [sys.executable, '-c', script], capture_output=True, check=False
  )
  assert done.returncode == -signal.SIGKILL, done.stderr.decode()
  held = tiny.tree(place / 'killed')
  assert 'train/originals/00001.json' in held
  assert 'train/originals/00002.npy' not in held
  # Between a file and the note that it is there.
  with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
    die_at(4, interrupt, patch)
    tiny.write(place, text, 'killed')
  held = tiny.tree(place / 'killed')
  assert 'train/originals/00003.npy' in held
  assert 'train/originals/00003.json' not in held
  with pytest.raises(UserError, match='is not complete'):
    tiny.opened(place / 'killed')
  for index in (1, 0):
    assert not any('manifest' in name for name in tiny.tree(place / 'killed'))
    tiny.write(place, text, 'killed', process_index=index, process_count=2)
  assert tiny.tree(place / 'killed') == tiny.tree(stream)


def test_the_same_plan_again_does_nothing_and_another_is_refused(
  place, text, stream, capsys
):
  before = {p: p.stat().st_mtime_ns for p in stream.rglob('*')}
  tiny.write(place, text, 'stream')
  assert 'is complete: nothing to do' in capsys.readouterr().out
  assert before == {p: p.stat().st_mtime_ns for p in stream.rglob('*')}
  with pytest.raises(UserError, match=r'another stream \(random_seed was 5'):
    tiny.write(place, text, 'stream', random_seed=6)


def test_gin_files_bind_both_ends(monkeypatch):
  with gin_loading._own_configuration():
    gin = gin_loading.gin_registration.gin
    for path in (cli.ROOT, cli.ROOT / 'gin_configs'):
      gin.add_config_file_search_path(str(path))
    gin.parse_config_file('gin_configs/runs/corrupt.gin')
    gin.parse_config_file('fast_electra/tiny.gin')
    model = gin.query_parameter('%MODEL').scoped_configurable_fn()
    frozen_auxiliary.check(model)
    assert (
      gin.query_parameter(
        'offline.corrupt.train_steps'
      ).scoped_configurable_fn()
      == 1200
    )
  with gin_loading._own_configuration():
    gin.parse_config_file('gin_configs/runs/pretrain.gin')
    gin.parse_config_file('fast_electra/offline_tiny.gin')
    made = []
    monkeypatch.setattr(
      data.CorruptedStream, '__init__', lambda self, **k: made.append(k)
    )
    gin.parse_config("STREAM_DIR = 's'")
    for name in ('TRAIN_DATASET', 'VALIDATION_DATASET'):
      gin.query_parameter(f'%{name}').scoped_configurable_fn()
    assert made == [
      dict(
        path='s',
        split='train',
        seed=0,
        steps=1200,
        batch_size=32,
        vocabulary=None,
        length=64,
        max_predictions=16,
      ),
      dict(
        path='s',
        split='validation',
        shuffle=False,
        batch_size=32,
        vocabulary=None,
        length=64,
        max_predictions=16,
      ),
    ]
