# SPDX-License-Identifier: Apache-2.0
"""Text that metro_jax.corrupt has corrupted, as SeqIO tasks.

Examples come in the order of training, epoch by epoch: read them with
`shuffle=False`, and with `seqio_corrupted.CorruptedFeatureConverter`.
"""

import os

import seqio

from metro_jax.data import seqio_corrupted, seqio_vocabulary
from metro_jax.errors import UserError

FROM_ENVIRONMENT = 'metro_corrupted'


def corrupted_task(name: str, stream_dir: str) -> None:
  """Registers a stream under a name.

  Args:
    name: of the task; ours begin with 'metro_'.
    stream_dir: STREAM_DIR of metro_jax.corrupt.
  """
  _register(
    name,
    seqio_corrupted.source(lambda: stream_dir),
    seqio_vocabulary.TaskVocabulary(os.path.join(stream_dir, 'train')),
  )


def _register(
  name: str, source: seqio.DataSource, vocabulary: seqio.Vocabulary
) -> None:
  seqio.TaskRegistry.add(
    name,
    source=source,
    preprocessors=[],
    output_features={
      feature: seqio.Feature(vocabulary, add_eos=False, dtype='int32')
      for feature in seqio_corrupted.FEATURES
    },
    metric_fns=[],
  )


def _stream_of_environment() -> str:
  path = os.environ.get('METRO_STREAM_DIR')
  if not path:
    raise UserError(
      f'{FROM_ENVIRONMENT}: set METRO_STREAM_DIR to a STREAM_DIR of'
      ' metro_jax.corrupt'
    )
  return path


class _EnvironmentVocabulary(seqio_vocabulary.TaskVocabulary):
  """The vocabulary of METRO_STREAM_DIR."""

  @property
  def path(self) -> str:
    """The model file in use."""
    return os.path.join(_stream_of_environment(), 'train', 'vocabulary.model')


_register(
  FROM_ENVIRONMENT,
  seqio_corrupted.source(_stream_of_environment),
  _EnvironmentVocabulary(),
)
