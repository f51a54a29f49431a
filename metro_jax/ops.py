# SPDX-License-Identifier: Apache-2.0
"""The ops that modules call; the only importer of `pallas_kernels`.

Here the choice of implementation meets the mesh: kernels know neither, and
modules know only these functions. `backend` is 'auto' (a kernel where one
fits and has proven itself, else XLA), 'xla', or 'pallas' (a kernel, or
NotImplementedError with the reason).

XLA cannot look into a kernel, and would gather what is split over devices
before it calls one. So under a mesh a kernel runs inside shard_map, on each
device's part: batch and heads are split as the logical axis rules say, and
the vocabulary too, over which the kernel itself exchanges a few numbers per
token.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.sharding import PartitionSpec

import pallas_kernels
from pallas_kernels import Draw as Draw
from pallas_kernels import PositionBias as PositionBias
from pallas_kernels import matmul as matmul
from pallas_kernels import random_bits as random_bits

BACKENDS = pallas_kernels.BACKENDS


@functools.partial(
  jax.tree_util.register_dataclass,
  data_fields=('features', 'table', 'bias'),
  meta_fields=('backend',),
)
@dataclasses.dataclass(frozen=True)
class TokenLogits:
  """Logits over the vocabulary, not yet multiplied out.

  Attributes:
    features: [..., table_dim], compute dtype.
    table: [vocabulary, table_dim].
    bias: [vocabulary] or None.
    backend: implementation for `token_cross_entropy`.
  """

  features: jax.Array
  table: jax.Array
  bias: jax.Array | None = None
  backend: str = 'auto'

  def logits(self) -> jax.Array:
    """float32 [..., vocabulary]."""
    return pallas_kernels.vocab_logits(self.features, self.table, self.bias)


def layer_norm(
  x: jax.Array,
  scale: jax.Array,
  bias: jax.Array,
  epsilon: float = 1e-5,
  *,
  branch: jax.Array | None = None,
  dropout_rate: float | jax.Array = 0.0,
  seed: jax.Array | None = None,
  rows: jax.Array | None = None,
  backend: str = 'auto',
) -> jax.Array:
  """LayerNorm over the last axis, float32 inside.

  Args:
    x: [batch, ..., features].
    scale: [features].
    bias: [features].
    epsilon: added to the variance.
    branch: like x; x + dropout(branch) is normalized in its place.
    dropout_rate: of the branch, may be traced; needs [batch, length, features].
    seed: uint32 scalar, needed for dropout.
    rows: uint32 [batch], each row's index in the global batch.
    backend: of the whole op.

  Returns:
    Like x.
  """
  # A Python 0 stays one: it is free.
  rate = dropout_rate if isinstance(dropout_rate, jax.Array) else None

  def op(parts, backend, axes):
    del axes
    x, scale, bias, branch, rate, seed, rows = parts
    return pallas_kernels.layer_norm(
      x,
      scale,
      bias,
      epsilon,
      branch=branch,
      dropout_rate=dropout_rate if rate is None else rate,
      seed=seed,
      rows=rows,
      backend=backend,
    )

  batch = ('batch',)
  return _on_mesh(
    'layer_norm',
    backend,
    op,
    (x, scale, bias, branch, rate, seed, rows),
    (batch, (), (), batch, (), (), batch),
    batch,
  )


def dropout(
  x: jax.Array, rate: float | jax.Array, seed: jax.Array, rows: jax.Array
) -> jax.Array:
  """Dropout of x [batch, length, features]; rows: uint32 [batch] row ids."""
  return pallas_kernels.dropout(x, rate, seed, rows)


def attention(
  q: jax.Array,
  k: jax.Array,
  v: jax.Array,
  *,
  bias: PositionBias | None = None,
  q_segments: jax.Array | None = None,
  kv_segments: jax.Array | None = None,
  scale: float | None = None,
  causal: bool = False,
  dropout_rate: float | jax.Array = 0.0,
  seed: jax.Array | None = None,
  rows: jax.Array | None = None,
  backend: str = 'auto',
  softmax_backend: str = 'auto',
) -> jax.Array:
  """Attention of q on k and v, all [batch, length, heads, head_dim].

  Args:
    q: [batch, queries, heads, head_dim].
    k: [batch, keys, heads, head_dim].
    v: [batch, keys, heads, head_dim].
    bias: position bias, added after scaling.
    q_segments: int32 [batch, queries]; 0 is padding. None: nothing masked.
    kv_segments: int32 [batch, keys]. A query sees keys of its own segment.
    scale: of the products; None is 1 / sqrt(head_dim).
    causal: whether query i sees only keys 0..i.
    dropout_rate: probability that a weight is dropped; may be traced.
    seed: uint32 scalar, needed for dropout.
    rows: uint32 [batch], each row's index in the global batch.
    backend: of the whole op.
    softmax_backend: of bias + mask + softmax + dropout, where the whole op
      runs as XLA.

  Returns:
    [batch, queries, heads, head_dim] in q's dtype; zeros where a query may
    see no key.
  """
  # A Python 0 stays one: it is free.
  rate = dropout_rate if isinstance(dropout_rate, jax.Array) else None
  heads, batch = ('batch', None, 'heads', None), ('batch',)
  names = (heads, heads, heads, _BIAS, batch, batch, (), (), batch)

  def call(parts, axes, backend, softmax_backend):
    q, k, v, bias, q_segments, kv_segments, rate, seed, rows = parts
    return pallas_kernels.attention(
      q,
      k,
      v,
      bias=bias,
      q_segments=q_segments,
      kv_segments=kv_segments,
      scale=scale,
      causal=causal,
      dropout_rate=dropout_rate if rate is None else rate,
      seed=seed,
      rows=rows,
      softmax_backend=softmax_backend,
      axis=axes.get('heads'),
      backend=backend,
    )

  def whole(parts, backend, axes):
    if backend == 'xla':  # Products by XLA; the softmax may have a kernel.
      name = 'softmax_dropout'
      return _on_mesh(name, softmax_backend, parted, parts, names, heads)
    return call(parts, axes, backend, softmax_backend)

  def parted(parts, softmax_backend, axes):
    return call(parts, axes, 'xla', softmax_backend)

  args = (q, k, v, bias, q_segments, kv_segments, rate, seed, rows)
  return _on_mesh('attention', backend, whole, args, names, heads)


# Logical axes of PositionBias; `untied` is refused by kernels.
_BIAS = PositionBias(
  0,
  0,
  vector=('heads', None),
  reset=('heads', None),
  q_first=('batch', None),
  k_first=('batch', None),
  untied=('batch', 'heads'),
)


def token_cross_entropy(
  token_logits: TokenLogits,
  targets: jax.Array,
  *,
  draw: Draw | None = None,
) -> tuple[jax.Array, ...]:
  """Cross entropy per row; `token_logits.backend` says by which means.

  Args:
    token_logits: logits of shape [..., vocabulary].
    targets: int32 [...].
    draw: asks for a sample of each token in the same pass; leading axes are
      then [batch, draws].

  Returns:
    loss and log-sum-exp, float32 [...], and the most likely id, int32 [...];
    with `draw` also a sample, int32 [...].
  """

  def op(parts, backend, axes):
    features, table, bias, targets, draw = parts
    return pallas_kernels.vocab_cross_entropy(
      features,
      table,
      bias,
      targets,
      draw=draw,
      axis=axes.get('vocab'),
      backend=backend,
    )

  t = token_logits
  return _on_mesh(
    'vocab_cross_entropy',
    t.backend,
    op,
    (t.features, t.table, t.bias, targets, draw),
    (
      ('batch',),
      ('vocab', None),
      ('vocab',),
      ('batch',),
      Draw((), ('batch',), ()),
    ),
    ('batch',),
  )


def sample_categorical(
  logits: jax.Array, seed: jax.Array, rows: jax.Array
) -> jax.Array:
  """Ids int32 [batch, draws] from logits [batch, draws, vocabulary]."""
  return pallas_kernels.categorical(logits, seed, rows)


def sample_gumbel(
  logits: jax.Array, seed: jax.Array, rows: jax.Array
) -> jax.Array:
  """The same distribution by Gumbel-max: noise on every logit."""
  return pallas_kernels.gumbel(logits, seed, rows)


def gumbel_noise(
  shape: tuple[int, int, int], seed: jax.Array, rows: jax.Array
) -> jax.Array:
  """float32 [batch, draws, vocabulary]: what `sample_gumbel` adds."""
  plane = rows.astype(jnp.uint32)[:, None, None]
  draw, ids = (random_bits.iota(shape, axis) for axis in (1, 2))
  return random_bits.gumbel(random_bits.bits(seed, plane, draw, ids))


def _on_mesh(
  name: str,
  backend: str,
  op: Callable,
  args: Sequence[Any],
  logical: Sequence[Any],
  logical_out: tuple,
) -> Any:
  """Calls an op, on each device's part of its arguments if it is a kernel.

  Args:
    name: of the op.
    backend: 'auto', 'xla' or 'pallas'.
    op: (arguments, backend, mesh axis by logical axis) to results, all of
      which have the first argument's leading axes.
    args: arrays, None, or dataclasses of those.
    logical: like args, the logical axes of every array's leading dimensions.
    logical_out: the same, of all results.

  Returns:
    What `op` returns.
  """
  mesh = jax.sharding.get_abstract_mesh()
  if not pallas_kernels.wants_kernel(name, backend):
    return op(args, 'xla' if backend == 'auto' else backend, {})
  if mesh.empty or mesh.size == 1:
    return op(args, backend, {})
  leaves, structure = jax.tree.flatten(args)
  names = _leaves_like(args, logical)
  sizes: dict[str, int] = {}
  for leaf, axes in zip(leaves, names, strict=True):
    for axis, size in zip(axes, jnp.shape(leaf), strict=False):
      # A size of 1 beside a larger one is broadcast, not split.
      if axis is not None and (size > 1 or axis not in sizes):
        sizes[axis] = size
  split = {a: _mesh_axes(a, sizes[a], mesh) for a in sizes}
  inside = {a: m[0] for a, m in split.items() if a != 'batch' and len(m) == 1}

  def spec(axes, shape):
    dims = [split.get(a) or None for a in axes[: len(shape)]]
    dims = [m if n > 1 else None for m, n in zip(dims, shape, strict=False)]
    return PartitionSpec(*dims)

  specs = [
    spec(axes, jnp.shape(leaf))
    for leaf, axes in zip(leaves, names, strict=True)
  ]

  def local(*parts):
    return op(jax.tree.unflatten(structure, parts), 'pallas', inside)

  run = jax.shard_map(
    local,
    in_specs=tuple(specs),
    out_specs=spec(logical_out, jnp.shape(leaves[0])),
    check_vma=False,  # Kernels do not say over which axes results vary.
  )
  try:
    return run(*leaves)
  except NotImplementedError:
    if backend == 'pallas':
      raise
    return op(args, 'xla', {})


def _leaves_like(args: Sequence[Any], logical: Sequence[Any]) -> list[tuple]:
  """Logical axes of every array among the leaves of args, in their order."""

  def pick(arg, axes):
    if arg is None:
      return []
    if dataclasses.is_dataclass(arg):
      fields = [f.name for f in dataclasses.fields(arg)]
      data = [f for f in fields if isinstance(getattr(axes, f), tuple)]
      return [a for f in data for a in pick(getattr(arg, f), getattr(axes, f))]
    return [axes]

  return [a for x, y in zip(args, logical, strict=True) for a in pick(x, y)]


def _mesh_axes(logical: str, size: int, mesh: Any) -> tuple[str, ...]:
  """Mesh axes that split a dimension of this size; () where none does."""
  axes = nn.logical_to_mesh_axes((logical,))[0] or ()
  axes = axes if isinstance(axes, tuple) else (axes,)
  axes = tuple(a for a in axes if mesh.shape[a] > 1)
  parts = math.prod(mesh.shape[a] for a in axes)
  return axes if size % parts == 0 else ()
