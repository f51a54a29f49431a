# SPDX-License-Identifier: Apache-2.0
"""Pretraining corpora: the embedded one, your own text, and TFDS's.

Every task yields 'inputs' (masked ids) and 'targets' (original ids) for
`seqio.EncoderFeatureConverter(mask_id=4)`. What comes before the cache
placeholder, tokenising, is what `seqio_cache_tasks` keeps; masks are drawn
afresh each time. Registering reads and downloads nothing.
"""

from collections.abc import Callable, Iterator

import seqio
import tensorflow as tf

from metro_jax.data import seqio_preprocessors, seqio_vocabulary, sources
from metro_jax.data.text_files import TextFiles

SPLITS = ('train', 'validation')
# No validation split of their own: the first hundredth is held out.
_HELD_OUT = {'train': 'train[1%:]', 'validation': 'train[:1%]'}

# Name, TFDS name, splits, size of its text in GB (weights in mixtures).
TFDS_CORPORA = (
  ('metro_wikipedia', 'wikipedia/20230601.en:1.0.0', _HELD_OUT, 12),
  ('metro_bookcorpus', 'huggingface:bookcorpus/plain_text:1.0.0', _HELD_OUT, 4),
  ('metro_c4', 'c4/en:3.1.0', {s: s for s in SPLITS}, 800),
  (
    'metro_openwebtext',
    'huggingface:openwebtext/plain_text:1.0.0',
    _HELD_OUT,
    38,
  ),
  ('metro_ccnews', 'huggingface:cc_news/plain_text:1.0.0', _HELD_OUT, 2),
)
MIXTURES = {
  'metro_wikibook': ('metro_wikipedia', 'metro_bookcorpus'),
  # METRO-LM's "++" corpus as far as TFDS has it: STORIES cannot be had, and
  # this CC-News is a part of the paper's.
  'metro_160gb': (
    'metro_wikipedia',
    'metro_bookcorpus',
    'metro_openwebtext',
    'metro_ccnews',
  ),
}


def register(name: str, source: seqio.DataSource) -> None:
  """Adds a masked-language task to the registry.

  Args:
    name: what to call it; ours begin with 'metro_'.
    source: yields examples with a string 'text'.
  """
  vocabulary = seqio_vocabulary.TaskVocabulary()
  seqio.TaskRegistry.add(
    name,
    source=source,
    preprocessors=[
      seqio_preprocessors.text_only,
      _tokenize,
      seqio.CacheDatasetPlaceholder(),
      seqio_preprocessors.chunk,
      seqio_preprocessors.mask,
    ],
    output_features={
      feature: seqio.Feature(vocabulary, add_eos=False, required=False)
      for feature in ('inputs', 'targets')
    },
    metric_fns=[],
  )


def text_task(name: str, text_files: TextFiles) -> None:
  """Registers your own text under a name.

  Args:
    name: of the task.
    text_files: the corpus.
  """
  register(name, _streamed(lambda: text_files))


def _streamed(make: Callable[[], sources.Source]) -> seqio.DataSource:
  """A source that reads documents in Python when it is iterated."""

  def dataset(
    split: str, shuffle_files: bool = False, seed: int | None = None
  ) -> tf.data.Dataset:
    del shuffle_files, seed  # Text is read in order; SeqIO shuffles examples.

    def documents() -> Iterator[dict[str, bytes]]:
      for text in make().documents(split):
        yield {'text': text.encode('utf-8', 'replace')}

    return tf.data.Dataset.from_generator(
      documents, output_signature={'text': tf.TensorSpec([], tf.string)}
    )

  return seqio.FunctionDataSource(dataset, splits=SPLITS)


def _tokenize(
  dataset: tf.data.Dataset, output_features: dict[str, seqio.Feature]
) -> tf.data.Dataset:
  return seqio.preprocessors.tokenize(
    dataset, output_features, copy_pretokenized=False
  )


register(sources.EMBEDDED, _streamed(sources.Docstrings))
register(sources.FROM_ENVIRONMENT, _streamed(sources.text_of_environment))
for _name, _tfds_name, _splits, _ in TFDS_CORPORA:
  register(
    _name,
    # Without `read_only` a corpus that is not there would be downloaded.
    seqio.TfdsDataSource(_tfds_name, splits=_splits, read_only=True),
  )
for _name, _members in MIXTURES.items():
  _sizes = {name: size for name, _, _, size in TFDS_CORPORA}
  seqio.MixtureRegistry.add(_name, [(m, _sizes[m]) for m in _members])
