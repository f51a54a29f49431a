# SPDX-License-Identifier: Apache-2.0
"""Compiling for tests: most of their time, and of code that runs once.

Interpreted, a kernel forward and backward takes 2 to 6 seconds to compile
whatever its shapes, so some cases are left to the slow tier.
"""

import functools

import jax
import pytest


def jit(function, **options):
  """`jax.jit` without LLVM's optimizations: half the time, the same numbers.

  Inside another trace it is the function itself, since only the outermost
  program may choose how it is compiled.
  """
  compiled = jax.jit(
    function, compiler_options={'xla_backend_optimization_level': 0}, **options
  )

  @functools.wraps(function)
  def call(*args):
    traced = any(isinstance(x, jax.core.Tracer) for x in jax.tree.leaves(args))
    return (function if traced else compiled)(*args)

  return call


def cases(names, slow: tuple[str, ...]):
  """Names as parameters of a test; `slow` ones are run by the slow tier."""
  return [
    pytest.param(n, marks=pytest.mark.slow) if n in slow else n for n in names
  ]
