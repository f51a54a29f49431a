# SPDX-License-Identifier: Apache-2.0
"""Text files: units, compression, encodings, long lines, bad input."""

import gzip
import json
import os
import subprocess
import sys

import pytest

from metro_jax.data import TextFiles, hashing, text_files
from metro_jax.errors import UserError


def read(path, **options) -> list[str]:
  return list(TextFiles(str(path), **options).documents())


def write(path, data: str | bytes):
  data = data.encode() if isinstance(data, str) else data
  opener = gzip.open if path.suffix == '.gz' else open
  with opener(path, 'wb') as file:
    file.write(data)
  return path


TEXT = 'one\ntwo two\n\n \t\nthree\r\nthree\r\n\r\nfour'


@pytest.mark.parametrize('name', ['a.txt', 'a.txt.gz'])
@pytest.mark.parametrize(
  'unit, expected',
  [
    ('file', [TEXT]),
    ('line', ['one', 'two two', 'three\r', 'three\r', 'four']),
    ('blank_line', ['one\ntwo two\n', 'three\r\nthree\r\n', 'four']),
  ],
)
@pytest.mark.parametrize('block', [1 << 20, 1, 3, 7])
def test_units(tmp_path, monkeypatch, name, unit, expected, block):
  monkeypatch.setattr(text_files, '_BLOCK', block)
  path = write(tmp_path / name, TEXT)
  assert read(path, document=unit) == expected


@pytest.mark.parametrize('name', ['a.jsonl', 'a.jsonl.gz', 'a.txt'])
@pytest.mark.parametrize('block', [1 << 20, 5])
def test_json_lines(tmp_path, monkeypatch, name, block):
  monkeypatch.setattr(text_files, '_BLOCK', block)
  texts = ['first\nwith a new line', 'zweiter – äöü', '\u2028 third']
  lines = [json.dumps({'id': 1, 'body': t}, ensure_ascii=False) for t in texts]
  path = write(tmp_path / name, '\n'.join(lines) + '\n\n')
  unit = 'json' if name == 'a.txt' else 'file'
  assert read(path, document=unit, json_key='body') == texts


def test_globs(tmp_path):
  for name in ('b.txt', 'a/c.txt', 'a/d/e.txt', 'a/d/skip.md'):
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_text(name)
  assert read(tmp_path / '**/*.txt') == ['a/c.txt', 'a/d/e.txt', 'b.txt']
  twice = TextFiles([str(tmp_path / '*.txt'), str(tmp_path / '**/b.*')])
  assert list(twice.documents()) == ['b.txt']


def test_invalid_utf8(tmp_path):
  good = 'gut \ufffd ö '.encode()
  path = write(tmp_path / 'a.txt', good * 3 + b'bad \xff\xfe x \xc3(' + good)
  source = TextFiles(str(path))
  (text,) = source.documents()
  assert source.invalid == 3
  assert text.count('\ufffd') == 3 + 4
  list(source.documents())
  assert source.invalid == 3  # Counted anew each time.
  with pytest.raises(UserError, match=r'a\.txt: invalid UTF-8 at byte 37'):
    read(path, invalid_utf8='error')


@pytest.mark.parametrize('block', [1, 2, 3, 4, 5, 11])
def test_invalid_utf8_across_blocks(tmp_path, monkeypatch, block):
  monkeypatch.setattr(text_files, '_BLOCK', block)
  data = 'aé中😀\ufffd'.encode() + b'\xe4\xb8' + b'z' + b'\xf0\x9f'
  path = write(tmp_path / 'a.txt', data)
  source = TextFiles(str(path))
  assert ''.join(source.documents()) == data.decode('utf-8', 'replace')
  assert source.invalid == 2
  with pytest.raises(UserError, match='at byte 13'):
    read(path, invalid_utf8='error')


def test_byte_order_mark(tmp_path):
  assert read(write(tmp_path / 'a.txt', '\ufeffhello')) == ['hello']


def test_long_documents_are_parted_at_spaces(tmp_path):
  words = [f'w{i}' for i in range(60000)]
  path = write(tmp_path / 'a.txt', ' '.join(words))
  parts = read(path)
  assert len(parts) > 4
  assert max(map(len, parts)) <= text_files.MAX_DOCUMENT
  assert ' '.join(parts).split() == words
  solid = read(write(tmp_path / 'b.txt', 'x' * 200_000))
  assert ''.join(solid) == 'x' * 200_000


