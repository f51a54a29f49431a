# SPDX-License-Identifier: Apache-2.0
"""Linear maps and tables with logical axes.

Own code rather than `nn.DenseGeneral`: that one initialises a flattened
kernel, whose rank does not fit its logical axes under an active mesh.
"""

import math

import jax
import jax.numpy as jnp
from flax import linen as nn

from metro_jax import ops
from metro_jax.modules import initializers


class Dense(nn.Module):
  """y = x W + b over the last `inputs` axes of x.

  Attributes:
    shape: kernel shape, input axes first, then output axes.
    axes: logical name of each kernel axis; None is never sharded.
    dtype: compute dtype; parameters are float32.
    kernel_init: initializer of the kernel.
    inputs: how many of the kernel's axes are input axes.
    use_bias: whether there is a b.
  """

  shape: tuple[int, ...]
  axes: tuple[str | None, ...]
  dtype: jnp.dtype
  kernel_init: initializers.Initializer
  inputs: int = 1
  use_bias: bool = True

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps [..., *input axes] to [..., *output axes] in `dtype`."""
    kernel = self.param(
      'kernel',
      nn.with_logical_partitioning(self.kernel_init, self.axes),
      self.shape,
      jnp.float32,
    )
    out = self.shape[self.inputs :]
    width = math.prod(self.shape[: self.inputs])
    lead = x.shape[: x.ndim - self.inputs]
    x = x.reshape(*lead, width).astype(self.dtype)
    y = ops.matmul(x, kernel.reshape(width, -1)).reshape(*lead, *out)
    if not self.use_bias:
      return y
    bias = self.param(
      'bias',
      nn.with_logical_partitioning(
        initializers.zeros, self.axes[self.inputs :]
      ),
      out,
      jnp.float32,
    )
    return y + bias.astype(self.dtype)


class Table(nn.Module):
  """Learned rows, looked up by index.

  Attributes:
    shape: [rows, width].
    axes: logical names of the two axes.
    embedding_init: initializer.
  """

  shape: tuple[int, int]
  axes: tuple[str | None, ...]
  embedding_init: initializers.Initializer

  def setup(self) -> None:
    """Declares parameters; they come to be on first use."""
    self.embedding = self.param(
      'embedding',
      nn.with_logical_partitioning(self.embedding_init, self.axes),
      self.shape,
      jnp.float32,
    )

  def __call__(self, ids: jax.Array) -> jax.Array:
    """float32 [*ids.shape, width]."""
    return jnp.take(self.embedding, ids, axis=0)

  def table(self) -> jax.Array:
    """float32 [rows, width]."""
    return self.embedding
