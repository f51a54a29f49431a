# SPDX-License-Identifier: Apache-2.0
"""The runner of ablations: rows, resuming, failures, and its table."""

import json
import pathlib
import subprocess
import sys

import pytest
import tiny_run

from metro_jax import ablate
from metro_jax.errors import UserError

# Stands for metro_jax.train: leaves the files that a run leaves.
TRAINER = """
import json, pathlib, sys
folder, loss, steps, code = sys.argv[1:]
folder = pathlib.Path(folder)
with open(folder.parent / 'starts', 'a') as file:
  file.write(folder.name + '\\n')
for name in ('train', 'training_eval/validation'):
  (folder / name).mkdir(parents=True, exist_ok=True)
  rates = {'timing/steps_per_second': 4.0,
           'timing/tflops_per_second_per_device': 0.008}
  with open(folder / name / 'metrics.jsonl', 'w') as file:
    for step in range(1, int(steps) + 1):
      line = {'step': step, 'loss': float(loss) + 4 - step,
              'loss/rtd': 0.5, **rates}
      file.write(json.dumps(line) + '\\n')
(folder / 'config.gin').write_text('TRAIN_STEPS = 4\\n')
print('the last line')
sys.exit(int(code))
"""


def run(root: pathlib.Path, row: str, seed: int, loss, steps=4, code=0):
  folder = root / row / f'seed_{seed}'
  words = (str(folder), str(loss), str(steps), str(code))
  return ablate.Run(row, folder, (sys.executable, '-c', TRAINER, *words))


def starts(root: pathlib.Path, row: str) -> list[str]:
  return (root / row / 'starts').read_text().split()


def test_rows_are_compared_and_nothing_is_trained_twice(tmp_path):
  runs = [run(tmp_path, 'recipe', s, loss) for s, loss in ((0, 1.0), (1, 3.0))]
  runs += [run(tmp_path, 'other', 0, 5.0)]
  assert ablate.compare(runs, tmp_path) == []
  lines = (tmp_path / 'table.md').read_text().splitlines()
  assert lines == [
    '| row | loss | RTD | ms a step | GFLOP a step |',
    '| --- | --- | --- | --- | --- |',
    '| recipe | 2 ± 1.4 | 0.5 ± 0 | 250 ± 0 | 2 ± 0 |',
    '| other | 5 | 0.5 | 250 | 2 |',
  ]
  table = json.loads((tmp_path / 'table.json').read_text())
  assert [seed['loss'] for seed in table['recipe']] == [1.0, 3.0]
  assert (tmp_path / 'curves.png').stat().st_size > 1000
  ablate.compare(runs, tmp_path)
  assert starts(tmp_path, 'recipe') == ['seed_0', 'seed_1']
  # Another command is another run.
  ablate.compare([run(tmp_path, 'other', 0, 6.0)], tmp_path)
  assert starts(tmp_path, 'other') == ['seed_0', 'seed_0']


def test_what_fails_or_is_stopped_is_told_and_trained_again(tmp_path):
  runs = [
    run(tmp_path, 'recipe', 0, 1.0),
    run(tmp_path, 'broken', 0, 1.0, code=2),
    run(tmp_path, 'stopped', 0, 1.0, steps=3),
  ]
  failures = ablate.compare(runs, tmp_path)
  assert failures == [
    'broken, seed_0: the last line',
    'stopped, seed_0: the last line',
  ]
  assert list(json.loads((tmp_path / 'table.json').read_text())) == ['recipe']
  ablate.compare(runs, tmp_path)
  assert len(starts(tmp_path, 'recipe')) == 1
  assert len(starts(tmp_path, 'stopped')) == 2


def test_rows_are_found_here_and_among_the_recipes(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  (tmp_path / 'mine.gin').touch()
  rows = ablate.find_rows(['mine.gin', 'ablations/amos/heads_*.gin'])
  assert list(rows) == ['mine', 'heads_2_4_6_8', 'heads_4_8', 'heads_all_8']
  with pytest.raises(UserError, match='no such file'):
    ablate.find_rows(['ablations/nothing/*.gin'])
  (tmp_path / 'heads_4_8.gin').touch()
  with pytest.raises(UserError, match='two files have one name'):
    ablate.find_rows(['heads_4_8.gin', 'ablations/amos/heads_4_8.gin'])


@pytest.mark.parametrize(
  'words, says',
  [
    (['--seeds=a'], 'give numbers'),
    (['--steps=3'], 'neither a flag'),
  ],
)
def test_what_cannot_be_is_refused(tmp_path, words, says):
  flags = ['--gin_file=amos/tiny.gin', '--rows', 'ablations/amos/heads_4_8.gin']
  with pytest.raises(UserError, match=says):
    ablate.main([*flags, f'--output={tmp_path}', *words])


@pytest.mark.slow
def test_from_the_command_line(tmp_path):
  """A recipe and a row, on text of one's own."""
  (tmp_path / 'text').mkdir()
  for index in range(20):
    text = tiny_run.text(12, index)
    (tmp_path / 'text' / f'{index}.txt').write_text(text)
  macros = {
    'TEXT_FILES': f'{tmp_path}/text/*.txt',
    'DATA_DIR': tmp_path / 'data',
    'VOCAB_SIZE': 256,
    'LENGTH': 32,
    'BATCH_SIZE': 8,
    'TRAIN_STEPS': 2,
    'WARMUP_STEPS': 1,
    'STATS_PERIOD': 1,
    'EVAL_STEPS': 1,
    'data.TextFiles.validation_fraction': 0.2,
    'modules.TransformerConfig.embed_dim': 16,
    'modules.TransformerConfig.num_layers': 1,
  }
  command = [sys.executable, '-m', 'metro_jax.ablate']
  command += ['--gin_file=amos/tiny.gin', f'--output={tmp_path}/out']
  command += ['--rows', 'ablations/amos/no_adversarial.gin']
  command += [f'--gin.{name}={value}' for name, value in macros.items()]
  subprocess.run(command, check=True)
  table = json.loads((tmp_path / 'out/table.json').read_text())
  assert set(table) == {'recipe', 'no_adversarial'}
  for (seed,) in table.values():
    assert seed['loss'] > 0 and seed['gflop_per_step'] > 0
