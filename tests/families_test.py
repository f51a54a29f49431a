# SPDX-License-Identifier: Apache-2.0
"""Families by the real trainer: one device or eight, at once or resumed.

One of each kind of state and batch; gin_recipes_test.py trains and resumes all
files, without the trainer.
"""

import json
import os
import subprocess
import sys

import family_run
import jax
import numpy as np
import pytest
import recipe_files

EPS = float(np.finfo(np.float32).eps)
# A learned mixture, a frozen auxiliary, a decoder, pairs of texts. METRO-LM is
# trained so in end_to_end/, in the tests of every day.
FAMILIES = ('amos', 'fast_electra', 'metro_t5', 't5')


@pytest.fixture(scope='module')
def on_one_device(tmp_path_factory) -> dict[str, list[float]]:
  one = {**os.environ, 'XLA_FLAGS': '--xla_force_host_platform_device_count=1'}
  folder = tmp_path_factory.mktemp('one')
  out = subprocess.run(
    [sys.executable, family_run.__file__, str(folder), *FAMILIES],
    env=one,
    check=True,
    capture_output=True,
    text=True,
  )
  return json.loads(out.stdout.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.parametrize('family', FAMILIES)
def test_eight_devices_and_a_resumed_run_learn_the_same(
  tmp_path, on_one_device, family
):
  assert jax.device_count() == 8
  whole, broken = tmp_path / 'whole', tmp_path / 'broken'
  expected = family_run.train(family, whole)
  losses = family_run.losses(whole)
  assert len(set(losses)) == family_run.STEPS
  # As in end_to_end/: sums in another order, and Adam passes rounding on.
  tokens = family_run.ROWS * recipe_files.LENGTH
  for step, (a, b) in enumerate(
    zip(losses, on_one_device[family], strict=True)
  ):
    np.testing.assert_allclose(a, b, rtol=tokens * EPS * 4**step)
  family_run.train(family, broken, steps=2)
  resumed = family_run.train(family, broken)
  assert family_run.losses(broken) == losses
  jax.tree.map(np.testing.assert_array_equal, resumed, expected)
