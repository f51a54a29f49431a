# SPDX-License-Identifier: Apache-2.0
"""The embedded corpus: docstrings of the Python packages that are installed.

One document is one module: its docstrings in the order of the file. A single
docstring is too short to fill a row of 128 tokens, and docstrings of a module
speak of one subject. A paragraph that occurred before, anywhere, is left out.
The same Python and package versions give the same corpus, byte for byte.
"""

import functools
import importlib.metadata
import json
import os
import pathlib
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator

from metro_jax.data import docstring_text, files, hashing, text_files
from metro_jax.errors import UserError

VERSION = 2
# Import name and the distribution it comes from. Those that are not installed
# are passed over.
PACKAGES = (
  ('absl', 'absl-py'),
  ('chex', 'chex'),
  ('clu', 'clu'),
  ('etils', 'etils'),
  ('flax', 'flax'),
  ('fontTools', 'fonttools'),
  ('fsspec', 'fsspec'),
  ('gin', 'gin-config'),
  ('h5py', 'h5py'),
  ('jax', 'jax'),
  ('joblib', 'joblib'),
  ('keras', 'keras'),
  ('matplotlib', 'matplotlib'),
  ('ml_collections', 'ml_collections'),
  ('numpy', 'numpy'),
  ('optax', 'optax'),
  ('orbax', 'orbax-checkpoint'),
  ('PIL', 'pillow'),
  ('pip', 'pip'),
  ('pkg_resources', 'setuptools'),
  ('pyarrow', 'pyarrow'),
  ('pygments', 'Pygments'),
  ('pyglove', 'pyglove'),
  ('requests', 'requests'),
  ('rich', 'rich'),
  ('scipy', 'scipy'),
  ('seqio', 'seqio'),
  ('setuptools', 'setuptools'),
  ('sklearn', 'scikit-learn'),
  ('tensorboard', 'tensorboard'),
  ('tensorflow', 'tensorflow'),
  ('tensorflow_datasets', 'tensorflow-datasets'),
  ('tensorflow_text', 'tensorflow-text'),
  ('treescope', 'treescope'),
  ('urllib3', 'urllib3'),
  ('werkzeug', 'Werkzeug'),
)
_SKIPPED_FOLDERS = frozenset(
  (
    '__pycache__',
    'site-packages',
    'dist-packages',
    'test',
    'tests',
    '_api',
    'lib2to3',
    '_vendor',
    'vendor',
  )
)
_SHORTEST_DOCUMENT = 200  # Characters.


@functools.cache
def _roots() -> tuple[tuple[str, str, str], ...]:
  """(name, version, folder) of the standard library and each package."""
  python = '.'.join(map(str, sys.version_info[:3]))
  found = [('python', python, sysconfig.get_path('stdlib'))]
  for name, distribution in PACKAGES:
    try:
      installed = importlib.metadata.distribution(distribution)
    except importlib.metadata.PackageNotFoundError:
      continue
    folder = str(installed.locate_file(name))
    if os.path.isdir(folder):
      found.append((name, installed.version, folder))
  return tuple(found)


def fingerprint() -> str:
  """Names the corpus of this environment."""
  versions = [(name, version) for name, version, _ in _roots()]
  return hashing.short_hash(VERSION, text_files.MAX_DOCUMENT, versions)


def documents(data_dir: pathlib.Path) -> Iterator[str]:
  """Streams the corpus, building it on first use.

  Args:
    data_dir: where it is kept.
  """
  with path(data_dir).open(encoding='utf-8') as file:
    for line in file:
      yield json.loads(line)['text']


def path(data_dir: pathlib.Path) -> pathlib.Path:
  """The corpus as JSON lines; built if it is not there."""
  target = data_dir / 'docstrings' / f'docstrings-{fingerprint()}.jsonl'
  if not target.exists():
    with files.lock(target):
      if not target.exists():
        _build(target)
  return target


def _source_files() -> list[str]:
  """All Python files of the roots, in an order that every machine repeats."""
  found = []
  for _, _, root in _roots():
    for folder, folders, names in os.walk(root):
      folders[:] = sorted(f for f in folders if f not in _SKIPPED_FOLDERS)
      found += [
        os.path.join(folder, n) for n in sorted(names) if n.endswith('.py')
      ]
  return found


def _build(target: pathlib.Path) -> None:
  workers = max(1, min(8, len(os.sched_getaffinity(0))))
  progress = files.Progress('reading docstrings', 'characters')
  seen: set[int] = set()
  size = count = 0
  lines = []
  for paragraphs in _extract(workers):
    kept = []
    for text in paragraphs:
      key = hashing.text_hash(text.lower())
      if key not in seen:
        seen.add(key)
        kept.append(text)
    for document in text_files.bounded('\n\n'.join(kept)):
      if len(document) >= _SHORTEST_DOCUMENT:
        lines.append(json.dumps({'text': document}, ensure_ascii=False))
        size, count = size + len(document), count + 1
    progress(size)
  if not lines:
    raise UserError(
      'embedded corpus: no docstrings found in this Python; give text of your'
      ' own (TEXT_FILES)'
    )
  files.write_atomically(target, ('\n'.join(lines) + '\n').encode('utf-8'))
  progress.done(size, f', {count:,} documents')


def _extract(workers: int) -> Iterator[list[str]]:
  """Paragraphs of each file in order, read by several processes.

  Separate commands rather than multiprocessing: forking under JAX's threads
  may hang, and spawning would import the caller's main module again.
  """
  root = str(pathlib.Path(__file__).resolve().parents[2])
  inherited = os.environ.get('PYTHONPATH')
  search = os.pathsep.join([root, *filter(None, [inherited])])
  with tempfile.TemporaryDirectory() as folder:
    listing = pathlib.Path(folder) / 'files.json'
    listing.write_text(json.dumps(_source_files()))
    running = []
    try:
      for shard in range(workers):
        command = [
          sys.executable,
          '-W',
          'ignore',
          '-m',
          __name__,
          str(listing),
          str(shard),
          str(workers),
        ]
        running.append(
          subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            env=os.environ | {'PYTHONPATH': search},
          )
        )
      for index in range(len(json.loads(listing.read_text()))):
        line = running[index % workers].stdout.readline()
        if not line:
          raise RuntimeError('a reader of docstrings ended before its time')
        yield json.loads(line)
    finally:
      for process in running:
        process.stdout.close()
        process.terminate()
        process.wait()


def _main(listing: str, shard: int, workers: int) -> None:
  """One reader: paragraphs of every workers-th file, a JSON line each."""
  names = json.loads(pathlib.Path(listing).read_text())
  for name in names[shard::workers]:
    try:
      found = docstring_text.paragraphs_of_source(
        pathlib.Path(name).read_bytes()
      )
    except OSError:
      found = []
    print(json.dumps(found), flush=True)


if __name__ == '__main__':
  _main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
