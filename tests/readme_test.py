# SPDX-License-Identifier: Apache-2.0
"""What the documentation says can be typed, exists.

Every command in README.md and docs/ is read: its module, its flags, its gin
files and bindings, its make target. Links and pictures lead somewhere. Python
examples are run.
"""

import inspect
import os
import pathlib
import re
import shlex
import subprocess
import sys

import gin
import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
PAGES = [
  ROOT / 'README.md',
  ROOT / 'CONTRIBUTING.md',
  *sorted((ROOT / 'docs').glob('*.md')),
]
RECIPES = sorted((ROOT / 'gin_configs' / 'metro_lm').glob('*.gin'))
TRAINER = {
  'metro_jax.train': 'gin_configs/runs/pretrain.gin',
  'metro_jax.evaluate': 'gin_configs/runs/pretrain.gin',
  'metro_jax.finetune': 'gin_configs/runs/finetune.gin',
}

pytest_plugins = ('tiny_run',)


def blocks(page, language):
  """Code blocks of a page."""
  found = re.findall(
    r'^( *)```(\w*)\n(.*?)^\1```$', page.read_text(), re.M | re.S
  )
  return [text for _, name, text in found if name == language]


def commands():
  """(page, words) of each command line in the documentation."""
  out = []
  for page in PAGES:
    for block in blocks(page, 'bash'):
      joined = re.sub(r'\\\n\s*', ' ', block)
      for line in joined.splitlines():
        for part in line.split('#')[0].split(' | '):
          words = shlex.split(part)
          if words:
            out.append((page.name, words))
  return out


COMMANDS = commands()
MODULES = sorted(
  {
    words[words.index('-m') + 1]
    for _, words in COMMANDS
    if '-m' in words[1:] and 'python' in words[words.index('-m') - 1]
  }
  - {'venv', 'pip'}
)


def using(module):
  return [
    (page, words[words.index(module) + 1 :])
    for page, words in COMMANDS
    if module in words
  ]


def test_commands_were_found():
  assert {'metro_jax.train', 'metro_jax.infer', 'metro_jax.plot'} <= {*MODULES}
  assert len(COMMANDS) > 20
  assert sum('make' in words for _, words in COMMANDS) >= 5


@pytest.mark.parametrize('module', MODULES)
def test_flags_exist(module):
  done = subprocess.run(
    [sys.executable, '-m', module, '--help'],
    capture_output=True,
    text=True,
    check=True,
  )
  known = set(re.findall(r'--(?:\[no\])?(\w+)', done.stdout)) | {'help'}
  for page, words in using(module):
    for word in words:
      flag = re.match(r'--([\w.]+)', word)
      if flag and not flag.group(1).startswith('gin.'):
        assert flag.group(1) in known, f'{page}: {module} has no {word}'


@pytest.fixture
def configuration(monkeypatch):
  """Gin's global configuration, empty and left empty."""
  import metro_jax.gin_registration  # noqa: F401

  gin.clear_config()
  # As cli.py does: a folder runs/, which the quickstart makes, is no package.
  monkeypatch.setattr(gin.config, '_FILE_READERS', [(open, os.path.isfile)])
  for path in (ROOT, ROOT / 'gin_configs'):
    gin.add_config_file_search_path(str(path))
  yield
  gin.clear_config()


def macros():
  return {
    scope for scope, selector in gin.config._CONFIG if selector == 'gin.macro'
  }


@pytest.mark.parametrize('recipe', RECIPES, ids=lambda p: p.stem)
def test_recipes_parse_and_build(recipe, configuration):
  gin.parse_config_file('gin_configs/runs/pretrain.gin')
  gin.parse_config_file(f'metro_lm/{recipe.name}')
  if recipe.stem == 'metro_lm':
    return  # What the others include: it leaves sizes open.
  model = gin.query_parameter('%MODEL').scoped_configurable_fn()
  assert model.max_length == gin.query_parameter('%LENGTH')
  named = f'`metro_lm/{recipe.name}`'
  for page in (ROOT / 'README.md', ROOT / 'docs' / 'recipes.md'):
    assert named in page.read_text(), f'{page.name} leaves out {named}'


def test_bindings_in_commands_parse(configuration):
  seen = 0
  for page, words in COMMANDS:
    for module, run_file in TRAINER.items():
      if module not in words:
        continue
      gin.clear_config()
      gin.parse_config_file(run_file)
      files = [w.split('=', 1)[1] for w in words if w.startswith('--gin_file=')]
      for file in files or ['metro_lm/tiny.gin']:
        if file != 'my.gin':  # The recipe that docs/recipes.md writes.
          gin.parse_config_file(file)
      known = macros()
      for word in words:
        if word.startswith('--gin.'):
          check_binding(word.removeprefix('--gin.'), known, page)
          seen += 1
  assert seen > 15


def check_binding(binding, known, page):
  """Parses NAME=VALUE as the command line does."""
  from metro_jax import cli

  name, value = binding.split('=', 1)
  if re.fullmatch(r'\w+', name):
    assert name in known, f'{page}: there is no macro {name}'
  gin.parse_config(f'{name} = {cli.quote_bare(value, name)}')


def test_switches_of_the_recipes_page_parse(configuration):
  text = (ROOT / 'docs' / 'recipes.md').read_text()
  found = re.findall(r'^\|[^|]+\| `(--gin\..*?)` \|$', text, re.M)
  assert len(found) > 12
  for flag in found:
    gin.clear_config()
    gin.parse_config_file('gin_configs/runs/pretrain.gin')
    gin.parse_config_file('metro_lm/tiny.gin')
    for word in shlex.split(flag):
      check_binding(word.removeprefix('--gin.'), macros(), 'recipes.md')
    gin.query_parameter('%MODEL').scoped_configurable_fn()


