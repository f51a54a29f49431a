# SPDX-License-Identifier: Apache-2.0
"""Just enough of the protobuf wire format to read a SentencePiece model.

A machine that trains from a token cache need not have sentencepiece, and
Python protobuf's releases disagree about generated code; a model file is a
list of (piece, score, type) and a normaliser's name, which is easy to read.
"""

import struct
from collections.abc import Iterator
from typing import NamedTuple

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6


_TRAINER_SPEC = 2


class Piece(NamedTuple):
  """One entry of a vocabulary."""

  text: str
  score: float
  type: int


class Model(NamedTuple):
  """What is read from a model file."""

  pieces: list[Piece]
  normalizer: str
  whitespace_as_suffix: bool
  charsmap: bytes = b''  # The normaliser's compiled table of replacements.


def read_model(data: bytes) -> Model:
  """Reads a serialised `sentencepiece.ModelProto`.

  Raises:
    ValueError: the bytes are not such a message.
  """
  pieces, normalizer, suffix, charsmap = [], '', False, b''
  try:
    for field, value in _fields(data):
      if field == 1:
        entry = dict(_fields(value))
        score = struct.unpack('<f', entry.get(2, b'\0\0\0\0'))[0]
        text = entry.get(1, b'').decode('utf-8')
        pieces.append(Piece(text, score, entry.get(3, NORMAL)))
      elif field == _TRAINER_SPEC:
        suffix = bool(dict(_fields(value)).get(24, 0))
      elif field == 3:
        entry = dict(_fields(value))
        normalizer = entry.get(1, b'').decode('utf-8')
        charsmap = entry.get(2, b'')
  except (IndexError, struct.error, TypeError, AttributeError) as error:
    raise ValueError('not a SentencePiece model') from error
  return Model(pieces, normalizer, suffix, charsmap)


def encode_piece(text: str, score: float, type_: int) -> bytes:
  """A serialised model with this one piece.

  Serialised messages concatenate: added to the end of a model file, this adds
  the piece to the end of its vocabulary.
  """
  name = text.encode('utf-8')
  body = b'\x0a' + _varint(len(name)) + name
  body += b'\x15' + struct.pack('<f', score) + b'\x18' + _varint(type_)
  return b'\x0a' + _varint(len(body)) + body


def without_inputs(data: bytes) -> bytes:
  """The same model, with no record of which files it was trained from."""
  out = []
  for field, value, raw in _raw_fields(data):
    if field == _TRAINER_SPEC:
      kept = b''.join(r for f, _, r in _raw_fields(value) if f != 1)
      raw = b'\x12' + _varint(len(kept)) + kept
    out.append(raw)
  return b''.join(out)


def _fields(data: bytes) -> Iterator[tuple[int, bytes | int]]:
  for field, value, _ in _raw_fields(data):
    yield field, value


def _raw_fields(data: bytes) -> Iterator[tuple[int, bytes | int, bytes]]:
  at = 0
  while at < len(data):
    start = at
    tag, at = _read_varint(data, at)
    kind = tag & 7
    if kind == 0:
      value, at = _read_varint(data, at)
    elif kind in (1, 2, 5):
      size = {1: 8, 5: 4}.get(kind)
      if size is None:
        size, at = _read_varint(data, at)
      value, at = data[at : at + size], at + size
      if at > len(data):
        raise ValueError('not a SentencePiece model: it is cut short')
    else:
      raise ValueError('not a SentencePiece model')
    yield tag >> 3, value, data[start:at]


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
  value = shift = 0
  while True:
    byte = data[at]
    value |= (byte & 0x7F) << shift
    at += 1
    if byte < 0x80:
      return value, at
    shift += 7


def _varint(value: int) -> bytes:
  out = bytearray()
  while value > 0x7F:
    out.append(value & 0x7F | 0x80)
    value >>= 7
  out.append(value)
  return bytes(out)
