# SPDX-License-Identifier: Apache-2.0
"""METRO: model-generated denoising pretraining, in JAX."""

__version__ = '0.1.0'
