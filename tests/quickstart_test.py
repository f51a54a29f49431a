# SPDX-License-Identifier: Apache-2.0
"""What the quickstart shows is true, and the whole of it runs."""

import io
import os
import pathlib
import subprocess
import sys
import types

import gin
import numpy as np
import pytest
from rich import console

from metro_jax import inference, inference_answers
from metro_jax.scripts import (
  demonstration,
  install,
  quickstart,
  showcase,
)
from metro_jax.scripts.showcase import FALSE, FOUND, MISSED, Corrupted

ROOT = pathlib.Path(__file__).resolve().parents[1]

pytest_plugins = ('tiny_run',)


def test_sentences_are_plain_and_few_per_document():
  good = 'The shape of an array says how long each of its dimensions is.'
  document = (
    f'{good} {good} short one. It is {"very " * 40}long. See `x` for more'
    ' about what this sentence cannot be used for. ' + good[:-1]
  )
  assert showcase.sentences([document, document], 5) == [good]
  many = ' '.join(good.replace('array', w) for w in ('row', 'list', 'set', 'b'))
  assert len(showcase.sentences([many], 9)) == 3
  assert len(showcase.sentences([many] * 9, 2)) == 2


def test_corrupted_sentences_say_what_was_replaced(tiny_run):
  model = inference.load(tiny_run)
  originals = ['Returns the array of the list for each row.'] * 8
  found = showcase.corrupt(model, originals, rate=0.4, seed=3)
  assert found == showcase.corrupt(model, originals, rate=0.4, seed=3)
  replaced = 0
  for original, corrupted in zip(originals, found, strict=True):
    text = corrupted.text
    for start, end, word in reversed(corrupted.replaced):
      assert text[start:end] != word
      text = text[:start] + word + text[end:]
      replaced += 1
    assert text == original
  assert replaced > 4  # Few samples of so young a model are right.


def test_verdicts_on_each_word():
  text = 'aa bb cc dd ee'
  corrupted = Corrupted(text, [(3, 5, 'xx'), (9, 11, 'yy')])
  detected = [(0, 2), (3, 8)]  # aa; bb and cc in one stretch.
  assert showcase._verdicts(corrupted, detected) == [
    (0, 2, FALSE, ''),
    (3, 5, FOUND, 'xx'),
    (5, 8, FALSE, ''),
    (9, 11, MISSED, 'yy'),
  ]
  assert showcase.score([(corrupted, detected)]) == {
    FOUND: 1,
    MISSED: 1,
    FALSE: 2,
  }
  plain = showcase.mark(corrupted, detected, colour=False).plain
  assert plain == '[?aa] [+bb] (xx)[? cc] [-dd] (yy) ee'
  colour = showcase.mark(corrupted, detected, colour=True)
  assert colour.plain == 'aa bb (xx) cc dd (yy) ee'
  styles = {str(span.style) for span in colour.spans}
  assert styles == {'dim', *showcase.STYLES.values()}


def test_nothing_detected_is_all_missed():
  corrupted = Corrupted('aa bb', [(0, 2, 'xx')])
  assert showcase.score([(corrupted, [])]) == {FOUND: 0, MISSED: 1, FALSE: 0}
  # A stretch that begins in a replaced word and ends after it.
  assert showcase._outside(1, 5, [(0, 2)]) == [(2, 5)]
  assert showcase._outside(0, 2, [(0, 2)]) == []
  assert showcase._outside(0, 9, [(2, 3), (5, 9)]) == [(0, 2), (3, 5)]


def test_as_many_marks_as_asked_for_and_whole_words():
  text = 'The banana, of an array.'
  pieces = [(0, 3), (4, 7), (7, 10), (10, 11), (12, 14), (15, 17), (18, 24)]
  tokens = [types.SimpleNamespace(start=a, end=b) for a, b in pieces]
  p = np.array([0.1, 0.2, 0.9, 0.3, 0.05, 0.4, 0.6], np.float32)
  detection = inference_answers.Detection(text, tokens, p)
  assert detection.most_suspicious() == (4, 10)  # All of banana.
  marked = demonstration.threshold([detection], 3)
  assert (p >= np.float32(marked)).sum() == 3
  assert demonstration.threshold([detection], 99) == 0.05


def test_the_text_is_that_of_the_recipe():
  import metro_jax.gin_registration  # noqa: F401

  gin.clear_config()
  gin.add_config_file_search_path(str(ROOT))
  gin.parse_config_file('gin_configs/runs/pretrain.gin')
  gin.parse_config_file(f'gin_configs/{quickstart.RECIPE}')
  values = [
    gin.query_parameter(f'%{name}')
    for name in ('MIXTURE_OR_TASK_NAME', 'VOCAB_SIZE', 'LENGTH', 'TEXT_FILES')
  ]
  gin.clear_config()
  own = [quickstart.SOURCE, quickstart.VOCAB_SIZE, quickstart.LENGTH, None]
  assert values == own


def test_a_finished_run_is_not_trained_again(tiny_run):
  out = io.StringIO()
  run = quickstart.Quickstart(str(tiny_run), (), console.Console(file=out))
  assert run.finished()
  run.train()
  assert 'trained already' in out.getvalue()
  elsewhere = quickstart.Quickstart(str(tiny_run.parent), (), console.Console())
  assert not elsewhere.finished()


def test_commands_that_fail_end_the_quickstart(capsys):
  out = console.Console(file=io.StringIO())
  run = quickstart.Quickstart('x', (), out)
  with pytest.raises(SystemExit) as stopped:
    run.command('-c', 'print("why"); raise SystemExit(3)', quiet=True)
  assert stopped.value.code == 3
  assert capsys.readouterr().err == 'why\n'
  with pytest.raises(KeyboardInterrupt):
    run.command('-c', 'raise SystemExit(130)', quiet=True)


def test_installation_reports_what_failed(tmp_path, capfd):
  lines = 'Collecting jax>=0.10\\n  Collecting numpy\\nno disk\\n'
  command = [sys.executable, '-c', f'print("{lines}"); raise SystemExit(4)']
  log = tmp_path / 'install.log'
  assert install.run(command, log) == 4
  assert 'no disk' in log.read_text()
  assert install.command('test,')[-1] == '.[test]'
  assert install.command('')[-1] == '.'
  assert install.command(' test, cuda')[-1] == '.[test,cuda]'


@pytest.mark.slow
def test_the_whole_quickstart(tmp_path):
  """Every step, with a training run of a few steps; then again."""
  command = [
    sys.executable,
    '-m',
    'metro_jax.scripts.quickstart',
    f'--model_dir={tmp_path}/run',
    '--gin.TRAIN_STEPS=8',
    '--gin.WARMUP_STEPS=2',
    '--gin.EVAL_STEPS=1',
  ]
  environment = os.environ | {'XLA_FLAGS': '', 'COLUMNS': '100'}
  first, second = (
    subprocess.run(
      command, capture_output=True, text=True, check=True, env=environment
    ).stdout
    for _ in range(2)
  )
  for title in ('Text', 'Pretraining', 'Evaluation', 'What was learnt', 'Done'):
    assert title in first
  assert 'trained already' in second and 'trained already' not in first
  assert (tmp_path / 'run' / 'curves.png').stat().st_size > 10_000
  assert '--gin.TEXT_FILES=' in first.split('Your own text:')[1]
