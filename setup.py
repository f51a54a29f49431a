# SPDX-License-Identifier: Apache-2.0
"""Packaging: metadata here, tool settings in pyproject.toml."""

import pathlib
import re

import setuptools

_ROOT = pathlib.Path(__file__).parent
_VERSION = re.search(
  r"__version__ = '([^']+)'", (_ROOT / 'metro_jax/__init__.py').read_text()
).group(1)

# Lower bounds are versions this code was run with.
_REQUIRED = [
  'absl-py>=2.1',
  'clu>=0.0.12',
  'flax>=0.12.8',
  'gin-config>=0.5.0',
  'jax>=0.10.2',
  'jinja2>=3.1',
  'matplotlib>=3.8',
  'numpy>=2.0',
  'optax>=0.2.8',
  'orbax-checkpoint>=0.12.8',
  'pyyaml>=6.0',
  'rich>=13.0',
  'rouge-score>=0.1.2',
  'safetensors>=0.5',
  'scikit-learn>=1.5',
  'sentencepiece>=0.2.0',
  'seqio>=0.0.20',
  'tensorboard>=2.19',  # clu.metric_writers imports it.
  'tensorflow-datasets>=4.9.10',
  'tokenizers>=0.21',
]

setuptools.setup(
  name='metro-jax',
  version=_VERSION,
  description=(
    'ELECTRA-style pretraining that really runs: METRO-LM and its family in'
    ' JAX, on TPU, GPU and CPU'
  ),
  long_description=(_ROOT / 'README.md').read_text(),
  long_description_content_type='text/markdown',
  license='Apache-2.0',
  python_requires='>=3.11',
  packages=setuptools.find_packages(
    include=['metro_jax*', 'pallas_kernels*', 'tasks*', 'gin_configs*']
  ),
  package_data={
    'gin_configs': ['**/*.gin'],
    'metro_jax': ['scripts/*.sh', 'notebooks/*.ipynb'],
  },
  install_requires=_REQUIRED,
  extras_require={
    # Compilers for TPU and GPU targets, to build kernels without hardware.
    'aot': [
      'jax[tpu]>=0.10.2',
      'jax-cuda13-plugin>=0.10.2',
      'jax-cuda13-pjrt>=0.10.2',
      'nvidia-cuda-nvcc',
      'nvidia-nvvm',
    ],
    'docs': [
      'mkdocs>=1.6',
      'mkdocs-material>=9.5',
      'mkdocstrings[python]>=0.27',
    ],
    't5x': ['t5x @ git+https://github.com/google-research/t5x'],
    'tpu': ['jax[tpu]>=0.10.2'],
    'cuda': ['jax[cuda13]>=0.10.2'],
    'test': [
      'hypothesis>=6.100',
      'pytest>=8.0',
      'pytest-xdist>=3.5',
      'ruff>=0.9',
      # From PyPI for Linux it brings CUDA; scripts/install.py takes the
      # build for CPUs first.
      'torch>=2.6',
      'transformers>=4.50',
    ],
  },
)
