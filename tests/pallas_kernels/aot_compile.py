# SPDX-License-Identifier: Apache-2.0
"""Compiles every kernel for hardware that is not there; a script.

  python aot_compile.py v5e:2x2 [name ...]     TPU, by libtpu
  python aot_compile.py h200 [name ...]        GPU, by XLA's CUDA plugin, ptxas

Prints one JSON object a line: {"name", "error"} or, where it compiled,
{"name", "temporary_bytes", "seconds"}, for GPUs "registers" (of a thread),
"spilled_bytes" and "occupancy" by kernel, and for training steps the arrays
that kernels are there to avoid. Exit code 77 and a reason where the compilers
are not installed.
"""

import glob
import importlib.util
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
os.environ['JAX_PLATFORMS'] = 'cpu'
os.environ['TPU_SKIP_MDS_QUERY'] = '1'
# Several processes may compile at a time.
os.environ['ALLOW_MULTIPLE_LIBTPU_LOAD'] = '1'
for _name in ('JAX_COMPILATION_CACHE_DIR', 'XLA_FLAGS'):
  os.environ.pop(_name, None)  # Of the tests: those compile unoptimised code.

H200 = """gpu_device_info {
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
  memory_bandwidth: 4800000000000
  l2_cache_size: 62914560
  clock_rate_ghz: 1.98
  device_memory_size: 150000000000
  shared_memory_per_block_optin: 232448
  cuda_compute_capability { major: 9 minor: 0 }
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 12 }
runtime_version { major: 13 minor: 0 }
device_description_str: "NVIDIA H200"
"""


def missing(target: str) -> str | None:
  """Why this target cannot be compiled for, or None."""
  if target != 'h200':
    found = importlib.util.find_spec('libtpu')
    return None if found else 'libtpu is not installed'
  if not importlib.util.find_spec('jax_cuda13_plugin'):
    return 'jax-cuda13-plugin is not installed'
  return None if assembler() else 'nvidia-cuda-nvcc (ptxas) is not installed'


def assembler() -> str | None:
  """Path of ptxas in an installed wheel."""
  pattern = 'nvidia/*/bin/ptxas'
  found = (glob.glob(os.path.join(path, pattern)) for path in sys.path)
  return next((paths[0] for paths in found if paths), None)


def assemble(folder: str) -> dict:
  """Registers and spills, by ptxas, of the PTX that XLA dumped."""
  registers, spilled, occupied = {}, {}, {}
  for path in glob.glob(f'{folder}/**/*.ptx', recursive=True):
    text = pathlib.Path(path).read_text()
    if '.entry' not in text:
      continue  # A module of constants.
    command = [assembler(), '-arch=sm_90a', '-v', path]
    command += ['-o', f'{folder}/cubin']
    report = subprocess.run(command, capture_output=True, text=True, check=True)
    name = None
    for line in report.stderr.splitlines():
      if found := re.search(r"Compiling entry function '(\w+)'", line):
        name = found.group(1)
      elif found := re.search(r'(\d+) bytes spill stores', line):
        spilled[name] = int(found.group(1))
      elif found := re.search(r'Used (\d+) registers', line):
        registers[name] = int(found.group(1))
        occupied[name] = occupancy(registers[name], threads(text, name))
  return {
    'registers': registers,
    'spilled_bytes': spilled,
    'occupancy': occupied,
  }


def threads(text: str, name: str) -> int:
  """Of a program, by the directive behind its kernel's name in the PTX."""
  header = text[text.index(f'.entry {name}(') :]
  found = re.search(r'\.(?:req|max)ntid (\d+)', header[: header.index('{')])
  return int(found.group(1))


def occupancy(registers: int, threads: int) -> float:
  """Share of a Hopper multiprocessor's 2048 threads that have registers.

  It has 65536, and a warp takes them by eights. Shared memory, which a kernel
  asks for when it is started, may leave fewer.
  """
  programs = 65536 // (-(-registers // 8) * 8 * threads)
  return min(1.0, programs * threads / 2048)


def compile_one(name: str, case, sharding, target: str) -> dict:
  import jax
  import step_case

  from pallas_kernels import backend

  platform = 'gpu' if target == 'h200' else 'tpu'
  function, args = case
  with tempfile.TemporaryDirectory() as folder, backend.target(platform):
    options = {}
    if platform == 'gpu':
      options = {'xla_dump_to': folder, 'xla_gpu_autotune_level': 0}
    compiled = (
      jax.jit(function, in_shardings=sharding, out_shardings=sharding)
      .trace(*args)
      .lower(lowering_platforms=('cuda' if platform == 'gpu' else 'tpu',))
      .compile(compiler_options=options)
    )
    out = {'temporary_bytes': compiled.memory_analysis().temp_size_in_bytes}
    if name.startswith('train step'):
      text = compiled.as_text()
      out['matrices'] = step_case.matrices(text)
      out['logits'] = step_case.logits(text)
    return out | (assemble(folder) if platform == 'gpu' else {})


def main(target: str, names: list[str]) -> int:
  reason = missing(target)
  if reason:
    print(reason)
    return 77
  import aot_cases
  import jax
  import numpy as np
  from jax.experimental import topologies

  if target == 'h200':
    topology = topologies.get_topology_desc(
      platform='cuda', topology_name='h200', target_config=H200,
      topology='1x1x1',
    )  # fmt: skip
  else:
    topology = topologies.get_topology_desc(
      platform='tpu', topology_name=target
    )
  mesh = jax.sharding.Mesh(np.array(topology.devices[:1]), ('data',))
  sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
  cases = aot_cases.cases() | aot_cases.steps()
  for name, case in cases.items():
    if names and name not in names:
      continue
    started = time.monotonic()
    try:
      out = compile_one(name, case, sharding, target)
      out['seconds'] = round(time.monotonic() - started, 1)
    except Exception as error:  # Reported by name; the test fails on it.
      out = {'error': f'{type(error).__name__}: {str(error)[:2000]}'}
    print(json.dumps({'name': name} | out), flush=True)
  return 0


if __name__ == '__main__':
  sys.exit(main(sys.argv[1], sys.argv[2:]))
