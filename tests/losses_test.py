# SPDX-License-Identifier: Apache-2.0
import jax
import jax.numpy as jnp
import numpy as np

from metro_jax import losses
from metro_jax.ops import TokenLogits

EPS = float(np.finfo(np.float32).eps)


def tokens():
  rng = np.random.default_rng(0)
  features = rng.normal(size=(3, 5, 8)).astype(np.float32)
  table = rng.normal(size=(20, 8)).astype(np.float32)
  bias = rng.normal(size=20).astype(np.float32)
  targets = rng.integers(0, 20, (3, 5)).astype(np.int32)
  return TokenLogits(*map(jnp.asarray, (features, table, bias))), targets


def exact_logits(token_logits: TokenLogits) -> np.ndarray:
  features, table, bias = (
    np.asarray(x, np.float64)
    for x in (token_logits.features, token_logits.table, token_logits.bias)
  )
  return features @ table.T + bias


def test_token_cross_entropy():
  token_logits, targets = tokens()
  logits = exact_logits(token_logits)
  normalizer = np.log(np.sum(np.exp(logits), axis=-1))
  at_target = np.take_along_axis(logits, targets[..., None], -1)[..., 0]
  result = losses.token_cross_entropy(token_logits, targets)
  # A logit is a float32 sum of 9 terms, the normalizer one of 20.
  close = {'rtol': 30 * EPS, 'atol': 30 * EPS * np.abs(logits).max()}
  np.testing.assert_allclose(result.loss, normalizer - at_target, **close)
  np.testing.assert_allclose(result.log_normalizer, normalizer, **close)
  np.testing.assert_array_equal(result.predicted, np.argmax(logits, -1))


def test_logit_of_one_id_is_that_of_the_whole_product():
  token_logits, targets = tokens()
  logits = exact_logits(token_logits)
  expected = np.take_along_axis(logits, targets[..., None], -1)[..., 0]
  np.testing.assert_allclose(
    losses.logit_of(token_logits, targets),
    expected,
    atol=9 * EPS * np.abs(logits).max(),
  )
  no_bias = TokenLogits(token_logits.features, token_logits.table)
  np.testing.assert_allclose(
    losses.logit_of(no_bias, targets),
    expected - np.asarray(token_logits.bias)[targets],
    atol=9 * EPS * np.abs(logits).max(),
  )


def test_binary_cross_entropy():
  logits = np.array([-100.0, -3.0, -1e-4, 0.0, 2.5, 100.0], np.float32)
  wide = logits.astype(np.float64)
  for positive in (True, False):
    p = 1 / (1 + np.exp(-wide if positive else wide))
    result = losses.binary_cross_entropy(logits, np.full(6, positive))
    assert result.dtype == jnp.float32
    # float64's own logarithm of a rounded 1 is off by its epsilon, atol.
    np.testing.assert_allclose(result, -np.log(p), rtol=4 * EPS, atol=1e-15)


def test_binary_cross_entropy_gradient_is_probability_minus_label():
  logits = np.array([-50.0, -1.0, 0.5, 50.0], np.float32)
  positive = np.array([True, False, True, False])
  grad = jax.grad(lambda x: losses.binary_cross_entropy(x, positive).sum())
  expected = 1 / (1 + np.exp(-logits.astype(np.float64))) - positive
  np.testing.assert_allclose(grad(logits), expected, rtol=4 * EPS, atol=1e-15)


def test_losses_of_bfloat16_are_float32():
  logits = jnp.array([1.0, -2.0], jnp.bfloat16)
  loss = losses.binary_cross_entropy(logits, jnp.array([True, True]))
  assert loss.dtype == jnp.float32
  np.testing.assert_allclose(loss, np.log1p(np.exp([-1.0, 2.0])), rtol=4 * EPS)