def test_the_recipe_of_the_recipes_page_builds(configuration, tmp_path):
  (block,) = [
    b
    for b in blocks(ROOT / 'docs' / 'recipes.md', '')
    if b.startswith('# my.gin')
  ]
  (tmp_path / 'my.gin').write_text(block)
  gin.parse_config_file('gin_configs/runs/pretrain.gin')
  gin.parse_config_file(str(tmp_path / 'my.gin'))
  model = gin.query_parameter('%MODEL').scoped_configurable_fn()
  assert model.pretrainer.main.config.num_layers == 12
  assert model.pretrainer.auxiliary.config.num_layers == 4


def test_bindings_of_the_paper_page_exist(configuration):
  text = (ROOT / 'docs' / 'paper_to_code.md').read_text()
  named = set(re.findall(r'`([A-Z][A-Z_]{3,})(?: = [^`]*)?`', text))
  assert len(named) > 12
  known = set()
  for family in ('metro_lm', 'amos', 'fast_electra', 'coco_lm'):
    gin.parse_config_file('gin_configs/runs/pretrain.gin')
    gin.parse_config_file(f'{family}/tiny.gin')
    known |= macros()
  # Those of fine-tuning need a pretrained MODEL_DIR to be parsed.
  tuning = (ROOT / 'gin_configs' / 'runs' / 'finetune.gin').read_text()
  known |= set(re.findall(r'^([A-Z_]+) = ', tuning, re.MULTILINE))
  assert named <= known, named - known
  for name in re.findall(
    r'`((?:modules|pretrain|training|data)\.[\w.]+)', text
  ):
    target, _, parameter = name.rpartition('.')
    found = gin.config._REGISTRY.get_match(name)
    if found is None:
      owner = gin.config._REGISTRY.get_match(target).wrapped
      assert parameter in inspect.signature(owner).parameters, name


def test_macros_of_the_training_page_exist(configuration):
  gin.parse_config_file('gin_configs/runs/pretrain.gin')
  gin.parse_config_file('metro_lm/tiny.gin')
  text = (ROOT / 'docs' / 'training.md').read_text()
  table = text.split('## Macros')[1].split('\n## ')[0]
  named = set(re.findall(r'`([A-Z][A-Z_]+)`', table))
  assert len(named) > 25
  assert named <= macros(), named - macros()


def test_files_named_in_the_docs_exist():
  for page in PAGES:
    for name in re.findall(
      r'`((?:metro_jax|pallas_kernels|tasks|tests|gin_configs|docs)/[\w./]+\w)`',
      page.read_text(),
    ):
      assert (ROOT / name).exists(), f'{page.name} names {name}'


def test_links_lead_somewhere():
  count = 0
  for page in PAGES:
    for target in re.findall(r'\]\(([^)\s]+)\)', page.read_text()):
      if target.startswith('http'):
        continue
      count += 1
      name, _, anchor = target.partition('#')
      path = page.parent / name if name else page
      assert path.exists(), f'{page.name} links to {target}'
      if anchor:
        titles = re.findall(r'^#+ (.*)', path.read_text(), re.M)
        anchors = {
          re.sub(r'[^\w -]', '', t).lower().replace(' ', '-') for t in titles
        }
        assert anchor in anchors, f'{page.name} links to {target}'
  assert count > 20


def test_make_targets_exist():
  text = (ROOT / 'Makefile').read_text()
  targets = set(re.findall(r'^([\w-]+):', text, re.M))
  for page, words in COMMANDS:
    if words[0] == 'make':
      for word in words[1:]:
        if '=' in word:
          assert re.search(rf'\b{word.split("=")[0]}\b', text), f'{page} {word}'
        else:
          assert word in targets, f'{page}: make {word}'


def test_ci_runs_the_test_command_of_the_readme():
  script = (ROOT / '.ci' / 'run').read_text()
  first = [w for p, w in COMMANDS if p == 'README.md' and w[0] == 'make']
  assert ['make', 'test'] in first
  assert re.search(r'^step test make test$', script, re.M)
  subprocess.run(['bash', '-n', ROOT / '.ci' / 'run'], check=True)


def test_make_test_installs_what_it_needs():
  done = subprocess.run(
    ['make', '-n', 'test', 'VENV=/nonexistent/venv'],
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=True,
  )
  steps = ['make_venv.sh', "--extras='test,'", 'pytest -n 2']
  places = [done.stdout.index(step) for step in steps]
  assert places == sorted(places)


def test_a_python_that_will_not_do_is_named(tmp_path):
  old = tmp_path / 'python3'
  old.write_text('#!/bin/sh\nexit 1\n')
  old.chmod(0o755)
  done = subprocess.run(
    ['sh', 'metro_jax/scripts/make_venv.sh', tmp_path / 'venv', old],
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 2
  assert done.stderr.startswith(f'error: PYTHON={old} is not a Python 3.11')
  assert not (tmp_path / 'venv').exists()


def test_python_example_of_the_readme_runs(tiny_run):
  (example,) = blocks(ROOT / 'README.md', 'python')
  code = example.replace("'runs/quickstart'", repr(str(tiny_run)))
  assert code != example
  scope = {}
  exec(code, scope)
  assert scope['encoding'].hidden.shape[1] == 32
  assert '[MASK]' not in scope['filling'].filled
  assert len(scope['detection'].p_replaced) == len(scope['detection'].tokens)
