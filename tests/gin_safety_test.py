# SPDX-License-Identifier: Apache-2.0
"""What a stranger's gin file may do, and that our own may do all they do."""

import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
HEAD = """
from __gin__ import dynamic_registration
import metro_jax.gin_registration
from metro_jax import data
"""

# Parses every file named on the command line, each as one of a new process.
PARSE = """
import sys
import gin
from metro_jax import gin_safety, gin_registration
from metro_jax.cli import ROOT
gin.add_config_file_search_path(str(ROOT))
gin_safety.restrict(gin.config, sys.argv[1].split(',') if sys.argv[1] else ())
for path in sys.argv[2:]:
  gin.clear_config()
  try:
    gin.parse_config_file(path)
  except Exception as error:
    print(path, type(error).__name__, str(error).splitlines()[0])
  else:
    print(path, 'good')
"""

STRANGERS = {
  'import_os': 'import os\n',
  'import_from': 'from os import path\n',
  'without_registration': 'import subprocess\n',
  'by_dots': HEAD + 'X = @data.files.os.system()\n',
  'bound_by_dots': HEAD + "data.files.os.system.command = 'true'\n",
  'function_of_ours': HEAD + 'X = @data.files.write_atomically()\n',
  'program': HEAD + 'import metro_jax.scripts.install\n',
  'lookalike': HEAD + 'import metro_jax_evil\n',
}


def parse(*paths, allowed=''):
  done = subprocess.run(
    [sys.executable, '-c', PARSE, allowed, *map(str, paths)],
    cwd=ROOT,
    env=os.environ,
    capture_output=True,
    text=True,
    check=True,
  )
  return dict(line.split(' ', 1) for line in done.stdout.splitlines())


@pytest.fixture(scope='module')
def answers(tmp_path_factory):
  """One process for all files, ours and theirs: importing takes seconds."""
  folder = tmp_path_factory.mktemp('gin')
  theirs = []
  for name, text in STRANGERS.items():
    start = '' if name == 'without_registration' else HEAD
    path = folder / f'{name}.gin'
    path.write_text(text if text.startswith(HEAD) else start + text)
    theirs.append(path)
  ours = sorted((ROOT / 'gin_configs').rglob('*.gin'))
  found = parse(*ours, *theirs)
  return {pathlib.Path(p): answer for p, answer in found.items()}


def test_strangers_are_refused(answers):
  for path, answer in answers.items():
    if ROOT not in path.parents:
      assert 'UserError --safe_gin: ' in answer, (path.name, answer)
  named = {path.stem: answer for path, answer in answers.items()}
  assert 'imports os, which is not among' in named['import_os']
  assert 'import_os.gin, line 5' in named['import_os']
  assert '--safe_gin_imports=subprocess' in named['without_registration']
  assert 'data.files.os.system is not one of' in named['by_dots']


def test_our_own_recipes_need_nothing_else(answers):
  ours = {p: a for p, a in answers.items() if ROOT in p.parents}
  # T5X's own program is what its run file imports; ours never reads it.
  ours = {p: a for p, a in ours.items() if p.parent.name != 't5x'}
  assert len(ours) > 20
  assert set(ours.values()) == {'good'}, ours
