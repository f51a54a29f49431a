# SPDX-License-Identifier: Apache-2.0
"""The command that compiles ahead of time, and METRO-LM's Table 4."""

import importlib.util
import json
import os
import pathlib
import subprocess
import sys

import flax.linen as nn
import jax
import pytest
import recipe_files

from metro_jax import precompile, training
from metro_jax.training import ahead, info, initialization, partitioning
from metro_jax.training.collectives import Collective

ROOT = pathlib.Path(__file__).resolve().parents[1]
TINY = (
  '--gin_file=metro_lm/tiny.gin',
  '--gin.VOCAB_SIZE=128',
  '--gin.LENGTH=16',
  '--gin.BATCH_SIZE=16',
  '--gin.modules.TransformerConfig.embed_dim=16',
  '--gin.modules.TransformerConfig.num_heads=2',
  '--gin.modules.TransformerConfig.mlp_dim=32',
  '--gin.modules.TransformerConfig.num_layers=1',
)


def command(*words, check=True):
  env = os.environ | {'XLA_FLAGS': ''}
  return subprocess.run(
    [sys.executable, '-m', 'metro_jax.precompile', *words],
    cwd=ROOT,
    env=env,
    capture_output=True,
    text=True,
    check=check,
  )


@pytest.mark.slow
def test_a_table_and_no_files(tmp_path):
  before = set(ROOT.iterdir())
  out = command(*TINY, '--target=cpu:4').stdout
  assert out.startswith('cpu:4: mesh data=4 x fsdp=1 x tensor=1, zero_stage=1')
  for words in ('Parameters', 'optimizer slots', 'peak', 'all-reduce'):
    assert words in out
  assert set(ROOT.iterdir()) == before


def test_json_without_compiling_says_what_adds_up():
  words = (*TINY, '--target=cpu:4', '--json', '--nocompile')
  words += ('--gin.OPTIMIZER=@training.adamw()',)
  page = json.loads(command(*words, '--gin.ZERO_STAGE=1').stdout)
  total = sum(page['parameters'].values())
  memory = page['memory']
  assert page['fits'] is None and 'peak' not in memory
  # float32 parameters and gradients; two moments, split in four but for what
  # four does not divide (the head's single bias, tables of heads).
  assert memory['parameters'] == memory['gradients'] == 4 * total
  assert 2 * total <= memory['optimizer slots'] < 1.1 * 2 * total
  # Tokens, targets, segments, positions and weights of four rows of 16.
  assert memory['batch'] == 5 * 4 * 16 * 4


@pytest.mark.parametrize(
  'words, message',
  [
    ([], 'no target: add --target=v5p:4x8x8'),
    (
      ['--target=cpu:4', '--gin.training.Partitioner.tensor=4'],
      "its 'heads' dimension of 2 is not divisible by"
      ' training.Partitioner.tensor=4',
    ),
  ],
)
def test_mistakes(words, message):
  done = command(*TINY, *words, check=False)
  assert done.returncode == 2
  (line,) = done.stderr.splitlines()
  assert line.startswith('error: ') and message in line


# ----------------------------------------------------------------------
# What it says, and what it suggests.
# ----------------------------------------------------------------------

REPORT = ahead.Report(
  target='v5e:16x16',
  devices=256,
  mesh={'data': 256, 'fsdp': 1, 'tensor': 1},
  zero_stage=1,
  num_microbatches=1,
  parameters={'main': 10**9},
  flops=1e12,
  memory={'parameters': 4 * 10**9, 'gradients': 4 * 10**9, 'peak': 20 * 10**9},
  limit=16e9,
  collectives=(Collective('all-reduce', 3, 10**9, 2 * 10**9),),
)


def test_verdicts():
  replace = ahead.dataclasses.replace
  assert precompile.verdict(REPORT) == 'It does not fit: 4.0 GB too much'
  assert not REPORT.fits
  roomy = replace(REPORT, limit=32e9)
  assert precompile.verdict(roomy) == 'It fits, with 12.0 GB to spare'
  simulated = replace(REPORT, limit=None)
  assert simulated.fits is None and 'no limit' in precompile.verdict(simulated)
  held = replace(REPORT, memory={'parameters': 2 * 10**10})
  assert held.fits is False
  assert precompile.verdict(held) == (
    'It does not fit: 4.0 GB too much before any activations'
  )
  refused = replace(REPORT, over='needs 21.5G of 15.7G', memory={})
  assert 'needs 21.5G of 15.7G' in precompile.verdict(refused)


