# SPDX-License-Identifier: Apache-2.0
"""Commands behind `make` and launch scripts."""
