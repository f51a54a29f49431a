# SPDX-License-Identifier: Apache-2.0
"""The choice of implementation, per op."""

import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from metro_jax import modules, ops
from pallas_kernels import backend as backends

X = jax.random.normal(jax.random.key(0), (2, 3, 4))
ONES = jnp.ones(4)
Q = X[:, :, None]


def token_logits(backend):
  return ops.TokenLogits(X, jnp.eye(4), None, backend)


CALLS = {
  'layer_norm': lambda b: ops.layer_norm(X, ONES, ONES, backend=b),
  'attention': lambda b: ops.attention(Q, Q, Q, backend=b),
  'softmax_dropout': lambda b: ops.attention(Q, Q, Q, softmax_backend=b),
  'vocab_cross_entropy': lambda b: ops.token_cross_entropy(
    token_logits(b), jnp.zeros((2, 3), jnp.int32)
  ),
}


@pytest.mark.parametrize('op', CALLS)
def test_backends(op):
  auto, xla = CALLS[op]('auto'), CALLS[op]('xla')
  jax.tree.map(np.testing.assert_array_equal, auto, xla)
  with pytest.raises(NotImplementedError, match=rf"{op}: .*'cpu'.*'xla'"):
    CALLS[op]('pallas')


def test_token_logits_pass_through_transformations():
  logits = token_logits('xla')
  out = jax.jit(lambda t: t)(logits)
  assert out.backend == 'xla' and out.bias is None
  np.testing.assert_allclose(out.logits(), X, rtol=1e-6)


@pytest.mark.parametrize(
  'field', ['layer_norm_backend', 'attention_backend', 'softmax_backend']
)
def test_config_reaches_the_op(field):
  config = modules.TransformerConfig(
    embed_dim=4, num_heads=1, mlp_dim=4, num_layers=1, **{field: 'pallas'}
  )
  name = field.removesuffix('_backend')
  with pytest.raises(NotImplementedError, match=name):
    jax.eval_shape(modules.Encoder(config).init, jax.random.key(0), X)


@pytest.fixture
def mesh():
  """2 data x 2 fsdp x 2 tensor, and the rules of training.Partitioner."""
  rules = (
    ('batch', ('data', 'fsdp')),
    ('vocab', 'tensor'),
    ('heads', 'tensor'),
    ('embed', 'fsdp'),
  )
  mesh = jax.make_mesh(
    (2, 2, 2),
    ('data', 'fsdp', 'tensor'),
    axis_types=(jax.sharding.AxisType.Auto,) * 3,
  )
  return mesh, rules


def normal(seed, *shape):
  return jax.random.normal(jax.random.key(seed), shape)


ROWS = jnp.arange(4, dtype=jnp.uint32)
SEGMENTS = jnp.ones((4, 16), jnp.int32)


DROP = {'dropout_rate': jnp.float32(0.3), 'seed': jnp.uint32(1), 'rows': ROWS}


def mesh_layer_norm(x, scale, backend):
  return ops.layer_norm(
    x, scale, scale, branch=jnp.sin(x), backend=backend, **DROP
  )


def mesh_attention(q, vector, backend, softmax_backend='xla'):
  return ops.attention(
    q,
    q,
    q,
    bias=ops.PositionBias(16, 16, vector),
    q_segments=SEGMENTS,
    kv_segments=SEGMENTS,
    backend=backend,
    softmax_backend=softmax_backend,
    **DROP,
  )


def mesh_softmax_dropout(q, vector, backend):
  return mesh_attention(q, vector, 'xla', backend)


def mesh_cross_entropy(x, table, backend):
  logits = ops.TokenLogits(x, table, table[:, 0], backend)
  targets = jnp.arange(16).reshape(4, 4) * 2
  draw = ops.Draw(jnp.uint32(1), ROWS)
  return ops.token_cross_entropy(logits, targets, draw=draw)


SPLIT = ('data', 'fsdp')
ON_MESH = {
  'layer_norm': (
    mesh_layer_norm, normal(0, 4, 3, 32), normal(1, 32), (SPLIT,), ()
  ),
  'attention': (
    mesh_attention,
    normal(0, 4, 16, 2, 16),
    normal(1, 2, 31),
    (SPLIT, None, 'tensor'),
    ('tensor',),
  ),
  'softmax_dropout': (
    mesh_softmax_dropout,
    normal(0, 4, 16, 2, 16),
    normal(1, 2, 31),
    (SPLIT, None, 'tensor'),
    ('tensor',),
  ),
  'vocab_cross_entropy': (
    mesh_cross_entropy,
    normal(0, 4, 4, 32),
    normal(1, 34, 32),
    (SPLIT,),
    ('tensor',),
  ),
}  # fmt: skip


@pytest.mark.parametrize('name', ON_MESH)
def test_kernels_on_a_mesh(name, mesh):
  """As without one; and nothing that is split is gathered."""
  op, x, w, *specs = ON_MESH[name]
  P, (mesh, rules) = jax.sharding.PartitionSpec, mesh

  def run(backend, x, w):
    def f(x, w):
      out = jax.tree.leaves(op(x, w, backend))
      # Unequal cotangents of all results that have one.
      return sum(
        jnp.sum(y * jnp.sin(jnp.arange(y.size) + i).reshape(y.shape))
        for i, y in enumerate(out)
        if y.dtype == jnp.float32
      ), out

    return jax.value_and_grad(f, (0, 1), has_aux=True)(x, w)

  want = jax.jit(functools.partial(run, 'xla'))(x, w)
  with (
    jax.set_mesh(mesh),
    nn.logical_axis_rules(rules),
    backends.target('gpu', interpret=True),
  ):
    args = [
      jax.device_put(a, jax.sharding.NamedSharding(mesh, P(*s)))
      for a, s in zip((x, w), specs, strict=True)
    ]
    step = jax.jit(functools.partial(run, 'pallas')).lower(*args).compile()
    got = step(*args)
  jax.tree.map(
    functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4),
    got,
    want,
  )
  gathered = [
    math.prod(map(int, shape.split(',')))
    for shape in re.findall(r'\w+\[([\d,]+)\]\S* all-gather', step.as_text())
  ]
  # Summaries per token only: less than a device's share of x.
  assert max(gathered, default=0) < x.size // 8


def test_a_kernel_that_refuses_on_a_mesh(mesh, monkeypatch):
  """'auto' goes on with XLA, 'pallas' says why."""
  mesh, rules = mesh
  x = jnp.ones((4, 2, 8), jnp.float16)
  args = x, jnp.ones(8), jnp.ones(8)
  with (
    jax.set_mesh(mesh),
    nn.logical_axis_rules(rules),
    backends.target('gpu', interpret=True),
  ):
    with pytest.raises(NotImplementedError, match='float16'):
      jax.jit(functools.partial(ops.layer_norm, backend='pallas'))(*args)
    monkeypatch.setattr(backends, 'AUTO', frozenset({('layer_norm', 'gpu')}))
    y = jax.jit(functools.partial(ops.layer_norm, backend='auto'))(*args)
  np.testing.assert_array_equal(y, np.ones(x.shape))
