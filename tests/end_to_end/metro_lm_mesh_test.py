# SPDX-License-Identifier: Apache-2.0
"""The mesh, ZeRO, microbatches and scan do not change what is learnt.

A METRO-LM with all its techniques, trained by the real trainer: a run on one
device in a process of its own is the reference. Masks, replacements and
dropout are the same draws everywhere, so only the order of sums differs.
"""

import json
import os
import pathlib
import subprocess
import sys

import jax
import mesh_run
import numpy as np
import pytest

from metro_jax import training

EPS = float(np.finfo(np.float32).eps)


@pytest.fixture(scope='module')
def on_one_device(tmp_path_factory) -> list[float]:
  folder = tmp_path_factory.mktemp('one')
  script = pathlib.Path(mesh_run.__file__)
  one = {**os.environ, 'XLA_FLAGS': '--xla_force_host_platform_device_count=1'}
  out = subprocess.run(
    [sys.executable, str(script), str(folder)],
    env=one,
    check=True,
    capture_output=True,
    text=True,
  )
  return json.loads(out.stdout.splitlines()[-1])


def close(losses: list[float], expected: list[float]) -> None:
  assert len(losses) == mesh_run.STEPS
  assert len(set(losses)) == mesh_run.STEPS
  # The first loss differs by the order of a sum over the batch's tokens. Each
  # update of Adam divides by a gradient's own size and so passes rounding on
  # at full relative size: the bound grows with the steps.
  tokens = mesh_run.ROWS * mesh_run.LENGTH
  for step, (a, b) in enumerate(zip(losses, expected, strict=True)):
    np.testing.assert_allclose(a, b, rtol=tokens * EPS * 4**step)


@pytest.mark.parametrize(
  'zero_stage',
  [
    0,
    pytest.param(1, marks=pytest.mark.slow),
    pytest.param(2, marks=pytest.mark.slow),
    3,
  ],
)
def test_zero_stages_on_eight_devices(tmp_path, on_one_device, zero_stage):
  assert jax.device_count() == 8
  partitioner = training.Partitioner(zero_stage=zero_stage)
  losses = mesh_run.losses(str(tmp_path), partitioner=partitioner)
  close(losses, on_one_device)


def test_all_axes_and_microbatches(tmp_path, on_one_device):
  partitioner = training.Partitioner(data=2, fsdp=2, tensor=2, zero_stage=3)
  losses = mesh_run.losses(
    str(tmp_path), partitioner=partitioner, num_microbatches=4
  )
  close(losses, on_one_device)


def test_remat(tmp_path, on_one_device):
  model = mesh_run.metro_lm(remat='full')
  close(mesh_run.losses(str(tmp_path), model), on_one_device)
