# SPDX-License-Identifier: Apache-2.0
"""Training a cased SentencePiece BPE vocabulary from word counts.

BPE never merges across a space, so a corpus of any size is to it a table of
words and how often each occurs. The words are counted here, streaming, in
memory bounded by the number of different words; SentencePiece then reads the
table. The result depends on nothing but the text and the arguments.
"""

import collections
import io
import json
import os
import pathlib
import re
import tempfile
from collections.abc import Iterable

from metro_jax.data import files, protobuf, vocabularies, word_table
from metro_jax.errors import UserError

VERSION = 1
MIN_SIZE = 128  # Specials and printable ASCII.
MAX_SIZE = 131072
_LONGEST_WORD = 256
# Always in the alphabet, however rare: a coverage by count would leave out
# digits and punctuation of a small corpus.
_ASCII = ''.join(map(chr, range(33, 127)))
_MOST_WORDS = 1 << 23


def train(
  documents: Iterable[str],
  path: str | os.PathLike,
  size: int = 32768,
  extra_ids: int = 0,
  character_coverage: float = 0.9995,
  byte_fallback: bool = False,
) -> vocabularies.Vocabulary:
  """Trains a vocabulary and writes it.

  Args:
    documents: texts, read once.
    path: the `.model` file to write; `.json` beside it says what it is.
    size: number of ids in all, specials and sentinels included.
    extra_ids: how many T5 sentinels to keep at the end.
    character_coverage: fraction of the characters (by count) that get a piece;
      the rare remainder becomes [UNK]. Printable ASCII always has pieces.
    byte_fallback: spell rare characters as 256 byte pieces instead of [UNK].

  Returns:
    The vocabulary.
  """
  if not MIN_SIZE <= size <= MAX_SIZE:
    raise UserError(
      f'vocabulary size {size}: give a size (VOCAB_SIZE, --size) from'
      f' {MIN_SIZE} to {MAX_SIZE}'
    )
  if not 0 <= extra_ids <= size - MIN_SIZE:
    raise UserError(
      f'extra_ids {extra_ids}: give a number from 0 to {size - MIN_SIZE}'
    )
  counts = count_words(documents)
  if not counts:
    raise UserError('vocabulary: the text to train it on has no words')
  model = _train_bpe(
    counts, size - extra_ids, character_coverage, byte_fallback
  )
  for index in reversed(range(extra_ids)):
    model += protobuf.encode_piece(f'<extra_id_{index}>', 0.0, protobuf.CONTROL)
  path = pathlib.Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  files.write_atomically(path, model)
  vocabulary = vocabularies.Vocabulary(path)
  about = vocabulary.describe() | {
    'words': sum(counts.values()),
    'distinct_words': len(counts),
    'character_coverage': character_coverage,
    'byte_fallback': byte_fallback,
  }
  text = json.dumps(about, indent=2) + '\n'
  files.write_atomically(path.with_suffix('.json'), text.encode())
  return vocabulary


def count_words(documents: Iterable[str]) -> collections.Counter[str]:
  """How often each word occurs; the rarest are let go beyond 8M words."""
  counts: collections.Counter[str] = collections.Counter()
  floor = 1
  for text in documents:
    counts.update(word_table.split_words(text))
    if len(counts) > _MOST_WORDS:
      floor += 1
      counts = collections.Counter(
        {word: n for word, n in counts.items() if n >= floor}
      )
  return counts


def _train_bpe(
  counts: collections.Counter[str],
  size: int,
  character_coverage: float,
  byte_fallback: bool,
) -> bytes:
  import sentencepiece

  ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
  model = io.BytesIO()
  with tempfile.TemporaryDirectory() as folder:
    table = pathlib.Path(folder) / 'words.tsv'
    with table.open('w', encoding='utf-8', errors='replace') as file:
      for word, count in ordered:
        if len(word) <= _LONGEST_WORD and '\0' not in word:
          file.write(f'{word}\t{count}\n')
    try:
      sentencepiece.SentencePieceTrainer.train(
        input=str(table),
        input_format='tsv',
        model_writer=model,
        model_type='bpe',
        vocab_size=size,
        pad_id=vocabularies.PAD,
        unk_id=vocabularies.UNK,
        bos_id=vocabularies.CLS,
        eos_id=vocabularies.SEP,
        pad_piece=vocabularies.SPECIAL_PIECES[vocabularies.PAD],
        unk_piece=vocabularies.SPECIAL_PIECES[vocabularies.UNK],
        bos_piece=vocabularies.SPECIAL_PIECES[vocabularies.CLS],
        eos_piece=vocabularies.SPECIAL_PIECES[vocabularies.SEP],
        control_symbols=[vocabularies.SPECIAL_PIECES[vocabularies.MASK]],
        character_coverage=character_coverage,
        required_chars=_ASCII,
        byte_fallback=byte_fallback,
        num_threads=1,  # Written into the model, so the same everywhere.
        minloglevel=2,
      )
    except (RuntimeError, OSError) as error:
      raise _explained(error, size) from error
  return protobuf.without_inputs(model.getvalue())


def _explained(error: Exception, size: int) -> UserError:
  message = str(error)
  most = re.search(r'value <= (\d+)', message)
  if most:
    return UserError(
      f'vocabulary size {size} is more than this text can fill: use'
      f' VOCAB_SIZE (--size) at most {most.group(1)} or give more text'
    )
  least = re.search(r'(\d+) vs (\d+)', message)
  if least:
    return UserError(
      f'vocabulary size {size} is too small for the characters of this text:'
      f' use VOCAB_SIZE (--size) of at least {least.group(2)}'
    )
  return UserError(f'SentencePiece could not train the vocabulary: {message}')
