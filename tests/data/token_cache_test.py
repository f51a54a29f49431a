# SPDX-License-Identifier: Apache-2.0
"""The cache holds the documents' tokens, whole or not at all."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from metro_jax import data
from metro_jax.data import files, rows, token_cache
from metro_jax.errors import UserError


@pytest.fixture
def cache(tmp_path, documents, vocabulary) -> data.TokenCache:
  return token_cache.build(
    tmp_path / 'cache', documents, vocabulary, 'test', invalid_utf8=lambda: 3
  )


def test_holds_every_document(cache, documents, vocabulary):
  assert len(cache.offsets) == len(documents) + 1
  for i, text in enumerate(documents):
    start, end = cache.offsets[i : i + 2]
    assert cache.tokens[start:end].tolist() == vocabulary.encode(text)
  assert cache.manifest['documents'] == len(documents)
  assert cache.manifest['tokens'] == len(cache.tokens)
  assert cache.manifest['characters'] == sum(map(len, documents))
  assert cache.describe()['invalid_utf8'] == 3
  cache.verify()


def test_dtype_follows_the_vocabulary(cache, tmp_path, documents):
  assert cache.tokens.dtype == np.uint16

  class Large:
    size, hash = 100_000, 'x'

    def encode_batch(self, texts):
      return np.full(len(texts), 99_999, np.int32), np.ones(len(texts), int)

  large = token_cache.build(tmp_path / 'large', documents, Large())
  assert large.tokens.dtype == np.uint32
  assert (large.tokens == 99_999).all()


def test_same_text_same_fingerprint(cache, tmp_path, documents, vocabulary):
  again = token_cache.build(tmp_path / 'again', iter(documents), vocabulary)
  assert again.fingerprint == cache.fingerprint
  other = token_cache.build(tmp_path / 'other', documents[1:], vocabulary)
  assert other.fingerprint != cache.fingerprint


def test_splits_part_the_documents(cache):
  for fraction in (0.01, 0.2, 0.9):
    held_out = cache.in_split('validation', fraction)
    assert held_out.any()
    assert np.array_equal(cache.in_split('train', fraction), ~held_out)
  assert cache.in_split('all', 0.2).all()
  assert cache.in_split('validation', 1e-9).sum() == 1  # Never none.


def alter(path, at, size=None):
  with path.open('r+b') as file:
    if size is not None:
      file.truncate(size)
    else:
      file.seek(at)
      byte = file.read(1)[0]
      file.seek(at)
      file.write(bytes([byte ^ 1]))


@pytest.mark.parametrize(
  'name', ['tokens.bin', 'offsets.npy', 'hashes.npy', 'manifest.json']
)
@pytest.mark.parametrize('how', ['cut', 'altered', 'missing', 'empty'])
def test_damage_is_seen(cache, name, how):
  path = cache.path / name
  size = path.stat().st_size
  if how == 'missing':
    path.unlink()
  elif how == 'altered':
    if name == 'manifest.json':
      path.write_text(path.read_text().replace('"tokens": ', '"tokens": 1'))
    else:
      alter(path, size - 3)
  else:
    alter(path, 0, size=0 if how == 'empty' else size - 2)
  with pytest.raises(UserError, match='delete that folder'):
    data.TokenCache(cache.path)


def test_checksums_cover_every_block(
  cache, monkeypatch, tmp_path, documents, vocabulary
):
  monkeypatch.setattr(token_cache, '_BLOCK', 1000)
  small = token_cache.build(tmp_path / 'small', documents, vocabulary)
  blocks = small.manifest['checksums']['tokens.bin']
  assert len(blocks) == -(-small.tokens.nbytes // 1000) > 16
  alter(small.path / 'tokens.bin', 1500)
  with pytest.raises(UserError, match='block 1'):
    small.verify()


def test_a_failed_build_leaves_nothing(tmp_path, vocabulary):
  def documents():
    yield 'the people'
    raise UserError('stop')

  with pytest.raises(UserError, match='stop'):
    token_cache.build(tmp_path / 'cache', documents(), vocabulary)
  with pytest.raises(UserError, match='no text'):
    token_cache.build(tmp_path / 'cache', iter(()), vocabulary)
  assert not list(tmp_path.iterdir())


def test_a_killed_build_is_made_anew(tmp_path, vocabulary):
  code = (
    'import os, pathlib, sys\nfrom metro_jax import data\n'
    'def documents():\n'
    "  yield 'the people ' * 200000\n"
    '  os.kill(os.getpid(), 9)\n'
    'data.token_cache.build(pathlib.Path(sys.argv[1]), documents(),'
    ' data.Vocabulary(sys.argv[2]))\n'
  )
  path = tmp_path / 'cache'
  done = subprocess.run([sys.executable, '-c', code, path, vocabulary.path])
  assert done.returncode == -9
  assert not path.exists()
  made = token_cache.open_or_build(
    path, lambda: token_cache.build(path, ['the people'], vocabulary)
  )
  assert made.manifest['documents'] == 1


def test_two_processes_build_once(tmp_path, vocabulary, text_file):
  code = (
    'import sys\nfrom metro_jax import data\n'
    'd = data.TokenDataset(data.TextFiles(sys.argv[1], document="line"),'
    ' length=16, batch_size=4, vocabulary=sys.argv[2], data_dir=sys.argv[3])\n'
    'print(d.fingerprint, d.batch(5)["encoder_input_tokens"].sum())\n'
  )
  arguments = [sys.executable, '-c', code, text_file, vocabulary.path]
  running = [
    subprocess.Popen(
      [*arguments, tmp_path / 'root'],
      stdout=subprocess.PIPE,
      env=os.environ | {'PYTHONHASHSEED': str(i)},
    )
    for i in range(3)
  ]
  outputs = {p.communicate()[0] for p in running}
  assert [p.returncode for p in running] == [0, 0, 0]
  assert len(outputs) == 1
  assert len(list((tmp_path / 'root/tokens').glob('text-*'))) == 1
  assert not list((tmp_path / 'root/tokens').glob('.*.building'))


@pytest.mark.parametrize('packed', [False, True])
def test_rows_are_kept_and_mended(cache, packed):
  arguments = ('train', 0.1, 16, packed)
  first = rows.load(cache, *arguments)
  (folder,) = cache.path.glob('rows-16-*')
  kept = rows.load(cache, *arguments)
  again = rows.Rows(*(a if a is None else a.copy() for a in kept))
  alter(folder / 'starts.npy', 200)
  mended = rows.load(cache, *arguments)
  (folder / 'lengths.npy').unlink()
  mended_again = rows.load(cache, *arguments)
  for other in (again, mended, mended_again):
    for a, b in zip(first, other, strict=True):
      assert np.array_equal(a, b)
  assert json.loads((folder / 'checksums.json').read_text())


@pytest.mark.skipif(os.geteuid() == 0, reason='root may write anywhere')
def test_forbidden_folder(tmp_path, documents, vocabulary):
  tmp_path.chmod(0o500)
  with pytest.raises(UserError, match='METRO_DATA_DIR'):
    token_cache.build(tmp_path / 'cache', documents, vocabulary)


def test_full_disk_is_one_line(tmp_path):
  with (
    pytest.raises(UserError, match=r'No space left.*METRO_DATA_DIR'),
    files.new_folder(tmp_path / 'cache'),
    open('/dev/full', 'wb') as full,
  ):
    full.write(b'x' * 100_000)
    full.flush()
  assert not list(tmp_path.iterdir())


def test_what_a_killed_builder_left_is_removed(tmp_path):
  left, others = tmp_path / '.cache.123.building', tmp_path / '.b.123.building'
  for folder in (left, others):
    folder.mkdir()
    (folder / 'tokens.bin').write_bytes(b'x')
  with files.lock(tmp_path / 'cache'):
    assert not left.exists()
  assert others.exists()
