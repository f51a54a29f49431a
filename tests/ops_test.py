# SPDX-License-Identifier: Apache-2.0
"""The choice of implementation, per op."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metro_jax import modules, ops

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
