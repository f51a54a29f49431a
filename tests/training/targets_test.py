# SPDX-License-Identifier: Apache-2.0
import importlib.util
import types

import jax
import numpy as np
import pytest

from metro_jax import training
from metro_jax.errors import UserError
from metro_jax.training import partitioning, targets


def test_simulated_devices():
  target = targets.find('cpu:4')
  assert target.devices == tuple(jax.devices()[:4])
  assert target.kind is None and target.bandwidth is None
  mesh = training.Partitioner(devices=target.devices, fsdp=2).mesh
  assert dict(mesh.shape) == {'data': 2, 'fsdp': 2, 'tensor': 1}


@pytest.mark.parametrize(
  'name, message',
  [
    ('v9:2x2', 'the kinds are cpu, h100, h200, v4, v5e, v5p, v6e'),
    ('h200', 'write KIND:SIZE'),
    ('cpu:2x2', 'cpu takes a number of devices, such as cpu:8'),
    ('cpu:512', 'this process has 8 devices'),
    ('cpu:0', 'cpu takes a number'),
  ],
)
def test_mistakes(name, message):
  with pytest.raises(UserError, match='--target=' + name) as error:
    targets.find(name)
  assert message in str(error.value)


@pytest.mark.skipif(
  importlib.util.find_spec('libtpu') is None,
  reason="libtpu is not installed: pip install -e '.[aot]'",
)
@pytest.mark.parametrize('name', ['v5p:9x9', 'v5e:3x5', '3*v9:2x2'])
def test_a_topology_that_does_not_exist(name):
  with pytest.raises(UserError) as error:
    targets.find(name)
  (line,) = str(error.value).splitlines()
  assert line.startswith(f'--target={name}: ')


@pytest.mark.parametrize('name', ['v5p:2x2x1', 'h200:8'])
def test_a_missing_compiler_is_named(name, monkeypatch):
  monkeypatch.setattr(importlib.util, 'find_spec', lambda _: None)
  with pytest.raises(UserError, match=r"pip install -e '\.\[aot\]'"):
    targets.find(name)


def test_gpus_send_over_links_in_a_host_and_over_the_network_beyond():
  device = jax.devices()[0]
  kind = targets.GPUS['h200']
  host, cluster = (
    targets.Target('', 'gpu', (device,) * n, kind) for n in (8, 16)
  )
  assert host.bandwidth == kind.link
  # A ring goes through all eight GPUs of a host and leaves it over their cards.
  assert cluster.bandwidth == 8 * kind.network < kind.link
  assert (
    targets.Target('', 'tpu', (device,) * 16, targets.TPUS['v5p']).bandwidth
    == 600e9
  )


def slices(count, size):
  """Stand-ins for the devices of several slices, in a bad order."""
  device = types.SimpleNamespace
  made = [
    device(
      id=s * size + i, slice_index=s, process_index=s,
      platform='cpu', device_kind='cpu',
    )
    for i in range(size) for s in range(count)
  ]  # fmt: skip
  return tuple(made)


@pytest.mark.parametrize(
  'shape, count, across',
  [
    ((8, 1, 1), 2, (2, 1, 1)),
    ((2, 2, 4), 4, (2, 2, 1)),  # fsdp crosses where data cannot.
    ((4, 2, 2), 4, (4, 1, 1)),
  ],
)
def test_axes_across_slices(shape, count, across):
  assert partitioning._across_slices(shape, count) == across


def test_slices_cross_the_data_axis_only():
  """Devices that split a parameter, or a head, are of one slice."""
  devices = slices(2, 8)
  grids = []

  class Mesh:
    def __init__(self, grid, names, axis_types):
      del axis_types
      assert names == partitioning.MESH_AXES
      grids.append(np.asarray(grid))

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(jax.sharding, 'Mesh', Mesh)
    _ = training.Partitioner(devices=devices, fsdp=2, tensor=2).mesh
  (grid,) = grids
  assert grid.shape == (4, 2, 2)
  index = np.vectorize(lambda d: d.slice_index)(grid)
  np.testing.assert_array_equal(index, index[:, :1, :1] + 0 * index)
  # Half of the data axis in each slice, side by side.
  assert index[:, 0, 0].tolist() == [0, 0, 1, 1]


def test_tensor_must_not_leave_a_slice():
  with pytest.raises(UserError, match='tensor=16 must not leave a slice'):
    _ = training.Partitioner(devices=slices(2, 8), tensor=16).mesh
