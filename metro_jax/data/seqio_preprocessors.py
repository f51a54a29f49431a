# SPDX-License-Identifier: Apache-2.0
"""Chunks and masks as SeqIO preprocessors: the same rules, one example a time.

For T5X and other users of the registry. The native trainer's `TokenDataset`
follows the same rules a batch at a time and is many times faster.
"""

from collections.abc import Mapping

import seqio
import tensorflow as tf

from metro_jax.data import vocabularies

_DEFAULT_LENGTH = 512


def text_only(dataset: tf.data.Dataset, key: str = 'text') -> tf.data.Dataset:
  """Keeps the text alone, as 'targets'."""
  return dataset.map(lambda x: {'targets': x[key]}, tf.data.AUTOTUNE)


def chunk(
  dataset: tf.data.Dataset, sequence_length: Mapping[str, int] | None
) -> tf.data.Dataset:
  """Cuts a document's ids into chunks that leave room for [CLS] and [SEP].

  A chunk never reaches into another document; one of a single token is left
  out.
  """
  body = (sequence_length or {}).get('targets', _DEFAULT_LENGTH) - 2

  def grid(example: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
    tokens = tf.cast(example['targets'], tf.int32)
    missing = -tf.size(tokens) % body
    return {'targets': tf.reshape(tf.pad(tokens, [[0, missing]]), [-1, body])}

  def unpadded(example: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
    row = example['targets']
    # Text never yields [PAD], so what is zero is what `grid` added.
    return {'targets': row[: tf.math.count_nonzero(row, dtype=tf.int32)]}

  chunks = dataset.map(grid, tf.data.AUTOTUNE).unbatch()
  chunks = chunks.map(unpadded, tf.data.AUTOTUNE)
  return chunks.filter(lambda x: tf.size(x['targets']) > 1)


@seqio.map_over_dataset(num_seeds=1)
def mask(
  example: dict[str, tf.Tensor], seed: tf.Tensor, rate: float = 0.15
) -> dict[str, tf.Tensor]:
  """Masks exactly max(1, round(rate * n)) of n tokens, then adds specials.

  Args:
    example: 'targets', int32 [n] without specials.
    seed: int32 [2], from SeqIO: another one for each example.
    rate: fraction of the tokens to mask.

  Returns:
    'inputs' (masked) and 'targets' (original), int32 [n + 2], the features of
    `seqio.EncoderFeatureConverter`.
  """
  targets = example['targets']
  size = tf.size(targets)
  count = tf.cast(tf.floor(rate * tf.cast(size, tf.float64) + 0.5), tf.int32)
  count = tf.clip_by_value(count, 1, size)
  draws = tf.random.stateless_uniform([size], seed)
  chosen = tf.math.top_k(draws, count, sorted=False).indices
  masked = tf.tensor_scatter_nd_update(
    targets, chosen[:, None], tf.fill([count], vocabularies.MASK)
  )
  return {'inputs': _framed(masked), 'targets': _framed(targets)}


def _framed(tokens: tf.Tensor) -> tf.Tensor:
  return tf.concat([[vocabularies.CLS], tokens, [vocabularies.SEP]], axis=0)
