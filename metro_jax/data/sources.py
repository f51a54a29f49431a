# SPDX-License-Identifier: Apache-2.0
"""Where documents come from: text files, the embedded corpus, the registry."""

import dataclasses
import importlib
import os
import pathlib
from collections.abc import Iterator
from typing import Protocol

from metro_jax.data import (
  files,
  hashing,
  text_files,
  token_cache,
  tokenizer_vocabulary,
  vocabularies,
)
from metro_jax.errors import UserError

EMBEDDED = 'metro_docstrings'
FROM_ENVIRONMENT = 'metro_text'
# Imported by name, and only when a name is not known yet: the registry is the
# user's as much as ours.
REGISTERING_MODULES = ('tasks',)


class Source(Protocol):
  """A corpus.

  Attributes:
    name: what its caches are called.
    validation_fraction: share of the documents held out by hash; None if the
      corpus has splits of its own.
    invalid: how many invalid UTF-8 sequences the last reading replaced.
  """

  name: str
  validation_fraction: float | None
  invalid: int

  def fingerprint(self) -> str:
    """Changes when the text may have changed."""

  def documents(self, split: str | None = None) -> Iterator[str]:
    """Streams the documents of a split ('train', 'validation') or all."""


@dataclasses.dataclass(frozen=True)
class Docstrings:
  """The embedded corpus: docstrings of the installed Python packages."""

  data_dir: str | os.PathLike | None = None
  validation_fraction: float = 0.02
  name: str = 'docstrings'
  invalid: int = 0

  def fingerprint(self) -> str:
    """Changes when another Python or other packages are installed."""
    from metro_jax.data import docstring_corpus

    return docstring_corpus.fingerprint()

  def documents(self, split: str | None = None) -> Iterator[str]:
    """Streams the documents, building the corpus on first use."""
    from metro_jax.data import docstring_corpus

    for text in docstring_corpus.documents(files.data_dir(self.data_dir)):
      held_out = hashing.text_hash(text) < self.validation_fraction * 2**64
      if split in (None, 'validation' if held_out else 'train'):
        yield text


@dataclasses.dataclass(frozen=True)
class Registered:
  """A SeqIO task or mixture by name; a mixture is its tasks end to end.

  Attributes:
    task: name in the SeqIO registry.
    modules: modules whose import registers it.
  """

  task: str
  modules: tuple[str, ...] = REGISTERING_MODULES
  validation_fraction: None = None
  invalid: int = 0

  @property
  def name(self) -> str:
    """What the caches of this corpus are called."""
    return self.task

  def fingerprint(self) -> str:
    """By name: a registered corpus is taken not to change under its name."""
    return hashing.short_hash(self.task)

  def documents(self, split: str | None = None) -> Iterator[str]:
    """Streams the text that the tasks would tokenise."""
    os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '2')
    try:
      from metro_jax.data import seqio_text
    except ImportError as error:
      raise UserError(
        f'corpus {self.task}: needs seqio and tensorflow ({error}); install'
        ' them, or prepare the token cache elsewhere'
      ) from error
    for module in self.modules:
      importlib.import_module(module)
    for text in seqio_text.documents(self.task, split or 'train'):
      yield from text_files.bounded(text)


def resolve(
  source: 'str | Source', data_dir: str | os.PathLike | None = None
) -> Source:
  """A source from its registry name, or the source itself."""
  if isinstance(source, str):
    if source == EMBEDDED:
      return Docstrings(data_dir)
    if source == FROM_ENVIRONMENT:
      return text_of_environment()
    return Registered(source)
  if not callable(getattr(source, 'documents', None)):
    raise UserError(
      f'source {source!r}: give the name of a registered task (SOURCE) or'
      ' data.TextFiles (TEXT_FILES)'
    )
  return source


def text_of_environment() -> text_files.TextFiles:
  """The text that METRO_TEXT_FILES and METRO_TEXT_DOCUMENT name."""
  patterns = os.environ.get('METRO_TEXT_FILES', '')
  if not patterns:
    raise UserError(
      f'{FROM_ENVIRONMENT}: set METRO_TEXT_FILES to a glob such as'
      " '/data/**/*.txt'"
    )
  return text_files.TextFiles(
    patterns.split(os.pathsep),
    document=os.environ.get('METRO_TEXT_DOCUMENT', 'file'),
  )


def vocabulary_for(
  source: Source,
  vocabulary: 'str | os.PathLike | vocabularies.Vocabulary | None',
  size: int,
  data_dir: pathlib.Path,
  extra_ids: int = 0,
) -> vocabularies.Vocabulary:
  """The given vocabulary, or one trained on the source's train split, kept."""
  if isinstance(vocabulary, vocabularies.Vocabulary):
    return vocabulary
  if vocabulary:
    return tokenizer_vocabulary.open_vocabulary(vocabulary)
  from metro_jax.data import vocabulary_training

  key = hashing.short_hash(
    vocabulary_training.VERSION,
    source.fingerprint(),
    size,
    source.validation_fraction,
    *([extra_ids] if extra_ids else []),
  )
  folder = data_dir / 'vocabularies' / f'{source.name}-{size}-{key}'
  path = folder / 'vocabulary.model'
  if not path.exists():
    with files.lock(folder):
      if not path.exists():
        files.say(f'training a vocabulary of {size:,} on {source.name}')
        vocabulary_training.train(
          source.documents('train'), path, size, extra_ids
        )
  return vocabularies.Vocabulary(path)


def cache_path(
  source: Source,
  split: str,
  vocabulary: vocabularies.Vocabulary,
  data_dir: pathlib.Path,
) -> pathlib.Path:
  """Where the token cache of a source lies."""
  own = source.validation_fraction is None
  name = f'{source.name}-{split}' if own else source.name
  key = hashing.short_hash(
    token_cache.VERSION, source.fingerprint(), vocabulary.hash
  )
  return data_dir / 'tokens' / f'{name}-{key}'


def cache_for(
  source: Source,
  split: str,
  vocabulary: vocabularies.Vocabulary,
  data_dir: pathlib.Path,
) -> token_cache.TokenCache:
  """Opens or builds a source's token cache.

  A corpus split by hash has one cache for all its splits; one with splits of
  its own has a cache for each.
  """
  own = source.validation_fraction is None
  path = cache_path(source, split, vocabulary, data_dir)

  def make() -> token_cache.TokenCache:
    return token_cache.build(
      path,
      source.documents(split if own else None),
      vocabulary,
      source.name,
      source.fingerprint(),
      lambda: source.invalid,
    )

  return token_cache.open_or_build(path, make)
