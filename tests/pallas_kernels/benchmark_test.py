# SPDX-License-Identifier: Apache-2.0
"""The table of kernels against XLA, at a size that any machine takes."""

import json

import pytest

from pallas_kernels.benchmark import __main__ as benchmark
from pallas_kernels.benchmark import cases


def rows(capsys, *argv):
  assert benchmark.main(['--json', '--rounds', '1', *argv]) == 0
  return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def check(found, ops):
  """Every way is there, and right within what bfloat16 rounds."""
  assert [(r['op'], r['by']) for r in found] == [
    (op, by)
    for op in ops
    for by in ('pallas', 'xla', 'library')
    if by != 'library' or op == 'attention, plain'
  ]
  for row in found:
    # Half a dozen roundings to bfloat16 stand between inputs and gradients.
    assert float(row['error']) < 6 * 2.0**-8, row
    assert row['ms'] > 0 and row['temporary MiB'] >= 0


def test_one_op(capsys):
  check(
    rows(capsys, '--interpret', 'gpu', '--op', 'layer_norm'), ['layer_norm']
  )


@pytest.mark.slow
@pytest.mark.parametrize('platform', ['gpu', 'tpu'])
def test_all_ops_against_float64(platform, capsys):
  names = list(cases.cases(benchmark._TINY))
  check(rows(capsys, '--interpret', platform), names)


def test_without_an_accelerator(capsys):
  assert benchmark.main([]) == 2
  assert capsys.readouterr().err.startswith('error: no GPU or TPU here')
  assert benchmark.main(['--interpret', 'gpu', '--op', 'x']) == 2
  assert '--op x: not one of layer_norm, ' in capsys.readouterr().err
