# SPDX-License-Identifier: Apache-2.0
"""The vocabulary as SeqIO's registry needs it: found when first used."""

import os

import seqio

from metro_jax.data import files, sources, vocabularies

DEFAULT_SIZE = 8192


class TaskVocabulary(seqio.SentencePieceVocabulary):
  """A vocabulary of this project inside SeqIO.

  Tasks are registered on import, long before anyone knows whether they are
  used, so the model file is looked for on first use: the path given, else
  METRO_VOCABULARY, else one of 8,192 pieces trained on the embedded corpus.
  """

  def __init__(self, path: str | None = None):
    """Remembers the path; reads nothing."""
    super().__init__('', extra_ids=0)
    self._given = path

  @property
  def path(self) -> str:
    """The model file in use."""
    given = self._given or os.environ.get('METRO_VOCABULARY')
    if given:
      return str(vocabularies.Vocabulary(given).path)
    root = files.data_dir()
    trained = sources.vocabulary_for(
      sources.Docstrings(root), None, DEFAULT_SIZE, root
    )
    return str(trained.path)

  def _model_context(self):
    if not self._model:
      self._sentencepiece_model_file = self.path
    return super()._model_context()

  @property
  def mask_id(self) -> int:
    """The id of [MASK], as `seqio.EncoderFeatureConverter` asks for it."""
    return vocabularies.MASK

  def __eq__(self, other: object) -> bool:
    return isinstance(other, TaskVocabulary) and self._given == other._given

  __hash__ = None
