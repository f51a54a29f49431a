# SPDX-License-Identifier: Apache-2.0
"""A corrupted stream as SeqIO sees it: examples, and how they become features.

One example is one text ([CLS] .. [SEP]) as it is corrupted in one epoch:
'inputs' (corrupted), 'targets' (original) and 'masked' (what the auxiliary
read, with [MASK] in it), int32 of one length each.
"""

from collections.abc import Callable, Iterator, Mapping

import numpy as np
import seqio
import tensorflow as tf
from seqio import utils

from metro_jax.data import vocabularies
from metro_jax.data.corrupted_stream import CorruptedStream

FEATURES = ('inputs', 'targets', 'masked')
_ROWS = 256  # Read at once.


def examples(stream: CorruptedStream) -> Iterator[dict[str, np.ndarray]]:
  """Yields a stream's texts epoch by epoch, in the order of training."""
  total = stream.num_examples * (stream.epochs if stream.shuffle else 1)
  for start in range(0, total, stream.batch_size):
    batch = stream.batch(
      start // stream.batch_size,
      slice(0, min(stream.batch_size, total - start)),
    )
    inputs, original = (
      batch[f'encoder_{name}_tokens'] for name in ('input', 'target')
    )
    hidden = batch['encoder_loss_weights'] > 0
    masked = np.where(hidden, np.int32(vocabularies.MASK), original)
    tokens = dict(zip(FEATURES, (inputs, original, masked), strict=True))
    for row, segments in enumerate(batch['encoder_segment_ids']):
      for segment in range(1, segments.max() + 1):
        here = segments == segment
        yield {name: x[row, here] for name, x in tokens.items()}


def source(path: Callable[[], str]) -> seqio.DataSource:
  """A data source of 'train', all epochs of it, and 'validation'.

  Args:
    path: returns STREAM_DIR; called when examples are asked for.
  """

  def dataset(
    split: str, shuffle_files: bool = False, seed: int | None = None
  ) -> tf.data.Dataset:
    del shuffle_files  # The curriculum is in the order of the epochs.
    stream = CorruptedStream(
      path(), split, _ROWS, seed or 0, shuffle=split == 'train'
    )
    signature = {name: tf.TensorSpec([None], tf.int32) for name in FEATURES}
    return tf.data.Dataset.from_generator(
      lambda: examples(stream), output_signature=signature
    )

  return seqio.FunctionDataSource(dataset, splits=('train', 'validation'))


class CorruptedFeatureConverter(seqio.EncoderFeatureConverter):
  """The stock converter, but looks for [MASK] in 'masked'."""

  TASK_FEATURES = {
    name: seqio.FeatureConverter.FeatureSpec(dtype=tf.int32)
    for name in FEATURES
  }

  def __init__(self, **options):
    """See `seqio.FeatureConverter`."""
    super().__init__(mask_id=vocabularies.MASK, **options)

  def _convert_features(
    self, ds: tf.data.Dataset, input_lengths: Mapping[str, int]
  ) -> tf.data.Dataset:
    @utils.map_over_dataset
    def convert(example: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
      features = {
        'encoder_input_tokens': example['inputs'],
        'encoder_target_tokens': example['targets'],
        'encoder_loss_weights': tf.cast(
          tf.equal(example['masked'], self.mask_id), tf.int32
        ),
      }
      if self.pack:
        for name in ('segment_ids', 'positions'):
          features[f'encoder_{name}'] = example[f'inputs_{name}']
      return features

    return convert(self._pack_or_pad(ds, input_lengths))
