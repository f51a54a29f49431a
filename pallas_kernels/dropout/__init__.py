# SPDX-License-Identifier: Apache-2.0
"""Dropout whose mask depends on coordinates only."""

from pallas_kernels.dropout.reference import dropout as dropout
