# SPDX-License-Identifier: Apache-2.0
"""The house rules that a reader relies on: who imports whom, and how much.

The arrows of docs/design.md, read from the code with `ast`. An import inside
a function counts too: an arrow that turns back is wrong wherever it stands.
"""

import ast
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
PACKAGES = ('metro_jax', 'pallas_kernels', 'tasks')
FILES = sorted(p for d in PACKAGES for p in (ROOT / d).rglob('*.py'))

# Where a package stands; it may import only from those named after it.
# Longest prefix wins. What is not named here may be imported by anyone.
ALLOWED = {
  'pallas_kernels': {'pallas_kernels'},
  'metro_jax.ops': {'pallas_kernels', 'metro_jax.errors'},
  'metro_jax.modules': {
    'metro_jax.modules',
    'metro_jax.ops',
    'metro_jax.errors',
  },
  'metro_jax.losses': {'metro_jax.ops'},
  'metro_jax.metrics': set(),
  'metro_jax.pretrain': {
    'metro_jax.pretrain',
    'metro_jax.modules',
    'metro_jax.ops',
    'metro_jax.losses',
    'metro_jax.metrics',
    'metro_jax.errors',
  },
  'metro_jax.finetune': {
    'metro_jax.finetune',
    'metro_jax.modules',
    'metro_jax.ops',
    'metro_jax.metrics',
    'metro_jax.errors',
  },
  'metro_jax.finetune.__main__': {'metro_jax.cli'},
  'metro_jax.models': {
    'metro_jax.models',
    'metro_jax.finetune',
    'metro_jax.pretrain',
    'metro_jax.modules',
    'metro_jax.losses',
    'metro_jax.metrics',
    'metro_jax.flops',
    'metro_jax.decoding',
    'metro_jax.errors',
  },
  'metro_jax.decoding': {'metro_jax.ops', 'metro_jax.errors'},
  'metro_jax.data': {'metro_jax.data', 'metro_jax.errors'},
  'metro_jax.downstream': {
    'metro_jax.downstream',
    'metro_jax.data',
    'metro_jax.inference_text',
    'metro_jax.errors',
  },
  'metro_jax.t5x_adapter': {
    'metro_jax.metrics',
    'metro_jax.models.base',
    'metro_jax.training',
    'metro_jax.data.seqio_features',
  },
  'metro_jax.t5x_data': {'metro_jax.training'},
  'metro_jax.training': {
    'metro_jax.training',
    'metro_jax.models.base',
    'metro_jax.metrics',
    'metro_jax.flops',
    'metro_jax.health',
    'metro_jax.errors',
  },
  'metro_jax.health': set(),
  'tasks': {'tasks', 'metro_jax.data', 'metro_jax.errors'},
}

# Third-party packages that only these places may name.
CONFINED = {
  'gin': ('metro_jax.cli', 'metro_jax.gin_registration'),
  'clu': (
    'metro_jax.training.summaries',
    'metro_jax.t5x_adapter',
    'metro_jax.t5x_data',
  ),
  'seqio': ('metro_jax.data', 'tasks'),
  'tensorflow': ('metro_jax.data', 'tasks'),
  'tensorflow_datasets': ('metro_jax.data', 'tasks'),
  'sklearn': ('metro_jax.downstream', 'metro_jax.probe'),
  'rouge_score': ('metro_jax.downstream',),
  # torch and transformers are for tests; T5X is optional.
  'safetensors': ('metro_jax.conversion',),
  't5x': ('metro_jax.t5x_adapter',),
  'tokenizers': ('metro_jax.conversion', 'metro_jax.data'),
  'torch': (),
  'transformers': (),
}


def module_name(path: pathlib.Path) -> str:
  parts = path.relative_to(ROOT).with_suffix('').parts
  return '.'.join(parts[:-1] if parts[-1] == '__init__' else parts)


def imported(path: pathlib.Path) -> list[str]:
  """Full dotted names that a file imports, `from a import b` as `a.b`."""
  names = []
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Import):
      names += [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
      assert node.level == 0, f'{path}: imports are absolute in this project'
      names += [f'{node.module}.{alias.name}' for alias in node.names]
  return names


def within(name: str, package: str) -> bool:
  return name == package or name.startswith(package + '.')


def rule_for(module: str) -> set[str] | None:
  prefixes = [p for p in ALLOWED if within(module, p)]
  return ALLOWED[max(prefixes, key=len)] if prefixes else None


def test_arrows_never_turn_back():
  wrong = []
  for path in FILES:
    module, allowed = module_name(path), rule_for(module_name(path))
    if allowed is None:
      continue
    for name in imported(path):
      ours = any(within(name, p) for p in (*PACKAGES, 'gin_configs'))
      if ours and not any(within(name, a) for a in allowed):
        wrong.append(f'{module} imports {name}')
  assert not wrong, '\n'.join(wrong)


def test_only_ops_reaches_the_kernels():
  for path in FILES:
    module = module_name(path)
    if within(module, 'pallas_kernels') or module == 'metro_jax.ops':
      continue
    named = [n for n in imported(path) if within(n, 'pallas_kernels')]
    assert not named, f'{module} imports {named}: go through metro_jax.ops'


@pytest.mark.parametrize('package', CONFINED)
def test_heavy_packages_stay_in_their_rooms(package):
  for path in FILES:
    module = module_name(path)
    if any(within(module, place) for place in CONFINED[package]):
      continue
    named = [n for n in imported(path) if within(n, package)]
    assert not named, f'{module} imports {named}'


def test_files_are_short():
  long = {
    str(p.relative_to(ROOT)): n
    for p in FILES
    if (n := len(p.read_text().splitlines())) > 400
  }
  assert not long, f'over 400 lines, part them at a seam: {long}'


def test_every_file_names_its_licence():
  tests = sorted((ROOT / 'tests').rglob('*.py'))
  for path in [*FILES, *tests]:
    text = path.read_text()
    assert text.startswith('# SPDX-License-Identifier: Apache-2.0'), path


LEAN = """
import sys
for name in ('gin', 'clu', 'seqio', 'tensorflow', 'tensorflow_datasets'):
  sys.modules[name] = None  # Importing it raises ImportError.
import pallas_kernels
from metro_jax import (
  finetune, flops, losses, metrics, models, modules, ops, pretrain)
from metro_jax.training import (
  optimizers, partitioning, schedules, state, step)
from metro_jax.data import masking, token_cache, token_dataset
"""


def test_training_step_needs_only_jax_flax_optax():
  """A GPU machine has jax, flax, optax and orbax, and no TensorFlow or gin."""
  subprocess.run([sys.executable, '-c', LEAN], check=True, cwd=ROOT)