class Machine:
  """Stands in for compiling: memory by a formula, every attempt noted."""

  def __init__(self, monkeypatch, limit):
    self.tried = []
    self.limit = limit
    for name in ('build', 'macro'):
      monkeypatch.setattr(precompile.cli, name, getattr(self, name))
    monkeypatch.setattr(precompile, 'compile_recipe', self.compile_recipe)
    monkeypatch.setattr(precompile.ahead, 'held_bytes', self.held_bytes)
    self.target = precompile.targets.Target(
      'x', 'tpu', (), precompile.targets.Kind(limit, 1, 1, 1)
    )

  def macro(self, name):
    return {'REMAT': 'none', 'NUM_MICROBATCHES': 1}[name]

  def build(self, entry, **macros):
    assert entry == 'training.Plan'
    self.stage = macros['ZERO_STAGE']
    self.rows_per_device = 8
    return self

  def on(self, target):
    return self

  def held_bytes(self, plan):
    return {0: 16, 1: 9, 2: 5, 3: 1}[plan.stage]

  def compile_recipe(self, target, macros):
    self.tried.append(macros)
    parts = macros['NUM_MICROBATCHES']
    rows = {'none': 64, 'dots': 32, 'full': 8}[macros['REMAT']] / parts
    peak = self.held_bytes(self.build('training.Plan', **macros))
    return ahead.dataclasses.replace(
      REPORT,
      zero_stage=macros['ZERO_STAGE'],
      num_microbatches=parts,
      memory={'peak': peak + rows},
      limit=self.limit,
    )


@pytest.mark.parametrize(
  'limit, expected',
  [
    # 9 + 64 / 8 fits in 18; in 15 the gradients must be split too, in 6
    # layers be computed again, in 2 everything.
    (18, {'NUM_MICROBATCHES': 8, 'ZERO_STAGE': 1, 'REMAT': 'none'}),
    (15, {'NUM_MICROBATCHES': 8, 'ZERO_STAGE': 2, 'REMAT': 'none'}),
    (6, {'NUM_MICROBATCHES': 8, 'ZERO_STAGE': 3, 'REMAT': 'dots'}),
    (2.5, {'NUM_MICROBATCHES': 8, 'ZERO_STAGE': 3, 'REMAT': 'full'}),
    (1.5, None),
  ],
)
def test_the_least_change_that_fits(monkeypatch, limit, expected):
  machine = Machine(monkeypatch, limit)
  failed = ahead.dataclasses.replace(
    REPORT, memory={'peak': 9 + 64}, limit=limit
  )
  found = precompile.suggest(machine.target, failed)
  assert (found and found[0]) == expected
  assert len(machine.tried) <= 9


# ----------------------------------------------------------------------
# METRO-LM, Table 4.
# ----------------------------------------------------------------------


class On256(training.Partitioner):
  """A partitioner for 256 devices that nobody has to have."""

  @property
  def mesh(self):
    return jax.sharding.AbstractMesh((256, 1, 1), partitioning.MESH_AXES)


@pytest.fixture(scope='module')
def xxl():
  return recipe_files.plan('metro_lm/xxl.gin')


@pytest.fixture(scope='module')
def xxl_boxed(xxl):
  batch = xxl.batch(0, slice(0, 256))
  return jax.eval_shape(lambda b: xxl.model.init(jax.random.key(0), b), batch)


# Parameters, gradients, optimizer, total: as printed, in GB.
TABLE_4 = {
  0: (12, 12, 96, 120),
  1: (12, 12, 0.4, 24.4),
  2: (12, 0.05, 0.4, 12.5),
  3: (0.05, 0.05, 0.4, 0.5),
}


