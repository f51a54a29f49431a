# SPDX-License-Identifier: Apache-2.0
"""What the loop does beside stepping, and what it costs."""

import io
import itertools
import json
import math
import re
import time
import types

import jax
import numpy as np
import pytest
import toy

from metro_jax import training
from metro_jax.errors import UserError
from metro_jax.training import (
  initialization,
  prefetch,
  progress,
  recovery,
  summaries,
)
from metro_jax.training import meter as meter_lib


def train(model_dir, **overrides):
  options = {
    'model': toy.ToyModel(),
    'train_dataset': toy.ToyDataset(),
    'train_steps': 6,
    'optimizer': training.adamw(1e-2),
    'stats_period': 2,
    'tensorboard': False,
    **overrides,
  }
  return training.train(model_dir=str(model_dir), **options)


def read(folder):
  return summaries.read_jsonl(folder / 'metrics.jsonl')


def test_logged_metrics_are_those_of_single_steps(tmp_path):
  """The mean over a window, weighted by counts, of what each step reports."""
  train(tmp_path / 'windows')
  train(tmp_path / 'steps', stats_period=1)
  windows, steps = (
    read(tmp_path / 'windows/train'),
    read(tmp_path / 'steps/train'),
  )
  dataset = toy.ToyDataset()
  count = [dataset.batch(i)['encoder_loss_weights'].sum() for i in range(6)]
  for index, line in enumerate(windows):
    pair = steps[2 * index : 2 * index + 2]
    # The loss of a step is one number; the MLM loss has one a masked token.
    mean = np.mean([x['loss'] for x in pair])
    assert line['loss'] == pytest.approx(mean, rel=1e-6)
    mean = np.average(
      [x['loss/mlm'] for x in pair], weights=count[2 * index : 2 * index + 2]
    )
    assert line['loss/mlm'] == pytest.approx(mean, rel=1e-6)
  filled = np.mean(
    [dataset.batch(i)['encoder_segment_ids'] != 0 for i in range(2)]
  )
  assert windows[0]['non_padding_fraction/overall'] == pytest.approx(filled)


def test_the_loss_falls_and_the_logged_rate_is_the_schedule(tmp_path):
  schedule = training.linear_warmup_decay(5e-2, 5, 200)
  train(
    tmp_path, train_steps=60, stats_period=1, optimizer=training.adamw(schedule)
  )
  lines = read(tmp_path / 'train')
  # A guesser that knows how often each id is masked has their entropy.
  batches = [toy.ToyDataset().batch(step) for step in range(100)]
  masked = np.concatenate(
    [x['encoder_target_tokens'][x['encoder_loss_weights'] > 0] for x in batches]
  )
  frequency = np.bincount(masked) / len(masked)
  entropy = -np.sum(frequency * np.log(np.maximum(frequency, 1e-9)))
  assert np.mean([x['loss/mlm'] for x in lines[-20:]]) < 0.95 * entropy
  for step, line in enumerate(lines):
    assert line['learning_rate'] == pytest.approx(float(schedule(step)))


def test_evaluation_is_repeatable_and_at_the_right_steps(tmp_path):
  datasets = {'a': toy.ToyDataset(seed=1), 'b': toy.ToyDataset(batch_size=8)}
  result = train(tmp_path, eval_datasets=datasets, eval_period=4)
  folder = tmp_path / 'training_eval'
  assert [x['step'] for x in read(folder / 'a')] == [4, 6]
  again = training.evaluate(
    model=toy.ToyModel(), model_dir=str(tmp_path), eval_datasets=datasets
  )
  for name in datasets:
    last = {k: v for k, v in read(folder / name)[-1].items() if k != 'step'}
    assert again[name] == last
  evaluator = training.Evaluator(
    toy.ToyModel(), datasets['a'], training.Partitioner()
  )
  assert evaluator.steps == 3  # 40 rows in batches of 16.
  with training.Partitioner().context():
    assert evaluator.run(result.state.params, lambda: True) is None


def test_mistakes(tmp_path):
  with pytest.raises(UserError, match='STATS_PERIOD is 0'):
    train(tmp_path, stats_period=0)
  with pytest.raises(UserError, match='eval BATCH_SIZE=12 is not divisible'):
    train(tmp_path, eval_datasets={'a': toy.ToyDataset(batch_size=12)})
  with pytest.raises(UserError, match=r'OPTIMIZER = @training\.adamw\(\)'):
    train(tmp_path, optimizer=training.adamw)  # Gin: @training.adamw.
  assert not list(tmp_path.iterdir())


def test_a_failing_dataset_ends_the_run_with_its_error(tmp_path):
  class Failing(toy.ToyDataset):
    def batch(self, step, rows=None):
      if step == 3:
        raise OSError('shard 7 is gone')
      return super().batch(step, rows)

  with pytest.raises(OSError, match='shard 7 is gone'):
    train(tmp_path, train_dataset=Failing())


