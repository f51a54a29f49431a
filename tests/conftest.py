# SPDX-License-Identifier: Apache-2.0
"""Shared test set-up: eight simulated devices, one compilation cache.

The environment is set before jax is first imported, and subprocesses inherit
it. A test of the command line that needs another device count sets its own
XLA_FLAGS.
"""

import os
import pathlib

_ROOT = pathlib.Path(__file__).resolve().parents[1]
_CACHE = pathlib.Path(
  os.environ.get('METRO_TEST_CACHE', _ROOT / '.cache' / 'tests')
)

os.environ['JAX_PLATFORMS'] = 'cpu'
# Tests compile much and compute little: compiling without LLVM's optimisations
# takes a third off them.
os.environ.setdefault(
  'XLA_FLAGS',
  '--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0',
)
os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '2')
os.environ.setdefault('JAX_COMPILATION_CACHE_DIR', str(_CACHE / 'jax'))
os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0.5')
# The embedded corpus, vocabularies and token caches made by tests are shared.
os.environ.setdefault('METRO_DATA_DIR', str(_CACHE / 'data'))
os.environ['PYTHONPATH'] = os.pathsep.join(
  [str(_ROOT), *filter(None, [os.environ.get('PYTHONPATH')])]
)
