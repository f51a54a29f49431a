# SPDX-License-Identifier: Apache-2.0
"""The command line of inference, as a process and as a function."""

import io
import json
import subprocess
import sys

import numpy as np
import pytest

from metro_jax import infer, inference
from metro_jax.errors import UserError

pytest_plugins = ('tiny_run',)


@pytest.fixture(scope='module')
def model(tiny_run):
  return inference.load(tiny_run)


@pytest.fixture
def ask(tiny_run, model, monkeypatch, capsys):
  """Calls the command in this process, without loading the model again."""
  monkeypatch.setattr(inference, 'load', lambda *_: model)

  def call(mode, *arguments):
    # capsys has no bytes beneath it to set an encoding for.
    monkeypatch.setattr(sys, 'stdout', Standard())
    infer.main([f'--model_dir={tiny_run}', f'--mode={mode}', *arguments])
    lines = sys.stdout.getvalue().splitlines()
    return [json.loads(line) for line in lines], capsys.readouterr().err

  return call


class Standard(io.StringIO):
  """A standard output that can be given an encoding."""

  def reconfigure(self, encoding):
    assert encoding == 'utf-8'


def run(*arguments, **options):
  return subprocess.run(
    [sys.executable, '-m', 'metro_jax.infer', *arguments],
    capture_output=True,
    check=False,
    **options,
  )


def test_process_reads_standard_input_and_writes_json_lines(tiny_run):
  typed = 'Returns the array.\r\n\nthe na\u00efve row \u20ac\n'.encode()
  typed += b'broken \xff\xfe text\n'
  done = run(f'--model_dir={tiny_run}', '--mode=detect', input=typed)
  assert done.returncode == 0, done.stderr.decode()
  answers = [json.loads(line) for line in done.stdout.splitlines()]
  assert [a['line'] for a in answers] == [1, 2, 3, 4]
  assert [a['text'] for a in answers] == [
    'Returns the array.',
    '',
    'the na\u00efve row \u20ac',
    'broken \ufffd\ufffd text',
  ]
  assert answers[1]['tokens'] == []
  for answer in answers:
    for token in answer['tokens']:
      piece = answer['text'][token['start'] : token['end']]
      assert token['text'] == piece
      assert 0 <= token['p_replaced'] <= 1
  assert done.stderr.decode().splitlines() == [
    '1 of 4 lines had invalid UTF-8, replaced by U+FFFD'
  ]


def test_process_ends_with_one_line_after_a_mistake(tiny_run, tmp_path):
  text = tmp_path / 'text.txt'
  text.write_bytes(b'good\nbad \xff\n')
  for arguments, named in (
    (
      ['--text=x', f'--model_dir={tiny_run}', '--mode=generate'],
      'writing text needs a decoder, and Encoder has none',
    ),
    (['--text=x', f'--model_dir={tmp_path}'], 'config.gin'),
    (
      [
        f'--model_dir={tiny_run}',
        f'--input={text}',
        '--invalid_utf8=error',
      ],
      f'{text}, line 2: invalid UTF-8 at byte 4',
    ),
  ):
    done = run('--mode=detect', *arguments, text=True)
    assert done.returncode == 2
    assert done.stdout == ''
    assert done.stderr.startswith('error: ') and done.stderr.count('\n') == 1
    assert named in done.stderr


def test_a_reader_that_stops_is_no_error(tiny_run, tmp_path):
  text = tmp_path / 'text.txt'
  text.write_text('Returns the array of the list.\n' * 2000)
  command = (
    f'{sys.executable} -m metro_jax.infer --model_dir={tiny_run}'
    f' --mode=detect --input={text} --batch_size=16 | head -n 1'
  )
  done = subprocess.run(
    ['bash', '-o', 'pipefail', '-c', command],
    capture_output=True,
    text=True,
    check=False,
  )
  assert json.loads(done.stdout)['line'] == 1
  assert done.returncode == 0 and done.stderr == ''


