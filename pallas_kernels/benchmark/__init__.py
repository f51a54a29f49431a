# SPDX-License-Identifier: Apache-2.0
"""Kernels against XLA on the accelerator that is there; see __main__.py."""
