# SPDX-License-Identifier: Apache-2.0
"""`python -m metro_jax.vocabulary` and `prepare`, as a user runs them."""

import os
import re
import subprocess
import sys

import pytest

from metro_jax import data


def run(*arguments, code=0) -> subprocess.CompletedProcess:
  done = subprocess.run(
    [sys.executable, '-m', *map(str, arguments)],
    capture_output=True,
    text=True,
  )
  assert done.returncode == code, done.stderr
  assert 'Traceback' not in done.stderr
  return done


def test_vocabulary(tmp_path, text_file):
  model = tmp_path / 'v.model'
  command = [
    'metro_jax.vocabulary',
    '--output',
    model,
    '--size=300',
    '--extra_ids=7',
    '--input',
    text_file,
    '--document=line',
  ]
  assert '300 ids' in run(*command).stdout
  vocabulary = data.Vocabulary(model)
  assert (vocabulary.size, vocabulary.extra_ids) == (300, 7)
  refused = run(*command, code=2)
  assert refused.stderr.startswith('error: ')
  assert '--force' in refused.stderr
  run(*command, '--force')


def test_prepare(tmp_path, text_file, documents, vocabulary):
  root = tmp_path / 'root'
  text_file.write_bytes(text_file.read_bytes() + b'bad \xff byte\n')
  command = [
    'metro_jax.prepare',
    '--input',
    str(text_file.parent / '*.txt'),
    '--document',
    'line',
    '--vocabulary',
    vocabulary.path,
    '--data_dir',
    root,
    '--length',
    '16',
    '32',
    '--packing',
    '--verify',
  ]
  first = run(*command)
  table = dict(re.findall(r'^(\S.*?)  +(.*)$', first.stdout, re.M))
  assert int(table['documents']) == len(documents) + 1
  assert table['invalid UTF-8'] == '1'
  cache = data.TokenCache(table['token cache'])
  assert int(table['tokens'].replace(',', '')) == len(cache.tokens)
  assert re.search(r'train: [\d,]+ packed rows of 16 tokens', first.stdout)
  stamp = os.stat(cache.path / 'tokens.bin').st_mtime_ns
  run(*command)
  assert os.stat(cache.path / 'tokens.bin').st_mtime_ns == stamp
  dataset = data.TokenDataset(
    data.TextFiles(str(text_file), document='line'),
    length=16,
    batch_size=2,
    vocabulary=vocabulary,
    data_dir=str(root),
  )
  assert dataset.cache.path == cache.path


@pytest.mark.parametrize(
  'arguments, message',
  [
    (['prepare', '--input', '/no/such.txt'], 'no such file'),
    (['prepare', '--input', '/tmp', '--task', 'metro_c4'], 'one of them'),
    (['prepare', '--input', __file__, '--document', 'page'], 'blank_line'),
    (['prepare', '--vocabulary', '/no/such.model'], 'VOCABULARY'),
    (['vocabulary', '--output', 'x.bin'], '.model'),
    (
      [
        'vocabulary',
        '--output',
        '/tmp/x.model',
        '--size',
        '3',
        '--input',
        __file__,
      ],
      'VOCAB_SIZE',
    ),
  ],
)
def test_mistakes_get_one_line(arguments, message):
  module, *rest = arguments
  done = run(f'metro_jax.{module}', *rest, code=2)
  (line,) = done.stderr.strip().split('\n')
  assert line.startswith('error: ')
  assert message in line


def test_an_altered_cache_gets_one_line(tmp_path, text_file, vocabulary):
  command = [
    'metro_jax.prepare',
    '--input',
    text_file,
    '--document=line',
    '--vocabulary',
    vocabulary.path,
    '--data_dir',
    tmp_path / 'root',
  ]
  run(*command)
  (tokens,) = (tmp_path / 'root/tokens').glob('*/tokens.bin')
  os.truncate(tokens, 1000)
  done = run(*command, code=2)
  assert 'cut short' in done.stderr
  assert 'delete that folder' in done.stderr


@pytest.mark.parametrize('module', ['vocabulary', 'prepare'])
def test_help(module):
  text = run(f'metro_jax.{module}', '--help').stdout
  for flag in ('--task', '--input', '--document', '--data_dir'):
    assert flag in text
