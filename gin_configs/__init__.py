# SPDX-License-Identifier: Apache-2.0
"""Gin recipes; shipped as package data."""
