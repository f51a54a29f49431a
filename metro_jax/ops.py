# SPDX-License-Identifier: Apache-2.0
"""The ops that modules call; the only importer of `pallas_kernels`.

Here the choice of implementation meets the mesh: kernels know neither, and
modules know only these functions. `backend` is 'auto' (a kernel where one
fits, else XLA), 'xla', or 'pallas' (a kernel, or NotImplementedError with the
reason).
"""

import dataclasses
import functools

import jax

import pallas_kernels
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
  backend: str = 'auto',
) -> jax.Array:
  """LayerNorm over the last axis of x [..., features], float32 inside."""
  return pallas_kernels.layer_norm(x, scale, bias, epsilon, backend=backend)


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
  return pallas_kernels.attention(
    q,
    k,
    v,
    bias=bias,
    q_segments=q_segments,
    kv_segments=kv_segments,
    scale=scale,
    causal=causal,
    dropout_rate=dropout_rate,
    seed=seed,
    rows=rows,
    softmax_backend=softmax_backend,
    backend=backend,
  )


def token_cross_entropy(
  token_logits: TokenLogits, targets: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Cross entropy per row; `token_logits.backend` says by which means.

  Args:
    token_logits: logits of shape [..., vocabulary].
    targets: int32 [...].

  Returns:
    loss and log-sum-exp, float32 [...], and the most likely id, int32 [...].
  """
  return pallas_kernels.vocab_cross_entropy(
    token_logits.features,
    token_logits.table,
    token_logits.bias,
    targets,
    backend=token_logits.backend,
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
