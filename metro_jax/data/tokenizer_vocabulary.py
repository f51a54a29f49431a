# SPDX-License-Identifier: Apache-2.0
"""The vocabulary of a tokenizer.json, in this project's order.

BERT's and ELECTRA's WordPiece, for example. Everything here counts on [PAD],
[UNK], [CLS], [SEP] and [MASK] being ids 0 to 4, so those five move to the
front and the others keep their order. A converted model's tables are moved
alike.
"""

import functools
import hashlib
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from metro_jax.data import files, vocabularies
from metro_jax.errors import UserError

FILE = 'tokenizer.json'


class TokenizerVocabulary(vocabularies.Vocabulary):
  """`Vocabulary` for a file of the `tokenizers` library.

  Attributes:
    order: int [size]; the id in the file of each id here.
  """

  def __init__(self, path: str | os.PathLike):
    """Reads tokenizer.json, or that of a folder."""
    self.path = pathlib.Path(path).expanduser()
    if self.path.is_dir():
      self.path = self.path / FILE
    try:
      self._bytes = self.path.read_bytes()
    except OSError as error:
      raise UserError(
        f'vocabulary {self.path}: {error.strerror or error}'
      ) from error
    self.hash = hashlib.sha256(self._bytes).hexdigest()
    texts = self._tokenizer.get_vocab(with_added_tokens=True)
    self.size, self.extra_ids = max(texts.values()) + 1, 0
    missing = [s for s in vocabularies.SPECIAL_PIECES if s not in texts]
    if missing:
      raise UserError(
        f'vocabulary {self.path}: has no {missing[0]}, as BERT and ELECTRA'
        ' have; give a .model file (VOCABULARY)'
      )
    special = [texts[s] for s in vocabularies.SPECIAL_PIECES]
    rest = np.setdiff1d(np.arange(self.size), special)
    self.order = np.concatenate([np.array(special), rest])
    self._here = np.argsort(self.order)
    self._texts = {self._here[i]: text for text, i in texts.items()}

  def __getstate__(self) -> dict[str, Any]:
    state = self.__dict__.copy()
    state.pop('_tokenizer', None)
    return state

  def piece(self, id_: int) -> str:
    """The text of one piece, U+2581 before the first of a word."""
    text = self._texts.get(int(id_), '')
    if int(id_) < len(vocabularies.SPECIAL_PIECES):
      return text
    if text.startswith('##'):
      return text[2:]
    return vocabularies.SPACE + text

  def pieces(self, ids: Sequence[int]) -> list[str]:
    """The texts of pieces."""
    return [self.piece(i) for i in ids]

  @functools.cached_property
  def _control(self) -> np.ndarray:
    control = np.arange(self.size) < len(vocabularies.SPECIAL_PIECES)
    control[vocabularies.UNK] = False
    return control

  def encode(self, text: str) -> list[int]:
    """Piece ids of one text, without [CLS] and [SEP]."""
    return [id_ for id_, _, _ in self.located(text)]

  def encode_batch(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """See `Vocabulary`."""
    encoded = self._tokenizer.encode_batch(
      list(texts), add_special_tokens=False
    )
    lengths = np.array([len(e.ids) for e in encoded], np.int64)
    flat = np.fromiter(
      (i for e in encoded for i in e.ids), np.int64, int(lengths.sum())
    )
    return self._here[flat].astype(np.int32), lengths

  def located(self, text: str) -> list[tuple[int, int, int]]:
    """Ids with the characters that they stand for."""
    found = self._tokenizer.encode(text, add_special_tokens=False)
    return [
      (int(self._here[i]), start, end)
      for i, (start, end) in zip(found.ids, found.offsets, strict=True)
    ]

  def decode(self, ids: Sequence[int]) -> str:
    """Text of ids; padding is left out."""
    kept = [int(self.order[i]) for i in ids if i != vocabularies.PAD]
    return self._tokenizer.decode(kept, skip_special_tokens=False)

  def save(self, folder: str | os.PathLike) -> None:
    """Copies the file there."""
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / FILE
    if not target.exists() or target.read_bytes() != self._bytes:
      files.write_atomically(target, self._bytes)

  def describe(self) -> dict[str, Any]:
    """What a reader wants to know, as plain values."""
    return {'size': self.size, 'sha256': self.hash}

  space_id = -1  # A space is no piece.

  @functools.cached_property
  def _tokenizer(self) -> Any:
    try:
      from tokenizers import Tokenizer
    except ImportError as error:
      raise UserError(
        f'vocabulary {self.path}: needs tokenizers: pip install tokenizers'
      ) from error
    try:
      tokenizer = Tokenizer.from_str(self._bytes.decode('utf-8'))
    except Exception as error:  # The library raises no narrower class.
      raise UserError(
        f'vocabulary {self.path}: is no tokenizer ({error})'
      ) from error
    # A special token typed in a text is text.
    tokenizer.encode_special_tokens = True
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def open_vocabulary(path: str | os.PathLike) -> vocabularies.Vocabulary:
  """The vocabulary of a `.model` file, a tokenizer.json, or a folder of one.

  A folder that holds both is read by its `.model` file.
  """
  given = pathlib.Path(path).expanduser()
  has_model = (given / 'vocabulary.model').is_file()
  if given.suffix == '.json' or (not has_model and (given / FILE).is_file()):
    return TokenizerVocabulary(given)
  return vocabularies.Vocabulary(given)