def test_detect_is_what_python_says(ask, model):
  text = 'Returns the array of the row.'
  (answer,), _ = ask('detect', f'--text={text}', '--threshold=0.0')
  expected = model.detect([text])[0]
  np.testing.assert_allclose(
    [t['p_replaced'] for t in answer['tokens']], expected.p_replaced, rtol=1e-5
  )
  suspect = answer['most_suspicious']
  assert (suspect['start'], suspect['end']) == expected.most_suspicious()
  # Over a threshold of 0 everything is one stretch after another.
  assert ''.join(r['text'] for r in answer['replaced']) == text.replace(' ', '')


def test_fill_takes_masks_that_were_typed(ask):
  (first, second), notes = ask(
    'fill', '--text=the [MASK] of [MASK]', '--text=none', '--top_k=2'
  )
  assert [m['start'] for m in first['masks']] == [4, 14]
  for mask in first['masks']:
    best, other = mask['candidates']
    assert best['probability'] >= other['probability'] > 0
  assert '[MASK]' not in first['filled']
  assert second['masks'] == [] and second['filled'] == 'none'
  assert notes == ''
  _, notes = ask('fill', '--text=none')
  assert notes == 'no [MASK] in any of 1 texts\n'


def test_encode_writes_states(ask, model, tmp_path):
  output = tmp_path / 'new' / 'states.jsonl'
  found, notes = ask('encode', '--text=the array', f'--output={output}')
  assert found == [] and notes == f'1 answers in {output}\n'
  answer = json.loads(output.read_text())
  expected = model.encode(['the array'])[0]
  np.testing.assert_allclose(answer['hidden'], expected.hidden, rtol=1e-5)
  np.testing.assert_allclose(answer['cls'], expected.cls, rtol=1e-5)
  assert [t['text'] for t in answer['tokens']] == [
    'the array'[t.start : t.end] for t in expected.tokens
  ]
  (short,), _ = ask('encode', '--text=the array', '--cls_only')
  assert sorted(short) == ['cls', 'line', 'text']


def test_lines_keep_their_numbers_over_chunks(ask, tmp_path):
  text = tmp_path / 'text.txt'
  lines = [f'the row {i}' if i % 5 else '' for i in range(40)]
  text.write_text('\n'.join(lines))
  found, _ = ask('detect', f'--input={text}', '--batch_size=2')
  assert [a['line'] for a in found] == list(range(1, 41))
  assert [a['text'] for a in found] == lines


def test_long_lines_by_choice(ask, tmp_path):
  text = tmp_path / 'text.txt'
  text.write_text('short\n' * 20 + 'the row of the array ' * 30 + '\n')
  found, _ = ask('detect', f'--input={text}', '--batch_size=1')
  assert len(found[-1]['tokens']) > 100
  found, _ = ask('detect', f'--input={text}', '--long=truncate')
  assert len(found[-1]['tokens']) == 30  # 32 without [CLS] and [SEP].
  with pytest.raises(UserError, match=f'{text}, line 21 has .* takes 30'):
    ask('detect', f'--input={text}', '--long=error', '--batch_size=1')


def test_mistakes_are_named(ask, tmp_path):
  for arguments, message in (
    (('--text=x', '--input=y'), '--text and --input'),
    ((f'--input={tmp_path}/none',), 'none: No such file'),
    (('--text=x', f'--output={tmp_path}'), f'--output={tmp_path}'),
    (('--text=[MASK]', '--top_k=0'), 'top_k = 0'),
  ):
    with pytest.raises(UserError, match=message):
      ask('fill', *arguments)
  assert ask('fill', '--text=\udcff [MASK]')[0][0]['text'] == '\ufffd [MASK]'


@pytest.mark.parametrize('flag', ['--mode=guess', '--colour=red'])
def test_unknown_flags_end_with_code_2(tiny_run, flag):
  with pytest.raises(SystemExit) as stopped:
    infer.main([f'--model_dir={tiny_run}', '--mode=detect', flag])
  assert stopped.value.code == 2
