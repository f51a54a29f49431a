# SPDX-License-Identifier: Apache-2.0
"""One command from a pretrained MODEL_DIR to a submission file."""

import json
import pathlib
import random
import subprocess
import sys

import pytest
import tiny_run
from finetune_runs import ENVIRONMENT, finetune, history

pytest_plugins = ('tiny_run',)

WORDS = tiny_run.WORDS
GOOD, BAD = WORDS[:8], WORDS[8:16]


def write_split(folder: pathlib.Path, name: str, count: int) -> None:
  """Sentences whose class is that of their second word."""
  draw = random.Random(name)
  rows = ['index\tsentence' if name == 'test' else 'sentence\tlabel']
  for index in range(count):
    label = draw.randrange(2)
    noun = draw.choice(GOOD if label else BAD)
    others = draw.choices(WORDS[16:], k=2)
    text = f'Returns the {noun} of the {others[0]} for each {others[1]}.'
    rows.append(f'{index}\t{text}' if name == 'test' else f'{text}\t{label}')
  (folder / f'{name}.tsv').write_text('\n'.join(rows) + '\n')


def make_task(root: pathlib.Path, train: int) -> pathlib.Path:
  folder = root / 'glue' / 'SST-2'
  folder.mkdir(parents=True)
  for name, count in (('train', train), ('dev', 37), ('test', 5)):
    write_split(folder, name, count)
  return folder.parent


def test_from_a_pretrained_folder_to_a_submission(tiny_run, tmp_path):
  glue, out = make_task(tmp_path, 64), tmp_path / 'run'
  done = finetune(tiny_run, glue, out, '--gin.EPOCHS=2', '--gin.EVALUATIONS=2')
  lines = history(out)
  assert [line['step'] for line in lines] == [2, 4]
  # scikit-learn's accuracy over the split is the sum over batches.
  for line in lines:
    assert line['accuracy'] == pytest.approx(line['accuracy/sst2'])
  result = json.loads((out / 'result.json').read_text())
  values = [line['accuracy'] for line in lines]
  assert result['metric'] == 'validation/accuracy'
  assert result['best'] == result['score'] == max(values)
  assert result['last'] == values[-1]
  # The best checkpoint was kept, and predicts as well as it was measured.
  assert result['scores']['validation']['accuracy'] == pytest.approx(
    max(values)
  )
  said = (out / 'predictions' / 'SST-2.tsv').read_text().splitlines()
  assert said[0] == 'index\tprediction'
  assert [row.split('\t')[0] for row in said[1:]] == list('01234')
  assert {row.split('\t')[1] for row in said[1:]} <= {'0', '1'}
  predictions = (out / 'predictions' / 'validation.jsonl').read_text()
  assert len(predictions.splitlines()) == 37
  assert 'predictions of the best one are in' in done.stdout
  held = (out / 'vocabulary.model').read_bytes()
  assert held == (tiny_run / 'vocabulary.model').read_bytes()


@pytest.mark.parametrize(
  'words, message',
  [
    (['--gin.TASK=colla'], "no task 'colla'; did you mean cola?"),
    (['--gin.TASK_DIR=/nowhere'], 'TASK_DIR: /nowhere is not a folder'),
    (['--gin.INITIAL_CHECKPOINT_PATH='], 'INITIAL_CHECKPOINT_PATH is empty'),
  ],
)
@pytest.mark.slow
def test_mistakes(tiny_run, tmp_path, words, message):
  glue = make_task(tmp_path, 8)
  done = finetune(tiny_run, glue, tmp_path / 'run', *words, check=False)
  assert done.returncode == 2
  assert done.stderr.startswith('error: ')
  assert message in done.stderr


@pytest.mark.slow
def test_a_folder_that_is_no_run(tmp_path):
  done = finetune(tmp_path, tmp_path, tmp_path / 'run', check=False)
  assert done.returncode == 2
  assert 'INITIAL_CHECKPOINT_PATH must be a folder that' in done.stderr


@pytest.mark.slow
def test_learns_and_goes_on(tiny_run, tmp_path):
  """Chance is 0.5; with PDR, in two starts, and evaluated on its own."""
  glue, out = make_task(tmp_path, 600), tmp_path / 'run'
  words = ['--gin_file=finetune/pdr.gin', '--gin.EPOCHS=5']
  words += ['--gin.LEARNING_RATE=3e-3']  # The network has a width of 32.
  finetune(tiny_run, glue, out, *words, '--gin.TRAIN_STEPS=40')
  assert history(out)[-1]['step'] == 40
  finetune(tiny_run, glue, out, *words, '--gin.EVAL_PERIOD=20')
  lines = history(out)
  assert lines[-1]['step'] == 94
  assert lines[-1]['accuracy'] > 0.9
  assert 'pdr/sst2' not in lines[-1]  # Evaluation is plain.
  done = subprocess.run(
    [
      sys.executable,
      '-m',
      'metro_jax.evaluate',
      f'--gin.MODEL_DIR={out}',
    ],
    capture_output=True,
    text=True,
    check=True,
    env=ENVIRONMENT,
  )
  assert f'accuracy       {lines[-1]["accuracy"]:.6g}' in done.stdout
