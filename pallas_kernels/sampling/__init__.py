# SPDX-License-Identifier: Apache-2.0
"""Sampling ids over the vocabulary."""

from pallas_kernels.sampling.reference import categorical as categorical
from pallas_kernels.sampling.reference import gumbel as gumbel
