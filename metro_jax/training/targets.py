# SPDX-License-Identifier: Apache-2.0
"""Machines to compile for, whether or not they are there.

  v5p:4x8x8      a TPU slice by its topology          needs libtpu
  2*v5p:4x8x8    two of them, joined by a network
  h200:8         GPUs of one host; h200:256 is 32     needs jax-cuda13-plugin
  cpu:256        simulated on this machine            needs nothing

XLA's TPU and CUDA compilers run without a device: a topology is a description.
"""

import contextlib
import dataclasses
import importlib.util
import os
import re
from typing import Any

import jax
from jax.experimental import topologies

from metro_jax.errors import UserError

GPUS_PER_HOST = 8


@dataclasses.dataclass(frozen=True)
class Kind:
  """What a device can do, by its vendor's data sheet.

  Attributes:
    memory: Bytes; for TPUs what XLA leaves to a program.
    flops: bfloat16 FLOP/s, without sparsity.
    memory_bandwidth: Bytes/s of its own memory.
    link: Bytes/s that it can send to its neighbours, all links together.
    network: Bytes/s of its own network card, out of its host; None if links
      reach all.
  """

  memory: float
  flops: float
  memory_bandwidth: float
  link: float
  network: float | None = None


TPUS = {
  'v4': Kind(30.75 * 2**30, 275e12, 1.23e12, 300e9),
  'v5e': Kind(15.75 * 2**30, 197e12, 0.82e12, 200e9),
  'v5p': Kind(95.74 * 2**30, 459e12, 2.77e12, 600e9),
  'v6e': Kind(31.25 * 2**30, 918e12, 1.64e12, 400e9),
}
# NVLink within a host, one 400 Gbit/s network card a GPU between hosts.
GPUS = {
  'h100': Kind(80e9, 989e12, 3.35e12, 450e9, 50e9),
  'h200': Kind(141e9, 989e12, 4.8e12, 450e9, 50e9),
}

# What XLA asks a Hopper GPU when there is one (TargetConfigProto).
_HOPPER = """gpu_device_info {{
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_core: 233472
  threads_per_core_limit: 2048
  core_count: 132
  fpus_per_core: 128
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  memory_bandwidth: {bandwidth:.0f}
  l2_cache_size: 62914560
  clock_rate_ghz: 1.98
  device_memory_size: {memory:.0f}
  shared_memory_per_block_optin: 232448
  cuda_compute_capability {{ major: 9 minor: 0 }}
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 12 }}
runtime_version {{ major: 13 minor: 0 }}
device_description_str: "NVIDIA {name}"
"""


# Else libtpu asks Google's network who we are, complains of the answer, and
# locks out a second process.
_NO_TPU = {
  'TPU_SKIP_MDS_QUERY': '1',
  'ALLOW_MULTIPLE_LIBTPU_LOAD': '1',
  'TPU_ACCELERATOR_TYPE': 'v5litepod-4',
  'TPU_WORKER_HOSTNAMES': 'localhost',
  'TPU_WORKER_ID': '0',
}


@dataclasses.dataclass(frozen=True)
class Target:
  """Devices to compile for.

  Attributes:
    name: As it was asked for.
    platform: 'tpu', 'gpu' or 'cpu', as kernels call it.
    devices: Compile-only ones, unless platform is 'cpu'.
    kind: What one can do; None for simulated devices.
  """

  name: str
  platform: str
  devices: tuple[jax.Device, ...]
  kind: Kind | None = None

  @property
  def bandwidth(self) -> float | None:
    """Bytes/s that a device can send to the others; None if simulated.

    Between hosts, that of the best rings: they go through all devices of a
    host, and leave it over all of its network cards.
    """
    if self.kind is None:
      return None
    within = self.kind.network is None or len(self.devices) <= GPUS_PER_HOST
    if within:
      return self.kind.link
    return min(self.kind.link, GPUS_PER_HOST * self.kind.network)

  @property
  def compiler_options(self) -> dict[str, Any]:
    """Options without which the compiler asks for the hardware."""
    return {'xla_gpu_autotune_level': 0} if self.platform == 'gpu' else {}


