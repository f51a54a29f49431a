# SPDX-License-Identifier: Apache-2.0
"""Kernels at the sizes that models have, forward and backward."""

import functools

import jax
import jax.numpy as jnp
import step_case

import pallas_kernels

_ARRAY = jax.ShapeDtypeStruct
_BF16, _F32, _I32 = jnp.bfloat16, jnp.float32, jnp.int32
STEPS = {f'train step, {kernels}': kernels for kernels in ('pallas', 'xla')}


def cases() -> dict:
  """Name to (function, shapes of its arguments)."""
  vector, x = _ARRAY((768,), _F32), _ARRAY((16, 500, 768), _BF16)
  out = {'layer_norm plain': (_pulled(_layer_norm, 3), (x, vector, vector, x))}
  for features, dtype in ((768, _BF16), (1024, _F32), (2560, _BF16)):
    name = f'layer_norm {features} {jnp.dtype(dtype).name}'
    vector, x = _ARRAY((features,), _F32), _ARRAY((16, 500, features), dtype)
    out[name] = _pulled(_residual, 4), (x, vector, vector, x, x)
  # A batch as large as one device ever has, and rows of every length.
  for batch, length, dtype, options in (
    (256, 500, _F32, {'dropout_rate': 0.1, 'bias': 'reset'}),
    (4, 512, _BF16, {'dropout_rate': 0.1, 'bias': 'untied'}),
    (4, 2048, _F32, {'causal': True, 'bias': 'vector'}),
    (1, 8192, _F32, {}),
  ):
    name = f'softmax_dropout {length} {jnp.dtype(dtype).name}'
    x = _ARRAY((batch, 12, length, length), dtype)
    args = (
      x,
      _ARRAY((12, 2 * length - 1), _F32),
      _ARRAY((12, 2), _F32),
      _ARRAY((1, 12, 512, 512), _F32),
      _ARRAY((batch, length), _I32),
      _ARRAY(x.shape, _BF16),
    )
    function = functools.partial(_softmax_dropout, **options)
    out[name] = _pulled(function, 4), args
  for width, ids, dtype in ((768, 32768, _BF16), (128, 30000, _F32)):
    name = f'vocab_cross_entropy {width} x {ids} {jnp.dtype(dtype).name}'
    loss = _ARRAY((8, 500), _F32)
    args = (
      _ARRAY((8, 500, width), dtype),
      _ARRAY((ids, width), _F32),
      _ARRAY((ids,), _F32),
      _ARRAY((8, 500), _I32),
    )
    out[name] = _pulled(_vocab_cross_entropy, 3), (*args, (loss, loss))
    if dtype == _BF16:
      sampled = functools.partial(_vocab_cross_entropy, sampling=True)
      out[f'{name} sampled'] = sampled, args
  metro = {'dropout_rate': 0.1, 'bias': 'reset'}
  for name, length, width, dtype, options in (
    ('attention metro', 500, 64, _BF16, metro),
    ('attention t5', 512, 64, _BF16, {'bias': 'vector'}),
    ('attention plain', 512, 128, _BF16, {}),
    ('attention causal', 300, 64, _BF16, {'causal': True, 'bias': 'vector'}),
    ('attention float32', 512, 64, _F32, {'bias': 'vector'}),
  ):
    batch = 256 if options is metro else 4
    x = _ARRAY((batch, length, 12, width), dtype)
    args = (x, x, x, _ARRAY((12, 2 * length - 1), _F32), _ARRAY((12, 2), _F32))
    function = functools.partial(_attention, **options)
    out[name] = _pulled(function, 5), (*args, _ARRAY((batch, length), _I32), x)
  return out


def steps() -> dict:
  """Kernels inside the training step; and it without, for what they avoid."""
  return {name: step_case.train_step(on) for name, on in STEPS.items()}


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


def _residual(x, scale, bias, branch):
  return pallas_kernels.layer_norm(
    x, scale, bias, branch=branch, backend='pallas', **_drop(x.shape[0])
  )


def _drop(batch):
  rows = jnp.arange(batch, dtype=jnp.uint32)
  return {'dropout_rate': 0.1, 'seed': jnp.uint32(1), 'rows': rows}


def _softmax_dropout(
  logits, vector, reset, untied, segments, bias=None, **options
):
  return pallas_kernels.softmax_dropout(
    logits,
    scale=0.125,
    bias=_bias(bias, vector, reset, segments, untied),
    q_segments=segments,
    kv_segments=segments,
    dtype=_BF16,
    backend='pallas',
    **_with_drop(options, segments),
  )


def _with_drop(options, segments):
  dropped = 'dropout_rate' in options
  return options | _drop(segments.shape[0]) if dropped else options


def _bias(kind, vector, reset, segments, untied=None):
  if kind is None:
    return None
  length = segments.shape[1]
  if kind == 'vector':
    return pallas_kernels.PositionBias(length, length, vector)
  if kind == 'untied':
    return pallas_kernels.PositionBias(length, length, untied=untied)
  first = jnp.broadcast_to(jnp.arange(length) == 0, segments.shape)
  return pallas_kernels.PositionBias(
    length, length, vector, reset, first, first
  )


def _vocab_cross_entropy(features, table, bias, targets, sampling=False):
  draw = None
  if sampling:
    rows = jnp.arange(targets.shape[0], dtype=jnp.uint32)
    draw = pallas_kernels.Draw(jnp.uint32(1), rows)
  out = pallas_kernels.vocab_cross_entropy(
    features, table, bias, targets, draw=draw, backend='pallas'
  )
  return out if sampling else out[:2]


def _attention(q, k, v, vector, reset, segments, bias=None, **options):
  return pallas_kernels.attention(
    q,
    k,
    v,
    bias=_bias(bias, vector, reset, segments),
    q_segments=segments,
    kv_segments=segments,
    backend='pallas',
    **_with_drop(options, segments),
  )
