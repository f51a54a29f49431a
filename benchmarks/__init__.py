# SPDX-License-Identifier: Apache-2.0
"""One script per question; each prints a table, and writes JSON on request."""