def test_the_loop_waits_for_the_devices_only_where_it_must(
  tmp_path, monkeypatch
):
  """A step's report is read two steps later, or before a log line."""
  started, read = [], []
  compile_step, read_report = initialization.compile_step, recovery.Watch.read

  def compile_counting(*arguments):
    step, empty_window = compile_step(*arguments)
    return lambda *x: started.append(len(started)) or step(*x), empty_window

  def read_counting(watch, index, report):
    read.append((index, started[-1]))
    return read_report(watch, index, report)

  monkeypatch.setattr(initialization, 'compile_step', compile_counting)
  monkeypatch.setattr(recovery.Watch, 'read', read_counting)
  train(tmp_path, train_steps=10, stats_period=5)
  # Which report was read, and the last step that had been started by then.
  first = [(0, 2), (1, 3), (2, 4), (3, 4), (4, 4)]
  assert read == first + [(a + 5, b + 5) for a, b in first]


def test_prefetch_keeps_order_and_stays_close():
  asked = []
  batches = prefetch.prefetch(
    lambda step: asked.append(step) or step, range(3, 9), depth=2
  )
  assert next(batches) == 3
  time.sleep(0.05)
  assert max(asked) <= 5
  assert list(batches) == [4, 5, 6, 7, 8]
  assert asked == list(range(3, 9))


def test_meter_counts_only_the_time_of_steps(monkeypatch):
  clock = itertools.accumulate([7.0, 0.0, 1.0, 2.5, 4.0, 1.0, 0.0, 3.0, 0.0])
  # Born and started at 7, started at 8, paused from 10.5 to 14.5, read at 15.5.
  now = types.SimpleNamespace(monotonic=clock.__next__)
  monkeypatch.setattr(meter_lib, 'time', now)
  meter = meter_lib.Meter(
    batch_size=32, tokens_per_step=1000, flops_per_step=8e12, peak_flops=1e13
  )
  meter.start(10)
  with meter.paused():
    pass
  rates = meter.read(15, filled=0.5)
  assert rates['timing/seconds'] == 3.5
  rate = rates['timing/steps_per_second']
  assert rate == pytest.approx(5 / 3.5)
  assert rates['timing/tokens_per_second'] == pytest.approx(500 * rate)
  devices = jax.device_count()
  assert rates['timing/seqs_per_second_per_core'] == pytest.approx(
    32 * rate / devices
  )
  assert rates['timing/mfu'] == pytest.approx(0.8 * rate / devices)
  assert rates['timing/uptime'] == 8.5
  assert meter.read(15)['timing/steps_per_second'] == 0


def test_progress_lines():
  metrics = {
    'loss': 31.234567,
    'loss/rtd': 0.4,
    'grad_norm': 2.0,
    'replace_rate': 0.0831,
    'replace_accuracy': 0.5,
  }
  rates = {
    'timing/steps_per_second': 2.0,
    'timing/tokens_per_second': 51234.0,
    'timing/tflops_per_second_per_device': 1.5,
    'timing/mfu': 0.412,
  }
  line = progress.format_line(200, 2000, metrics, rates)
  assert line == (
    'step  200/2000 | loss 31.23 | rtd 0.4 | replaced 8.3% | found 50.0%'
    ' | 51.2k tokens/s | 1.5 TFLOP/s/device | MFU 41.2% | ETA 15m00s'
  )


@pytest.mark.parametrize(
  'seconds, text',
  [
    (0.4, '0s'),
    (59.6, '1m00s'),
    (3725, '1h02m'),
    (90000, '1d01h'),
    (math.inf, '?'),
  ],
)
def test_durations(seconds, text):
  assert progress.duration(seconds) == text


class Terminal(io.StringIO):
  def isatty(self):
    return True


def test_bar_on_a_terminal_and_plain_lines_elsewhere(monkeypatch):
  monkeypatch.setenv('TERM', 'xterm')
  monkeypatch.setenv('COLUMNS', '80')
  for stream, has_bar in ((Terminal(), True), (io.StringIO(), False)):
    with progress.Progress(10, stream=stream) as bar:
      bar.advance(5)
      bar.note('a line with [brackets]')
    text = stream.getvalue()
    assert 'a line with [brackets]' in re.sub(r'\x1b\[[0-9;?]*\w', '', text)
    assert ('5/10' in text) == has_bar
  assert text == 'a line with [brackets]\n'


def test_metrics_file_after_a_restart(tmp_path):
  writer = summaries.MetricWriter(tmp_path, tensorboard=False)
  for step in (2, 4, 6):
    writer.write(step, {'loss': 1.0 / step, 'bad': math.nan})
  with (tmp_path / 'metrics.jsonl').open('a') as file:
    file.write('{"step": 8, "lo')  # Torn.
  again = summaries.MetricWriter(tmp_path, resume_step=4, tensorboard=False)
  assert again.last_step == 4
  again.write(6, {'loss': 7.0})
  assert [(x['step'], x['loss']) for x in read(tmp_path)] == [
    (2, 0.5),
    (4, 0.25),
    (6, 7.0),
  ]
  assert not list(tmp_path.glob('*.tmp'))
  summaries.record(tmp_path, 4, {'loss': 9.0})
  lines = (tmp_path / 'metrics.jsonl').read_text().splitlines()
  assert [json.loads(x)['loss'] for x in lines] == [0.5, 9.0, 7.0]
