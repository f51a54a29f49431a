# SPDX-License-Identifier: Apache-2.0
"""The op around the kernels: what is the same on every platform.

The sum of x and its dropped branch exists inside a kernel only, in float32:
the backward pass adds it up again.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple, Protocol

import jax

from pallas_kernels import backend, random_bits
from pallas_kernels.no_gradient import no_gradient


@dataclasses.dataclass(frozen=True)
class How:
  """What a kernel is compiled for.

  Attributes:
    epsilon: added to the variance.
    branch: whether there is a branch to add.
    dropout: whether it is dropped.
    interpret: run as plain JAX.
  """

  epsilon: float
  branch: bool
  dropout: bool
  interpret: bool


class Drop(NamedTuple):
  """What a kernel reads to drop.

  Attributes:
    planes: uint32 [batch], `random_bits.fold` of seed and row id.
    threshold: uint32 [1], random bits below are dropped.
    keep_scale: float32 [1].
  """

  planes: jax.Array
  threshold: jax.Array
  keep_scale: jax.Array


class Kernels(Protocol):
  """What a platform brings. Arrays are [batch, length, features]."""

  MAX_FEATURES: int

  def forward(
    self,
    how: How,
    x: jax.Array,
    branch: tuple[jax.Array, ...],
    drop: tuple[jax.Array, ...],
    scale: jax.Array,
    bias: jax.Array,
  ) -> jax.Array:
    """The result; `branch` and `drop` are empty where there is none."""

  def backward(
    self,
    how: How,
    x: jax.Array,
    branch: tuple[jax.Array, ...],
    drop: tuple[jax.Array, ...],
    scale: jax.Array,
    g: jax.Array,
  ) -> tuple[jax.Array, ...]:
    """Cotangents of x, scale and bias, with dropout also of the branch.

    Those of scale and bias are float32 [features].
    """


def make(kernels: Kernels) -> Callable:
  """The op of `reference.layer_norm` by a platform's kernels."""

  def op(
    x: jax.Array,
    scale: jax.Array,
    bias: jax.Array,
    epsilon: float,
    *,
    branch: jax.Array | None = None,
    dropout_rate: float | jax.Array = 0.0,
    seed: jax.Array | None = None,
    rows: jax.Array | None = None,
    interpret: bool = False,
  ) -> jax.Array:
    features = x.shape[-1]
    backend.require_dtype('layer_norm', x)
    backend.require(
      features <= kernels.MAX_FEATURES,
      f'layer_norm: {features} features are more than {kernels.MAX_FEATURES},'
      ' a row of which the kernel still holds at a time',
    )
    backend.require(
      branch is None or branch.dtype == x.dtype, 'layer_norm: mixed dtypes'
    )
    drop, shape = (), (1, -1, features)
    if branch is not None and not random_bits.never(dropout_rate):
      shape = x.shape
      drop = Drop(
        random_bits.fold(seed, rows),
        random_bits.threshold(dropout_rate)[None],
        random_bits.keep_scale(dropout_rate)[None],
      )
    how = How(float(epsilon), branch is not None, bool(drop), interpret)
    branch = () if branch is None else (branch.reshape(shape),)
    y = _layer_norm((kernels, how), x.reshape(shape), branch, scale, bias, drop)
    return y.reshape(x.shape)

  return op


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _layer_norm(static, x, branch, scale, bias, drop):
  return _forward(static, x, branch, scale, bias, drop)[0]


def _forward(static, x, branch, scale, bias, drop):
  kernels, how = static
  y = kernels.forward(how, x, branch, tuple(drop), scale, bias)
  return y, (x, branch, scale, bias, drop)


def _backward(static, residuals, g):
  kernels, how = static
  x, branch, scale, bias, drop = residuals
  dx, d_scale, d_bias, *dropped = kernels.backward(
    how, x, branch, tuple(drop), scale, g
  )
  # Without dropout the branch has the cotangent of x.
  d_branch = tuple(dropped or [dx]) if how.branch else ()
  return (
    dx,
    d_branch,
    d_scale.astype(scale.dtype),
    d_bias.astype(bias.dtype),
    jax.tree.map(no_gradient, drop),
  )


_layer_norm.defvjp(_forward, _backward)