def find(name: str) -> Target:
  """The target of a name, see the top of this file.

  Raises:
    UserError: if there is no such target, or its compiler is not installed.
  """
  found = re.fullmatch(r'(?:(\d+)\*)?(\w+):(\d+(?:x\d+)*)', name)
  known = ('cpu', *GPUS, *TPUS)
  if not found or found.group(2) not in known:
    raise UserError(
      f'--target={name}: write KIND:SIZE, such as v5p:4x8x8, h200:8 or cpu:8;'
      f' the kinds are {", ".join(known)}'
    )
  # Compilers need no device, and looking for one costs time and complaints.
  jax.config.update('jax_platforms', 'cpu')
  slices, kind, size = int(found.group(1) or 1), found.group(2), found.group(3)
  sizes = [int(n) for n in size.split('x')]
  if kind in TPUS:
    return Target(name, 'tpu', _tpus(name, kind, sizes, slices), TPUS[kind])
  if len(sizes) > 1 or slices > 1 or sizes[0] < 1:
    raise UserError(
      f'--target={name}: {kind} takes a number of devices, such as {kind}:8'
    )
  if kind == 'cpu':
    return Target(name, 'cpu', _cpus(sizes[0]))
  return Target(name, 'gpu', _gpus(name, kind, sizes[0]), GPUS[kind])


def _cpus(count: int) -> tuple[jax.Device, ...]:
  """Simulated devices; how many is settled when jax first looks for them."""
  with contextlib.suppress(RuntimeError):  # Settled: enough is as good.
    jax.config.update('jax_num_cpu_devices', count)
  devices = jax.devices('cpu')
  if len(devices) < count:
    raise UserError(
      f'--target=cpu:{count}: this process has {len(devices)} devices; unset'
      ' XLA_FLAGS=--xla_force_host_platform_device_count'
    )
  return tuple(devices[:count])


def _gpus(name: str, kind: str, count: int) -> tuple[jax.Device, ...]:
  _require('jax_cuda13_plugin', name)
  hosts, left = divmod(count, GPUS_PER_HOST)
  if left and hosts:
    raise UserError(
      f'--target={name}: hosts have {GPUS_PER_HOST} devices; give a multiple'
    )
  limits = GPUS[kind]
  config = _HOPPER.format(
    name=kind.upper(), bandwidth=limits.memory_bandwidth, memory=limits.memory
  )
  topology = topologies.get_topology_desc(
    platform='cuda',
    topology_name=kind,
    target_config=config,
    topology=f'1x{hosts or 1}x{GPUS_PER_HOST if hosts else left}',
  )
  return tuple(topology.devices)


def _tpus(
  name: str, kind: str, sizes: list[int], slices: int
) -> tuple[jax.Device, ...]:
  _require('libtpu', name)
  for variable, value in _NO_TPU.items():
    os.environ.setdefault(variable, value)
  shape = 'x'.join(map(str, sizes))
  # A v4 chip's two cores are one device, as they are to a training run.
  options = {'chip_config_name': 'megacore'} if kind == 'v4' else {}
  if slices > 1:
    options['num_slices'] = slices
  try:
    topology = topologies.get_topology_desc(
      platform='tpu', topology_name=f'{kind}:{shape}', **options
    )
  except Exception as error:  # libtpu has several types for a bad name.
    line = str(error).splitlines()[0][:120]
    raise UserError(
      f'--target={name}: libtpu knows no such topology ({line}); v5e and v6e'
      ' have two dimensions, such as 4x4, v4 and v5p three, such as 4x4x8'
    ) from None
  return tuple(topology.devices)


def _require(module: str, name: str) -> None:
  if not importlib.util.find_spec(module):
    raise UserError(
      f"--target={name}: its compiler is not installed; pip install -e '.[aot]'"
      ' or try cpu:N, which counts parameters and collectives'
    )
