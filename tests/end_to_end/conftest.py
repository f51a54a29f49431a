# SPDX-License-Identifier: Apache-2.0
"""A corrupted stream, what it was made from, and the table of faults."""

import pathlib

import corruption_models as tiny
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metro_jax.training import checkpoints
from metro_jax.training.state import TrainState, unbox


@pytest.fixture
def note(record_property):
  """note(fault, tried, steps lost, end): a line of the table of faults."""

  def line(fault, tried, lost, end='same to the bit'):
    record_property('fault', (fault, tried, lost, end))

  return line


def pytest_terminal_summary(terminalreporter):
  """Prints what the tests of this session noted, whichever process ran them."""
  lines = [
    value
    for report in terminalreporter.stats.get('passed', [])
    for name, value in report.user_properties
    if name == 'fault'
  ]
  if not lines:
    return
  terminalreporter.section('faults')
  rows = [('fault', 'survived', 'lost', 'end')]  # Lost: steps.
  rows += [(fault, f'{n}/{n}', lost, end) for fault, n, lost, end in lines]
  for report in terminalreporter.stats.get('failed', []):
    rows.append((report.nodeid.rpartition('::')[2][:49], '0/1', '', 'FAILED'))
  for row in rows:
    terminalreporter.line('{:49} {:>8} {:>4}  {}'.format(*row))


@pytest.fixture(scope='session')
def place(tmp_path_factory) -> pathlib.Path:
  return tmp_path_factory.mktemp('offline')


@pytest.fixture(scope='session')
def text(place):
  return tiny.datasets(place)


@pytest.fixture(scope='session')
def params(place, text) -> dict:
  """Of the whole model; the auxiliary's part is saved as a run's checkpoint."""
  model = tiny.online()
  shapes = jax.eval_shape(
    model.init, jax.random.key(0), model.build_batch_spec(1, tiny.LENGTH)
  )
  rng = np.random.default_rng(0)
  params = jax.tree.map(
    lambda x: rng.normal(0, 0.3, x.shape).astype(x.dtype),
    unbox(shapes),
  )
  run = place / 'auxiliary'
  run.mkdir()
  saver = checkpoints.Checkpointer(str(run), checkpoints.CheckpointConfig())
  state = TrainState(jnp.int32(1), jax.tree.map(jnp.asarray, params), ())
  saver.save_final(state, {}, {})
  saver.close()
  text['train'].save_assets(run)
  return params


@pytest.fixture(scope='session')
def stream(place, text, params) -> pathlib.Path:
  return tiny.write(place, text, 'stream')