def test_split_by_hash(text_file, documents):
  source = TextFiles(str(text_file), document='line', validation_fraction=0.2)
  parts = {s: list(source.documents(s)) for s in ('train', 'validation')}
  assert sorted(parts['train'] + parts['validation']) == sorted(documents)
  assert 30 < len(parts['validation']) < 90
  for text in parts['validation']:
    assert hashing.text_hash(text) < 0.2 * 2**64
  # A document keeps its side when others come or go.
  text_file.write_text('\n'.join(documents[::2]) + '\n')
  assert set(source.documents('validation')) <= set(parts['validation'])


def test_fingerprint(text_file):
  base = TextFiles(str(text_file), document='line').fingerprint()
  assert TextFiles([str(text_file)], document='line').fingerprint() == base
  assert TextFiles(str(text_file)).fingerprint() != base
  with text_file.open('a') as file:
    file.write('more\n')
  assert TextFiles(str(text_file), document='line').fingerprint() != base


@pytest.mark.parametrize(
  'options, message',
  [
    (dict(patterns=()), 'TEXT_FILES'),
    (dict(patterns='x', document='page'), 'blank_line'),
    (dict(patterns='x', invalid_utf8='ignore'), 'replace'),
    (dict(patterns='x', validation_fraction=1.0), 'validation_fraction'),
  ],
)
def test_bad_options(options, message):
  with pytest.raises(UserError, match=message):
    TextFiles(**options)


def test_bad_files(tmp_path):
  def fails(path, message, **options):
    with pytest.raises(UserError, match=message) as caught:
      read(path, **options)
    assert '\n' not in str(caught.value)

  fails(tmp_path / 'no.txt', 'no such file')
  fails(tmp_path / '*.txt', 'no file matches')
  fails(tmp_path, 'folder')
  fails(write(tmp_path / 'empty.txt', ''), 'empty')
  fails(write(tmp_path / 'blank.txt', ' \n\n'), 'no text')
  fails(
    write(tmp_path / 'a.jsonl', '{"text": "x"}\n{oops\n'), 'line 2: not JSON'
  )
  fails(write(tmp_path / 'b.jsonl', '{"body": "x"}\n'), "'text'")
  fails(write(tmp_path / 'c.jsonl', '["x"]\n'), 'json_key')
  whole = gzip.compress(b'hello ' * 10000)
  (tmp_path / 'cut.txt.gz').write_bytes(whole[:-20])
  fails(tmp_path / 'cut.txt.gz', 'gzip')
  (tmp_path / 'not.txt.gz').write_bytes(b'plain text')
  fails(tmp_path / 'not.txt.gz', 'gzip')
  os.symlink(tmp_path / 'gone', tmp_path / 'dangling.txt')
  fails(tmp_path / 'dangling.txt', 'no such file')


def test_an_empty_file_among_others_is_left_out(tmp_path, capsys):
  write(tmp_path / 'a.txt', 'hello')
  write(tmp_path / 'b.txt', '')
  assert read(tmp_path / '*.txt') == ['hello']
  assert '1 empty' in capsys.readouterr().err


LONG_LINE = """
import resource, sys
from metro_jax import data
path, model, unit = sys.argv[1:4]
vocabulary = data.Vocabulary(model)
vocabulary.encode('warm up')
used = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()
limit = used + 90 * 2**20  # Mapped files count too.
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
cache = data.token_cache.build(
  __import__('pathlib').Path(path + '.cache'),
  data.TextFiles(path, document=unit).documents(), vocabulary)
print(cache.manifest['characters'])
"""


@pytest.mark.parametrize('unit', ['line', 'file'])
def test_a_line_of_100_mb_in_90_mb(tmp_path, vocabulary, unit):
  path = tmp_path / 'long.txt'
  with path.open('w') as file:
    for _ in range(100):
      file.write('the people of the water ' * 41667)
  assert path.stat().st_size > 100_000_000
  done = subprocess.run(
    [sys.executable, '-c', LONG_LINE, path, vocabulary.path, unit],
    capture_output=True,
    text=True,
  )
  path.unlink()
  assert done.returncode == 0, done.stderr
  assert int(done.stdout) == 100 * 41667 * 24


def test_a_json_line_without_end_is_refused(tmp_path, monkeypatch):
  monkeypatch.setattr(text_files, 'MAX_JSON_LINE', 1 << 20)
  path = write(tmp_path / 'a.jsonl', '{"text": "' + 'x' * (3 << 20) + '"}\n')
  with pytest.raises(UserError, match='line 1: a JSON line of over 1 MiB'):
    read(path)
