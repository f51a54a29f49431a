# SPDX-License-Identifier: Apache-2.0
"""Cotangents of arguments that take no gradient."""

import jax
import jax.numpy as jnp
import numpy as np


def no_gradient(x: jax.Array) -> jax.Array | np.ndarray:
  """Zeros; of the dtype that JAX wants for integers, where x is one."""
  if jnp.issubdtype(x.dtype, jnp.floating):
    return jnp.zeros_like(x)
  return np.zeros(x.shape, jax.dtypes.float0)
