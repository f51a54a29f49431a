# SPDX-License-Identifier: Apache-2.0
"""Every parser of bytes that others wrote: an answer, or one line.

A valid file is changed in one to three places, `fuzzing.CASES` times for each
parser. Texts and archives of texts are in data/hostile_text_test.py,
benchmarks' files in downstream/fuzzed_readers_test.py.
"""

import contextlib
import io
import json
import pathlib
import shutil
import sys
import tokenize

import corruption_models as tiny
import hypothesis
import numpy as np
import pytest
from fuzzing import changed, changes, fuzz, or_one_line
from hypothesis import strategies

from metro_jax import data, gin_safety, health, plot, report
from metro_jax.conversion import folders, pickles
from metro_jax.data import protobuf, stream_files, token_cache
from metro_jax.data.vocabularies import SPECIAL_PIECES
from metro_jax.errors import UserError
from metro_jax.training import integrity, lock, summaries


@pytest.fixture(scope='module')
def place(tmp_path_factory) -> pathlib.Path:
  """A small text, its vocabulary, its token cache."""
  folder = tmp_path_factory.mktemp('fuzz')
  tiny.datasets(folder)
  return folder


# ----------------------------------------------------------------------
# Data on disk.
# ----------------------------------------------------------------------


@fuzz
@hypothesis.given(changes(b'\x80' * 12, b'\x0a\xff\xff\xff\xff\x0f'))
def test_a_vocabulary(place, tmp_path, some):
  path = tmp_path / 'vocabulary.model'
  good = (place / 'vocabulary.model').read_bytes()
  path.write_bytes(changed(good, some))
  found = or_one_line(data.Vocabulary, path)
  if found:
    assert [found.piece(i) for i in range(5)] == [*SPECIAL_PIECES]


@fuzz
@hypothesis.given(strategies.binary(max_size=60))
def test_a_protobuf(raw):
  with contextlib.suppress(ValueError):
    protobuf.read_model(raw)


@fuzz
@hypothesis.given(changes(b'"vocab"', b'"id": 7'))
def test_a_tokenizer(tokenizer_json, tmp_path, some):
  path = tmp_path / 'tokenizer.json'
  path.write_bytes(changed(tokenizer_json, some))
  found = or_one_line(data.open_vocabulary, path)
  if found:
    assert [found.piece(i) for i in range(5)] == [*SPECIAL_PIECES]


@pytest.fixture(scope='module')
def tokenizer_json() -> bytes:
  tokenizers = pytest.importorskip('tokenizers')
  words = [*SPECIAL_PIECES, *'abc']
  model = tokenizers.models.WordLevel({w: i for i, w in enumerate(words)}, 'a')
  made = tokenizers.Tokenizer(model)
  made.add_special_tokens(list(SPECIAL_PIECES))
  return made.to_str().encode()


CACHE = ('manifest.json', 'offsets.npy', 'hashes.npy', 'tokens.bin')


@fuzz
@hypothesis.given(strategies.sampled_from(CACHE), changes(b'"checksums"'))
def test_a_token_cache(cache, tmp_path, name, some):
  """It is refused, or holds what it held."""
  copy = tmp_path / 'cache'
  shutil.copytree(cache.path, copy, dirs_exist_ok=True)
  path = copy / name
  path.write_bytes(changed(path.read_bytes(), some))
  found = or_one_line(token_cache.TokenCache, copy)
  if found:
    for array in ('tokens', 'offsets', 'hashes'):
      expected = getattr(cache, array)
      np.testing.assert_array_equal(getattr(found, array), expected)
    assert isinstance(found.fingerprint, str)


@pytest.fixture(scope='module')
def cache(place) -> token_cache.TokenCache:
  return tiny.datasets(place)['train'].cache


STREAM = ('manifest.json', 'vocabulary.model', 'originals/00000.npy')


@fuzz
@hypothesis.given(strategies.sampled_from(STREAM), changes(b'"rows": 3'))
def test_a_corrupted_stream(stream, tmp_path, name, some):
  """It is refused, or its files hold what they held."""
  copy = tmp_path / 'stream'
  shutil.copytree(stream, copy, dirs_exist_ok=True)
  path = copy / name
  path.write_bytes(changed(path.read_bytes(), some))
  or_one_line(data.CorruptedStream, str(tmp_path), 'stream', 1)
  found = or_one_line(stream_files.StreamReader, copy)
  array = found and or_one_line(found.array, None, 0)
  if array is not None and name != 'manifest.json':
    np.testing.assert_array_equal(array, np.load(stream / STREAM[2]))


