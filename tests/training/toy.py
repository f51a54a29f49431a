# SPDX-License-Identifier: Apache-2.0
"""A model and a dataset that keep the trainer's promises and cost nothing.

The model predicts masked tokens with one hidden layer, drops hidden units by
(key, row, position) and weighs its loss by the count of the global batch.
"""

import dataclasses
import hashlib
import pathlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from metro_jax.metrics import Mean


@dataclasses.dataclass(frozen=True)
class ToyModel:
  vocab_size: int = 64
  max_length: int = 16
  width: int = 16
  heads: int = 4
  dropout: float = 0.1

  def init(self, rng, batch):
    del batch
    keys = jax.random.split(rng, 4)

    def box(key, shape, *axes):
      value = 0.1 * jax.random.normal(key, shape)
      return nn.LogicallyPartitioned(value, axes)

    wide = 2 * self.width
    return {
      'embedder': {
        'token': {
          'embedding': box(
            keys[0], (self.vocab_size, self.width), 'vocab', 'embed'
          )
        }
      },
      'main': {
        'wi': {
          'kernel': box(keys[1], (self.width, wide), 'embed', 'mlp'),
          'bias': box(keys[1], (wide,), 'mlp'),
        },
        'wo': {'kernel': box(keys[2], (wide, self.width), 'mlp', 'embed')},
        'query': {
          'kernel': box(
            keys[3], (self.width, self.heads, 4), 'embed', 'heads', 'kv'
          )
        },
      },
    }

  def normalizers(self, batch):
    return {'mlm': jnp.sum(batch['encoder_loss_weights'])}

  def loss_fn(self, params, batch, rng, step, train, normalizers=None):
    del step
    counts = normalizers or self.normalizers(batch)
    weights = batch['encoder_loss_weights']
    table = params['embedder']['token']['embedding']
    x = table[batch['encoder_input_tokens']]
    x = nn.with_logical_constraint(x, ('batch', 'length', 'embed'))
    x = x + jnp.roll(x, 1, axis=1)  # The token before tells the next.
    q = jnp.einsum('ble,ehk->blhk', x, params['main']['query']['kernel'])
    x = x + jnp.sum(q, (2, 3))[..., None]
    wi, wo = params['main']['wi'], params['main']['wo']
    h = jax.nn.gelu(x @ wi['kernel'] + wi['bias'])
    if train:

      def keep(row):
        key = jax.random.fold_in(rng, row)
        return jax.random.bernoulli(key, 1 - self.dropout, h.shape[1:])

      h = h * jax.vmap(keep)(batch['row_ids'])
    logits = jnp.einsum('ble,ve->blv', x + h @ wo['kernel'], table)
    target = batch['encoder_target_tokens']
    picked = jnp.take_along_axis(
      jax.nn.log_softmax(logits), target[..., None], -1
    )[..., 0]
    total = -jnp.sum(picked * weights)
    correct = jnp.sum((jnp.argmax(logits, -1) == target) * weights)
    metrics = {
      'loss/mlm': Mean(total, jnp.sum(weights)),
      'replace_rate': Mean(correct, jnp.sum(weights)),
    }
    return total / counts['mlm'], metrics

  def flops_per_step(self, batch_shape):
    return 6.0 * batch_shape[0] * batch_shape[1] * self.width * 4 * self.width


@dataclasses.dataclass(frozen=True)
class ToyDataset:
  """Counting text: token i+1 follows token i. An epoch has `size` rows."""

  batch_size: int = 16
  length: int = 8
  vocab_size: int = 64
  size: int = 40
  seed: int = 0
  vocabulary: str = 'toy'

  @property
  def fingerprint(self):
    text = repr(dataclasses.astuple(self))
    return hashlib.sha256(text.encode()).hexdigest()[:12]

  @property
  def steps_per_epoch(self):
    return -(-self.size // self.batch_size)

  def position(self, step):
    epoch, example = divmod(step * self.batch_size, self.size)
    return {'epoch': epoch, 'example': example}

  def batch(self, step, rows=None):
    n = step * self.batch_size + np.arange(self.batch_size)[rows or slice(None)]
    epoch, index = n // self.size, n % self.size
    place = np.arange(self.length)
    tokens = 5 + (index[:, None] * 7 + place) % (self.vocab_size - 5)
    filled = place < 4 + index[:, None] % 5
    draw = [
      np.random.default_rng((self.seed, e, i)).random(self.length)
      for e, i in zip(epoch, index, strict=True)
    ]
    masked = (np.stack(draw) < 0.4) & filled
    masked[:, 0] = True
    tokens = np.where(filled, tokens, 0).astype(np.int32)
    return {
      'encoder_input_tokens': np.where(masked, 4, tokens).astype(np.int32),
      'encoder_target_tokens': tokens,
      'encoder_loss_weights': masked.astype(np.float32),
      'encoder_segment_ids': filled.astype(np.int32),
      'encoder_positions': np.broadcast_to(place, tokens.shape).astype(
        np.int32
      ),
    }

  def save_assets(self, model_dir):
    path = pathlib.Path(model_dir) / 'vocabulary.model'
    path.write_text(f'{self.vocabulary} of {self.vocab_size}')
