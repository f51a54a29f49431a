# SPDX-License-Identifier: Apache-2.0
"""Kernels at the sizes that models have, forward and backward."""

import jax
import jax.numpy as jnp

import pallas_kernels

_ARRAY = jax.ShapeDtypeStruct
_BF16, _F32, _I32 = jnp.bfloat16, jnp.float32, jnp.int32


def cases(platform: str) -> dict:
  """Name to (function, shapes of its arguments)."""
  out = {}
  for features, dtype in ((768, _BF16), (1024, _F32), (2560, _BF16)):
    name = f'layer_norm {features} {jnp.dtype(dtype).name}'
    vector = _ARRAY((features,), _F32)
    x = _ARRAY((16, 500, features), dtype)
    out[name] = _pulled(_layer_norm, 3), (x, vector, vector, x)
  return out


def _pulled(function, count):
  """Result and cotangents of the first `count` arguments, given the last."""

  def f(*args):
    *args, g = args
    primal, rest = args[:count], args[count:]
    y, pull = jax.vjp(lambda *a: function(*a, *rest), *primal)
    return y, pull(g)

  return f


def _layer_norm(x, scale, bias):
  return pallas_kernels.layer_norm(x, scale, bias, backend='pallas')