@pytest.fixture(scope='module')
def stream(place, tmp_path_factory) -> pathlib.Path:
  """A stream of three rows and an epoch, written as metro_jax.corrupt does."""
  folder = tmp_path_factory.mktemp('stream')
  plan = {
    'rows': 3,
    'length': 8,
    'slots': 2,
    'vocabulary_size': tiny.VOCAB,
    'split': 'train',
    'mask_rate': 0.25,
    'dataset': 'x',
    'batch_size': 1,
    'shard_rows': 4,
    'epochs': [{'progress': 0.5}],
  }
  vocabulary = data.Vocabulary(place)
  writer = stream_files.StreamWriter(folder, plan, vocabulary)
  slots = stream_files.slot_dtype(8, tiny.VOCAB)
  for shard in stream_files.shards(plan):
    ids = np.arange(24).reshape(3, 8).astype('<u2')
    array = ids if shard.epoch is None else np.zeros((3, 2), slots)
    writer.write(shard, array, {'rows': 3, 'tokens': 24})
  assert writer.finish() == 0
  return folder


# ----------------------------------------------------------------------
# What a run finds in its folder.
# ----------------------------------------------------------------------


@fuzz
@hypothesis.given(changes(b'"sha256"', b'"files"'), strategies.booleans())
def test_a_seal(sealed, some, of_the_seal):
  """A file that is not what it was is found; so is another seal."""
  folder, files = sealed
  for name, content in files.items():
    (folder / name).write_bytes(content)
  name = integrity.SEAL if of_the_seal else 'state/values'
  (folder / name).write_bytes(changed(files[name], some))
  try:
    integrity.check(folder)
  except ValueError as error:
    assert '\n' not in str(error)
  else:
    known = json.loads((folder / integrity.SEAL).read_bytes())['files']
    assert of_the_seal or changed(files[name], some) == files[name]
    assert isinstance(known, dict)


@pytest.fixture(scope='module')
def sealed(tmp_path_factory) -> tuple[pathlib.Path, dict[str, bytes]]:
  folder = tmp_path_factory.mktemp('sealed')
  (folder / 'state').mkdir()
  (folder / 'state/values').write_bytes(bytes(range(256)))
  (folder / 'state/names').write_text('one, two')
  integrity.seal(folder)
  names = ('state/values', 'state/names', integrity.SEAL)
  return folder, {name: (folder / name).read_bytes() for name in names}


LINES = ''.join(
  json.dumps({'step': s, 'loss': 1 / s, 'loss/mlm': 2.0, 'rollbacks': 0}) + '\n'
  for s in range(1, 9)
).encode()


@fuzz
@hypothesis.given(changes(b'"step": null', b'3\n', b'{"step": "x"}\n'))
def test_logs(tmp_path, some):
  """A run goes on, and pages are made, whatever is in its logs."""
  (tmp_path / 'train').mkdir(exist_ok=True)
  for name in (summaries.FILE, summaries.EVENTS):
    (tmp_path / 'train' / name).write_bytes(changed(LINES, some))
  or_one_line(plot.load_run, tmp_path)
  health.findings(report._read(tmp_path / 'train' / summaries.FILE), 8)
  summaries.EventLog(tmp_path / 'train', 4)
  writer = summaries.MetricWriter(tmp_path / 'train', 4, tensorboard=False)
  writer.write(5, {'loss': 1.0})
  lines = summaries.read_jsonl(writer.path)
  assert lines[-1] == {'step': 5, 'loss': 1.0}
  assert all(line['step'] <= 5 for line in lines)
  health.findings(lines, 8)


@fuzz
@hypothesis.given(changes(b'"host": []'))
def test_a_lock(some):
  held = b'{"host": "a", "process": 7, "since": "2026-01-02 03:04:05"}\n'
  text = changed(held, some).decode(errors='replace')
  assert '\n' not in lock._owner(io.StringIO(text))


