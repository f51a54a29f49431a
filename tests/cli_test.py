# SPDX-License-Identifier: Apache-2.0
"""The command lines as a user meets them: real processes, exact messages."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

from metro_jax import cli
from metro_jax.errors import UserError
from metro_jax.training import model_dir

TOYS = pathlib.Path(__file__).parent / 'training'
RECIPE = """
from __gin__ import dynamic_registration
import toy
from metro_jax import training
MODEL = @toy.ToyModel()
VOCAB_SIZE = 64
TRAIN_STEPS = 6
LEARNING_RATE = 1e-2
WARMUP_STEPS = 2
STATS_PERIOD = 2
EVAL_PERIOD = 3
EVAL_STEPS = 2
CHECKPOINT_PERIOD = 3
BATCH_SIZE = 16
toy.ToyDataset.batch_size = %BATCH_SIZE
training.train.train_dataset = @toy.ToyDataset()
training.train.eval_datasets = {'validation': @toy.ToyDataset()}
training.evaluate.eval_datasets = {'validation': @toy.ToyDataset()}
"""


@pytest.fixture(scope='module')
def place(tmp_path_factory):
  folder = tmp_path_factory.mktemp('cli')
  (folder / 'toy.gin').write_text(RECIPE)
  return folder


def run(place, *words, command='train', devices=1):
  return subprocess.run(
    [sys.executable, '-m', f'metro_jax.{command}', *words],
    cwd=place,
    env={
      **os.environ,
      'PYTHONPATH': f'{TOYS}{os.pathsep}{os.environ["PYTHONPATH"]}',
      'XLA_FLAGS': f'--xla_force_host_platform_device_count={devices}',
    },
    capture_output=True,
    text=True,
    timeout=300,
    check=False,
  )


@pytest.fixture(scope='module')
def trained(place):
  """A run of the toy recipe in place/run."""
  done = run(place, '--gin_file=toy.gin', '--gin.MODEL_DIR=run')
  assert done.returncode == 0, done.stderr
  return done


def lines_of(path):
  return [json.loads(line) for line in path.read_text().splitlines()]


def test_train_writes_what_t5x_users_expect(place, trained):
  folder = place / 'run'
  assert {p.name for p in folder.iterdir()} == {
    'config.gin',
    'model-info.txt',
    'vocabulary.model',
    'train',
    'training_eval',
    'checkpoint_3',
    'checkpoint_6',
    'writer.lock',
  }
  lines = lines_of(folder / 'train/metrics.jsonl')
  assert [line['step'] for line in lines] == [2, 4, 6]
  assert lines[-1].keys() >= {
    'loss',
    'loss/mlm',
    'learning_rate',
    'grad_norm',
    'param_norm',
    'non_padding_fraction/overall',
    'timing/steps_per_second',
    'timing/seqs_per_second_per_core',
    'timing/uptime',
  }
  evals = lines_of(folder / 'training_eval/validation/metrics.jsonl')
  assert [line['step'] for line in evals] == [3, 6]
  assert 'main/wo/kernel' in (folder / 'model-info.txt').read_text()
  assert not trained.stderr
  assert 'step 2/6 | loss' in trained.stdout


def test_tensorboard_reads_the_events(place, trained):
  from tensorboard.backend.event_processing import event_accumulator

  events = event_accumulator.EventAccumulator(str(place / 'run/train'))
  events.Reload()
  written = lines_of(place / 'run/train/metrics.jsonl')
  scalars = events.Scalars('loss/mlm')
  assert [s.step for s in scalars] == [2, 4, 6]
  for scalar, line in zip(scalars, written, strict=True):
    assert scalar.value == pytest.approx(line['loss/mlm'], rel=1e-6)


def test_same_command_and_config_gin_resume(place, trained):
  again = run(place, '--gin_file=toy.gin', '--gin.MODEL_DIR=run')
  assert again.returncode == 0
  assert 'step 6 of 6: nothing to do' in again.stdout
  more = run(
    place,
    '--gin_file=run/config.gin',
    '--gin.TRAIN_STEPS=8',
    '--gin.MODEL_DIR=run',
    '--gin.KEEP=5',
  )
  assert more.returncode == 0, more.stderr
  assert 'resuming run at step 6 of 8' in more.stdout


def test_evaluate_prints_and_records(place, trained):
  done = run(
    place,
    '--gin.MODEL_DIR=run',
    '--gin.training.evaluate.step=3',
    command='evaluate',
  )
  assert done.returncode == 0, done.stderr
  assert 'run at step 3' in done.stdout and 'loss/mlm' in done.stdout
  recorded = lines_of(place / 'run/training_eval/validation/metrics.jsonl')
  assert [line['step'] for line in recorded][:2] == [3, 6]
  printed = [x.split() for x in done.stdout.splitlines()]
  loss = next(float(x[1]) for x in printed if x[:1] == ['loss/mlm'])
  assert loss == pytest.approx(recorded[0]['loss/mlm'], rel=1e-5)


def test_dry_run_prints_the_table_and_writes_nothing(place):
  done = run(place, '--gin_file=toy.gin', '--gin.MODEL_DIR=dry', '--dry_run')
  assert done.returncode == 0, done.stderr
  assert 'embedder/token/embedding  1,024  (64, 16)' in done.stdout
  assert 'optimizer slots' in done.stdout
  assert not (place / 'dry').exists()


def test_help_costs_no_tensorflow():
  script = (
    "import sys; sys.argv = ['train', '--help']\n"
    'from metro_jax import train\n'
    'assert train.main() == 0\n'
    "heavy = {'tensorflow', 'seqio', 'metro_jax.data', 'metro_jax.models'}\n"
    'assert not heavy & set(sys.modules), heavy & set(sys.modules)\n'
  )
  done = subprocess.run(
    [sys.executable, '-c', script], capture_output=True, text=True, check=False
  )
  assert done.returncode == 0, done.stderr
  assert '--gin_file' in done.stdout and 'MODEL_DIR' in done.stdout


TOY = ('--gin_file=toy.gin', '--gin.MODEL_DIR=wrong')


@pytest.mark.parametrize(
  'words, message',
  [
    (['--gin.MODEL_DIR=x'], 'no recipe: add --gin_file'),
    (['--gin_file=toy.gin'], 'MODEL_DIR is not set: add --gin.MODEL_DIR=VALUE'),
    (['--gin_file=no.gin'], '--gin_file=no.gin: Unable to open file: no.gin'),
    (['--gin_fil=toy.gin'], "Unknown command line flag 'gin_fil'"),
    (['train'], "'train' is not a flag"),
    (
      [*TOY, '--gin.LERNING_RATE=1'],
      'unknown parameter LERNING_RATE; did you mean LEARNING_RATE?',
    ),
    (
      [*TOY, '--gin.training.adamw.weight_decy=1'],
      'did you mean weight_decay?',
    ),
    ([*TOY, '--gin.training.adam.b1=1'], 'did you mean training.adamw?'),
    (
      [*TOY, '--gin.OPTIMIZER=@training.adamm()'],
      'did you mean training.adamw?',
    ),
    ([*TOY, '--gin.BATCH_SIZE=many'], 'BATCH_SIZE takes a whole number, not'),
    (
      [*TOY, '--gin.BATCH_SIZE=2.5'],
      'BATCH_SIZE takes a whole number, not 2.5',
    ),
    ([*TOY, '--gin.FROZEN_PARAMS=(1,'], '--gin.FROZEN_PARAMS=(1,'),
    (
      [*TOY, '--gin.toy.ToyDataset.length=32'],
      'LENGTH: rows of train_dataset have 32 tokens, and the position table'
      ' ends at 16',
    ),
    (
      [*TOY, '--gin.toy.ToyDataset.vocab_size=99'],
      'VOCAB_SIZE: the vocabulary of train_dataset has 99 ids',
    ),
    ([*TOY, '--gin.WARMUP_STEPS=10'], 'warmup_steps=10 must be less than'),
    ([*TOY, '--gin.FROZEN_PARAMS=("axiliary/.*",)'], 'matches no parameter'),
    (
      ['--gin_file=toy.gin', '--gin.MODEL_DIR=run', '--gin.LEARNING_RATE=0.5'],
      'run holds another run: LEARNING_RATE was 0.01, now 0.5',
    ),
    (
      ['--gin_file=toy.gin', '--gin.MODEL_DIR=toy.gin'],
      'MODEL_DIR=toy.gin cannot be written',
    ),
  ],
)
def test_mistakes_end_in_one_line(place, trained, words, message):
  done = run(place, *words)
  assert done.returncode == 2, done.stderr
  (line,) = done.stderr.splitlines()
  assert line.startswith('error: ') and message in line, line


def test_batch_that_does_not_divide(place):
  done = run(place, *TOY, '--gin.BATCH_SIZE=30', devices=8)
  assert done.returncode == 2
  (line,) = done.stderr.splitlines()
  assert 'BATCH_SIZE=30 is not divisible by the 8 devices' in line


@pytest.mark.parametrize(
  'words, message',
  [
    ([], 'MODEL_DIR is not set'),
    (['--gin.MODEL_DIR=nowhere'], 'nowhere/config.gin does not exist'),
    (
      ['--gin.MODEL_DIR=run', '--gin.training.evaluate.step=5'],
      'run holds no checkpoint_5; it has',
    ),
    (
      ['--gin.MODEL_DIR=run', '--gin.toy.ToyDataset.vocabulary=other'],
      'run/vocabulary.model is not the vocabulary of this dataset',
    ),
  ],
)
def test_mistakes_of_evaluate(place, trained, words, message):
  done = run(place, *words, command='evaluate')
  assert done.returncode == 2, done.stderr
  (line,) = done.stderr.splitlines()
  assert message in line, line


@pytest.mark.parametrize(
  'typed, read',
  [
    ('runs/tiny', "'runs/tiny'"),
    ('/data/*.txt', "'/data/*.txt'"),
    ('gs://bucket/run-1', "'gs://bucket/run-1'"),
    ('word', "'word'"),
    ('none', "'none'"),
    ('None', 'None'),
    ('true', 'True'),
    ('False', 'False'),
    ('1e-4', '1e-4'),
    ('(1, 2)', '(1, 2)'),
    ("'quoted'", "'quoted'"),
    ('@training.adamw()', '@training.adamw()'),
    ('%OTHER', '%OTHER'),
    ('(1,', '(1,'),
  ],
)
def test_bare_words_are_strings(typed, read):
  assert cli.quote_bare(typed) == read


def test_gin_flags_are_rewritten():
  words = ['prog', '--gin.MODEL_DIR=a b', '--gin.A.b=1', '--gin.RUN_DIR=7']
  assert cli.rewrite(words) == [
    'prog',
    "--gin_bindings=MODEL_DIR = 'a b'",
    '--gin_bindings=A.b = 1',
    "--gin_bindings=RUN_DIR = '7'",
  ]
  with pytest.raises(UserError, match=r'write --gin\.NAME=VALUE'):
    cli.rewrite(['--gin.MODEL_DIR', 'x'])


def test_what_may_change_between_two_starts(tmp_path):
  text = 'TRAIN_STEPS = 5\nLEARNING_RATE = 0.1\na/b.c = \\\n    (1,\n     2)\n'
  model_dir.claim(str(tmp_path), text.replace('0.1', '0.3'))
  model_dir.claim(str(tmp_path), text)  # Nothing was trained yet.
  (tmp_path / 'checkpoint_1').mkdir()
  longer = text.replace('= 5', '= 9')
  model_dir.claim(str(tmp_path), '# A comment.\n' + longer)
  assert 'TRAIN_STEPS = 9' in (tmp_path / 'config.gin').read_text()
  with pytest.raises(UserError, match=r'a/b\.c was \(1, 2\)'):
    model_dir.claim(str(tmp_path), text.replace('2)', '3)'))
