# SPDX-License-Identifier: Apache-2.0
"""What is measured: every op forward and backward, as METRO-LM uses it."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

import pallas_kernels
from pallas_kernels.benchmark import float64


@dataclasses.dataclass(frozen=True)
class Sizes:
  """Of a model and a batch; as they stand, METRO-LM's base model.

  Attributes:
    rows: sequences of a batch.
    length: tokens of a sequence.
    width: of hidden states.
    heads: of attention.
    vocabulary: ids.
    predictions: masked tokens of a sequence.
    dtype: of activations.
  """

  rows: int = 32
  length: int = 512
  width: int = 768
  heads: int = 12
  vocabulary: int = 32768
  predictions: int = 77
  dtype: Any = jnp.bfloat16


@dataclasses.dataclass(frozen=True)
class Case:
  """One op.

  Attributes:
    op: (backend, differentiated arguments, others) to result.
    library: the like of `op` from a library, or None.
    exact: the same in float64.
    shapes: of the differentiated arguments.
    others: name to shape and dtype of integer arguments and their bound.
    work: bytes or floating-point operations, by count.
    unit: 'GB/s' or 'TFLOP/s', what `work` is per second.
  """

  op: Callable
  exact: Callable
  shapes: dict[str, jax.ShapeDtypeStruct]
  others: dict[str, jax.ShapeDtypeStruct]
  work: float
  unit: str
  library: Callable | None = None

  def arguments(self, key: jax.Array) -> tuple[dict, dict]:
    """Fresh random ones."""
    keys = iter(jax.random.split(key, len(self.shapes) + len(self.others)))
    floats = {
      name: jax.random.normal(next(keys), s.shape, jnp.float32).astype(s.dtype)
      for name, s in self.shapes.items()
    }
    whole = {
      name: jax.random.randint(next(keys), s.shape, 0, self.bound(name))
      for name, s in self.others.items()
    }
    return floats, whole

  def bound(self, name: str) -> int:
    """Integers are below this."""
    return self.shapes['table'].shape[0] if name == 'targets' else 4


def cases(sizes: Sizes) -> dict[str, Case]:
  """Name to case."""
  b, n, d, h = sizes.rows, sizes.length, sizes.width, sizes.heads
  size = jnp.dtype(sizes.dtype).itemsize
  hidden = _array(sizes.dtype, b, n, d)
  vectors = {'scale': _array(jnp.float32, d), 'bias': _array(jnp.float32, d)}
  heads = _array(sizes.dtype, b, n, h, d // h)
  relative = {
    'vector': _array(jnp.float32, h, 2 * n - 1),
    'reset': _array(jnp.float32, h, 2),
  }
  segments = {'segments': _array(jnp.int32, b, n)}
  qkv = {name: heads for name in 'qkv'}
  # Two products forward, five backward, one of those a repetition.
  products = 2 * b * h * n * n * (d // h) * 6
  tokens = b * sizes.predictions
  out = {
    'layer_norm': Case(
      _layer_norm,
      float64.layer_norm,
      {'x': hidden, 'branch': hidden, **vectors},
      {},
      # Reads x and branch twice and a cotangent, writes three.
      8 * b * n * d * size,
      'GB/s',
    ),
    'softmax_dropout': Case(
      _softmax_dropout,
      float64.softmax_dropout,
      {'logits': _array(jnp.float32, b, h, n, n), **relative},
      segments,
      # Logits are read twice and their cotangents written in float32.
      b * h * n * n * (3 * 4 + 2 * size),
      'GB/s',
    ),
    'attention': Case(
      _attention,
      float64.attention,
      {**qkv, **relative},
      segments,
      products,
      'TFLOP/s',
    ),
    'attention, plain': Case(
      _plain_attention,
      float64.plain_attention,
      qkv,
      {},
      products,
      'TFLOP/s',
      _library_attention,
    ),
  }
  language_model = {
    'features': _array(sizes.dtype, b, sizes.predictions, d),
    'table': _array(jnp.float32, sizes.vocabulary, d),
    'bias': _array(jnp.float32, sizes.vocabulary),
  }
  for name, op in (
    ('vocab_cross_entropy', _vocab_cross_entropy),
    ('vocab_cross_entropy, sampled', _sampled),
  ):
    out[name] = Case(
      op,
      float64.vocab_cross_entropy,
      language_model,
      {'targets': _array(jnp.int32, b, sizes.predictions)},
      # One product forward, two backward; the repetition does not count.
      2 * tokens * d * sizes.vocabulary * 3,
      'TFLOP/s',
    )
  return out


def _array(dtype, *shape):
  return jax.ShapeDtypeStruct(shape, dtype)


def _drop(rows: int) -> dict:
  return {
    'dropout_rate': float64.RATE,
    'seed': jnp.uint32(1),
    'rows': jnp.arange(rows, dtype=jnp.uint32),
  }


def _position_bias(vector, reset, segments):
  """Of packed rows, where every token whose number divides by 4 is a [CLS]."""
  length = segments.shape[1]
  first = jnp.broadcast_to(jnp.arange(length) % 4 == 0, segments.shape)
  return pallas_kernels.PositionBias(
    length, length, vector, reset, first, first
  )


def _layer_norm(backend, a, others):
  del others
  return pallas_kernels.layer_norm(
    a['x'],
    a['scale'],
    a['bias'],
    float64.EPSILON,
    branch=a['branch'],
    backend=backend,
    **_drop(a['x'].shape[0]),
  )


def _softmax_dropout(backend, a, others):
  segments = others['segments']
  return pallas_kernels.softmax_dropout(
    a['logits'],
    bias=_position_bias(a['vector'], a['reset'], segments),
    q_segments=segments,
    kv_segments=segments,
    dtype=jnp.bfloat16,
    backend=backend,
    **_drop(segments.shape[0]),
  )


def _attention(backend, a, others):
  segments = others['segments']
  return pallas_kernels.attention(
    a['q'],
    a['k'],
    a['v'],
    bias=_position_bias(a['vector'], a['reset'], segments),
    q_segments=segments,
    kv_segments=segments,
    backend=backend,
    **_drop(segments.shape[0]),
  )


def _plain_attention(backend, a, others):
  del others
  return pallas_kernels.attention(a['q'], a['k'], a['v'], backend=backend)


def _library_attention(a, others):
  del others
  where = 'cudnn' if jax.default_backend() == 'gpu' else 'xla'
  return jax.nn.dot_product_attention(
    a['q'], a['k'], a['v'], implementation=where
  )


def _vocab_cross_entropy(backend, a, others):
  return pallas_kernels.vocab_cross_entropy(
    a['features'], a['table'], a['bias'], others['targets'], backend=backend
  )[0]


def _sampled(backend, a, others):
  rows = jnp.arange(a['features'].shape[0], dtype=jnp.uint32)
  draw = pallas_kernels.Draw(jnp.uint32(1), rows)
  loss, _, _, sample = pallas_kernels.vocab_cross_entropy(
    a['features'],
    a['table'],
    a['bias'],
    others['targets'],
    draw=draw,
    backend=backend,
  )
  # The sample stays in the program: a term without value and gradient.
  return loss + 0.0 * jax.lax.stop_gradient(sample).astype(loss.dtype)