# ----------------------------------------------------------------------
# Models from elsewhere.
# ----------------------------------------------------------------------


@fuzz
@hypothesis.given(strategies.booleans(), changes(b'cos\nsystem\n', b'\x85R.'))
def test_a_pickle(pickled, tmp_path, zipped, some):
  path = tmp_path / 'x.pt'
  path.write_bytes(changed(pickled[zipped], some))
  or_one_line(pickles.load, path)


@pytest.fixture(scope='module')
def pickled(tmp_path_factory) -> dict[bool, bytes]:
  torch = pytest.importorskip('torch')
  path = tmp_path_factory.mktemp('pickles') / 'x.pt'
  out = {}
  for zipped in (True, False):
    tensors = {'model': {'x': torch.ones(3, 2), 'y': torch.zeros(4).half()}}
    torch.save(tensors, path, _use_new_zipfile_serialization=zipped)
    out[zipped] = path.read_bytes()
  return out


FOLDER = (folders.SAFETENSORS, 'model.safetensors.index.json', folders.CONFIG)


@fuzz
@hypothesis.given(strategies.sampled_from(FOLDER), changes(b'"../x"', b'"F64"'))
def test_a_model_folder(tmp_path, name, some):
  tensors = {'x': np.ones((3, 2), np.float32), 'y': np.zeros(4, np.int64)}
  folders.write(tmp_path, {'vocab_size': 7}, tensors)
  shard = tmp_path / 'model-1-of-1.safetensors'
  weights = {'weight_map': dict.fromkeys(tensors, shard.name)}
  (tmp_path / FOLDER[1]).write_text(json.dumps(weights))
  (tmp_path / name).write_bytes(changed((tmp_path / name).read_bytes(), some))
  if name != FOLDER[0]:
    (tmp_path / FOLDER[0]).rename(shard)
  found = or_one_line(folders.read_tensors, tmp_path)
  assert found is None or all(isinstance(x, np.ndarray) for x in found.values())
  or_one_line(folders.read_config, tmp_path)


# ----------------------------------------------------------------------
# Gin files with --safe_gin.
# ----------------------------------------------------------------------

# What the command line turns into one line.
REFUSALS = (
  UserError,
  ValueError,
  SyntaxError,
  NameError,
  AttributeError,
  ImportError,
  OSError,
  tokenize.TokenError,
)
GIN = (
  'from __gin__ import dynamic_registration\n',
  'import metro_jax.gin_registration\n',
  'from metro_jax import data\n',
  'import fuzz_bomb\n',
  'from metro_jax.cli import os\n',
  "include 'gin_configs/sizes/tiny.gin'\n",
  "include '/etc/passwd'\n",
  'X = @data.TextFiles()\n',
  'X = @fuzz_bomb.explode()\n',
  'X = @data.files.os.system()\n',
  "data.files.os.system.command = 'true'\n",
  'data.TextFiles.document = %X\n',
  'LENGTH = (1, 2',
  ')\n',
  '@',
  '%',
  '"\\x00',
  '# \ud7ff\n',
  '  ',
  '\n',
)


@fuzz
@hypothesis.given(
  strategies.lists(
    strategies.one_of(
      strategies.sampled_from(GIN), strategies.text(max_size=6)
    ),
    max_size=8,
  ).map(''.join)
)
def test_a_strangers_gin(careful_gin, text):
  """It is parsed or refused, and nothing of it is run."""
  with contextlib.suppress(*REFUSALS):
    careful_gin.parse_config(text)
  assert 'fuzz_bomb' not in sys.modules


@pytest.fixture
def careful_gin(tmp_path_factory, monkeypatch):
  import recipe_files

  gin = recipe_files.gin
  folder = tmp_path_factory.mktemp('bomb')
  (folder / 'fuzz_bomb.py').write_text('def explode(): pass\n')
  monkeypatch.syspath_prepend(folder)
  monkeypatch.setattr(gin.config, 'ParseContext', gin.config.ParseContext)
  with recipe_files.gin_loading._own_configuration():
    gin.add_config_file_search_path(str(recipe_files.ROOT))
    gin_safety.restrict(gin.config)
    yield gin
