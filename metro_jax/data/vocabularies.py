# SPDX-License-Identifier: Apache-2.0
"""SentencePiece vocabularies with the ids this project fixes.

[PAD] 0, [UNK] 1, [CLS] 2, [SEP] 3, [MASK] 4; T5 sentinels, when asked for, are
the last ids, <extra_id_0> the very last. All but [UNK] are control symbols:
text that spells them out is text. A vocabulary loads without sentencepiece
(only tokenising needs it), and never needs TensorFlow.
"""

import functools
import hashlib
import json
import os
import pathlib
import secrets
import shutil
from collections.abc import Sequence
from typing import Any

import numpy as np

from metro_jax.data import protobuf, word_table
from metro_jax.errors import UserError

PAD, UNK, CLS, SEP, MASK = range(5)
SPECIAL_PIECES = ('[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]')
SPACE = '\u2581'


class Vocabulary:
  """A trained vocabulary, read from its `.model` file.

  Attributes:
    path: where the model file is.
    hash: sha256 of the model file, hexadecimal.
    size: number of ids, specials and sentinels included.
    extra_ids: how many T5 sentinels stand at the end.
  """

  pad_id, unk_id, cls_id, sep_id, mask_id = PAD, UNK, CLS, SEP, MASK

  def __init__(self, path: str | os.PathLike):
    """Reads the vocabulary.

    Args:
      path: a `.model` file made by `python -m metro_jax.vocabulary`, or the
        folder that holds `vocabulary.model`.
    """
    self.path = pathlib.Path(path).expanduser()
    if self.path.is_dir():
      self.path = self.path / 'vocabulary.model'
    try:
      self._bytes = self.path.read_bytes()
    except OSError as error:
      raise UserError(
        f'vocabulary {self.path}: {error.strerror or error}; give the path of'
        ' a .model file (VOCABULARY), or none to have one trained'
      ) from error
    try:
      self._model = protobuf.read_model(self._bytes)
    except ValueError as error:
      raise UserError(f'vocabulary {self.path}: {error}') from error
    self._check()
    self.hash = hashlib.sha256(self._bytes).hexdigest()
    self.size = len(self._model.pieces)
    tail = [p.text for p in self._model.pieces[::-1]]
    self.extra_ids = 0
    while tail[self.extra_ids] == f'<extra_id_{self.extra_ids}>':
      self.extra_ids += 1

  def _check(self) -> None:
    pieces = self._model.pieces
    wrong = [
      f'{name} should have id {i}'
      for i, name in enumerate(SPECIAL_PIECES)
      if i >= len(pieces)
      or pieces[i].text != name
      or pieces[i].type == protobuf.NORMAL
    ]
    if wrong:
      raise UserError(
        f'vocabulary {self.path}: {wrong[0]}; make one with'
        ' python -m metro_jax.vocabulary'
      )

  def __getstate__(self) -> dict[str, Any]:
    state = self.__dict__.copy()
    state.pop('_processor', None)
    state.pop('_words', None)
    return state

  @property
  def vocab_size(self) -> int:
    """The same as `size`, by seqio's name."""
    return self.size

  def sentinel_id(self, index: int) -> int:
    """The id of <extra_id_INDEX>, counted down from the last id."""
    if not 0 <= index < self.extra_ids:
      raise UserError(
        f'vocabulary {self.path}: it has {self.extra_ids} sentinels and'
        f' number {index} was asked for; train one with a larger --extra_ids'
      )
    return self.size - 1 - index

  def piece(self, id_: int) -> str:
    """The text of one piece, U+2581 standing for a space."""
    return self._model.pieces[int(id_)].text

  def pieces(self, ids: Sequence[int]) -> list[str]:
    """The texts of pieces."""
    return [self._model.pieces[int(i)].text for i in ids]

  def is_special(self, ids: np.ndarray) -> np.ndarray:
    """True where an id is a control symbol, [UNK] not counted."""
    return self._control[np.asarray(ids)]

  @functools.cached_property
  def _control(self) -> np.ndarray:
    types = [p.type for p in self._model.pieces]
    return np.array(types) == protobuf.CONTROL

  def encode(self, text: str) -> list[int]:
    """Piece ids of one text, without [CLS] and [SEP]."""
    return self._processor.encode(_encodable(text))

  def encode_batch(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Piece ids of many texts at once: the fast way.

    Args:
      texts: the texts.

    Returns:
      int32 array [tokens], all ids one after another; int64 array [texts] of
      how many belong to each text.
    """
    if self._words is not None:
      return self._words.encode(texts)
    encoded = self._processor.encode([_encodable(t) for t in texts])
    lengths = np.array([len(e) for e in encoded], np.int64)
    flat = np.fromiter(
      (i for e in encoded for i in e), np.int32, int(lengths.sum())
    )
    return flat, lengths

  def row(self, text: str, length: int) -> np.ndarray:
    """[CLS] pieces [SEP], cut to `length`, padded: int32 array [length]."""
    ids = [CLS, *self.encode(text)[: length - 2], SEP]
    return np.array(ids + [PAD] * (length - len(ids)), np.int32)

  def decode(self, ids: Sequence[int]) -> str:
    """Text of ids; control symbols are written out, padding is left out.

    Works without sentencepiece. Spaces before the first piece are dropped.
    """
    out = []
    for id_ in ids:
      piece = self._model.pieces[int(id_)]
      if id_ == PAD:
        continue
      if piece.type == protobuf.BYTE:
        out.append(int(piece.text[3:-1], 16).to_bytes(1, 'big'))
      elif piece.type in (protobuf.CONTROL, protobuf.UNKNOWN):
        out.append(f' {piece.text} '.encode())
      else:
        out.append(piece.text.replace(SPACE, ' ').encode())
    text = b''.join(out).decode('utf-8', 'replace')
    return ' '.join(text.split())

  def save(self, folder: str | os.PathLike) -> None:
    """Copies the model there, with a JSON of what it is."""
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / 'vocabulary.model'
    if not target.exists() or target.read_bytes() != self._bytes:
      unique = f'{os.getpid()}-{secrets.token_hex(4)}'
      scratch = folder / f'.vocabulary.model.{unique}'
      scratch.write_bytes(self._bytes)
      scratch.replace(target)
    about = self.path.with_suffix('.json')
    if about.exists() and not (folder / 'vocabulary.json').exists():
      shutil.copyfile(about, folder / 'vocabulary.json')
    elif not (folder / 'vocabulary.json').exists():
      (folder / 'vocabulary.json').write_text(
        json.dumps(self.describe(), indent=2) + '\n'
      )

  def describe(self) -> dict[str, Any]:
    """What a reader of a MODEL_DIR wants to know, as plain values."""
    return {
      'size': self.size,
      'extra_ids': self.extra_ids,
      'sha256': self.hash,
      'normalizer': self._model.normalizer,
      'specials': dict(zip(SPECIAL_PIECES, range(5), strict=True)),
    }

  def located(self, text: str) -> list[tuple[int, int, int]]:
    """Ids of a text with first and last character (one past it) of each."""
    try:
      found = self._processor.encode(text, return_type='offset_mapping')
    except TypeError:  # sentencepiece before 0.2.2 has another name for it.
      pieces = self._processor.encode_as_immutable_proto(text).pieces
      return [(p.id, p.begin, p.end) for p in pieces]
    pairs = zip(found['ids'], found['offsets'], strict=True)
    return [(id_, *offsets) for id_, offsets in pairs]

  @functools.cached_property
  def space_id(self) -> int:
    """The id of the piece that is a space only; -1 if there is none."""
    texts = [p.text for p in self._model.pieces]
    return texts.index(SPACE) if SPACE in texts else -1

  @functools.cached_property
  def _processor(self) -> Any:
    try:
      import sentencepiece
    except ImportError as error:
      raise UserError(
        'tokenising text needs sentencepiece: pip install sentencepiece'
      ) from error
    return sentencepiece.SentencePieceProcessor(model_proto=self._bytes)

  @functools.cached_property
  def _words(self) -> word_table.WordTable | None:
    """A memo of words, where the model treats each word by itself."""
    crossing = any(
      SPACE in p.text[1:] or p.type == protobuf.USER_DEFINED
      for p in self._model.pieces
    )
    if (
      crossing
      or self._model.normalizer != 'nmt_nfkc'
      or self._model.whitespace_as_suffix
      or not any(p.text == SPACE for p in self._model.pieces)
    ):
      return None
    return word_table.WordTable(
      lambda words: self._processor.encode([_encodable(w) for w in words])
    )


def _encodable(text: str) -> str:
  """The text with lone surrogates (from JSON escapes) replaced."""
  try:
    text.encode('utf-8')
  except UnicodeEncodeError:
    return text.encode('utf-8', 'replace').decode('utf-8')
  return text