@pytest.mark.parametrize('stage', TABLE_4)
def test_table_4(xxl, xxl_boxed, stage):
  """GB of a device at each ZeRO stage, of 256.

  The paper's 6.0e9 parameters take 2 bytes as fp16 weights, 2 as gradients,
  and 16 in the optimizer: fp32 weights, two moments, fp32 gradients. This
  project's state is fp32 throughout: 4, 4 and 8. The shardings are the same,
  so each part is scaled by the bytes of a parameter.
  """
  partitioner = On256(zero_stage=stage)
  state = jax.eval_shape(
    lambda p: training.TrainState.create(p, xxl.optimizer),
    initialization.unbox(xxl_boxed),
  )
  shardings = partitioner.state_shardings(xxl_boxed, state)
  layout = initialization.Layout(xxl_boxed, state, shardings)
  memory = info.memory_per_device(layout, partitioner)
  ours = [
    memory['parameters'] * 2 / 4 / 1e9,
    memory['gradients'] * 2 / 4 / 1e9,
    memory['optimizer slots'] * 16 / 8 / 1e9,
  ]
  for mine, printed in zip([*ours, sum(ours)], TABLE_4[stage], strict=True):
    # Two digits are printed; 12.5 is a sum of parts that were rounded up.
    assert mine == pytest.approx(printed, rel=0.07), (ours, TABLE_4[stage])
  total = sum(ours)
  print(f'stage {stage}: {total:.2f} GB, paper {TABLE_4[stage][-1]} GB')
  assert total == pytest.approx(TABLE_4[stage][-1], rel=0.01, abs=0.04)


@pytest.mark.slow
def test_table_4_as_compiled():
  """Totals by XLA's memory analysis of the update for 256 devices."""
  script = pathlib.Path(__file__).with_name('compiled_table_4.py')
  done = subprocess.run(
    [sys.executable, script, 'metro_lm/xxl.gin'],
    env=os.environ | {'XLA_FLAGS': ''},
    check=True,
    stdout=subprocess.PIPE,
  )
  for stage, size in enumerate(json.loads(done.stdout)):
    printed = TABLE_4[stage][-1]
    print(f'stage {stage}: {size / 1e9:.2f} GB, paper {printed} GB')
    assert size / 1e9 == pytest.approx(printed, rel=0.01, abs=0.04)


def test_table_4_counts_the_paper_s_parameters(xxl_boxed):
  totals = info.totals_by_part(nn.unbox(xxl_boxed))
  assert sum(totals.values()) == pytest.approx(6.0e9, rel=0.005)


# ----------------------------------------------------------------------
# Through the real compilers of machines that are not here.
# ----------------------------------------------------------------------


def needs(compiler):
  return pytest.mark.skipif(
    importlib.util.find_spec(compiler) is None,
    reason=f"{compiler} is not installed: pip install -e '.[aot]'",
  )


def page(*words):
  return json.loads(command(*words, '--json').stdout)


@pytest.mark.slow
@needs('jax_cuda13_plugin')
def test_zero_1_moves_no_more_than_data_parallelism():
  """The paper's section 4.2: splitting the optimizer costs no bytes."""
  # The paper's optimizer; Muon orthogonalises whole matrices.
  words = (*TINY, '--target=h200:8', '--gin.OPTIMIZER=@training.adamw()')
  moved = {}
  for stage in (0, 1):
    report = page(*words, f'--gin.ZERO_STAGE={stage}')
    by_kind = {c['kind']: c['moved'] for c in report['collectives']}
    moved[stage] = sum(by_kind.values())
    # Its means: sums are scattered, parameters gathered.
    assert ('reduce-scatter' in by_kind) == (stage == 1)
  # What no dimension of divides by eight (a few biases) is summed whole.
  assert moved[1] <= 1.02 * moved[0]


@pytest.mark.slow
@needs('libtpu')
def test_a_job_that_cannot_fit_is_not_compiled():
  words = ('--gin_file=metro_lm/xxl.gin', '--target=v5e:16x16')
  out = command(*words, '--nosuggest', '--gin.ZERO_STAGE=0').stdout
  # 6.0e9 x (4 for weights, 4 for gradients, 8 for moments) of 15.75 GiB.
  assert out.splitlines()[-1] == (
    'It does not fit: 79.1 GB too much before any activations'
  )


@pytest.mark.slow
@needs('jax_cuda13_plugin')
@pytest.mark.parametrize(
  ('recipe', 'parameters'), [('xl', 1.79e9), ('xxl', 6.0e9)]
)
def test_the_largest_fit_a_real_cluster(recipe, parameters):
  report = page(f'--gin_file=metro_lm/{recipe}.gin', '--target=h200:256')
  assert report['devices'] == 256 and report['fits']
  memory = report['memory']
  # Table 4's stage 1, with float32 weights: 4 bytes each, and moments split.
  assert memory['parameters'] == pytest.approx(4 * parameters, rel=0.01)
  assert memory['optimizer slots'] < 1.1 * 8 * parameters / 256
  # Weights, their gradients before they are scattered, and activations: a
  # third float32 of each parameter would be too many.
  assert memory['peak'] < 3 * 4 * parameters * 0.75
