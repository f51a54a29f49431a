# SPDX-License-Identifier: Apache-2.0
"""A SentencePiece BPE vocabulary as the `tokenizers` library has it.

The ids of any text are the same, but for special tokens: `tokenizers` takes
[MASK] in a text for the special token, and training data never do.
"""

import json
import pathlib
from typing import Any

from metro_jax.data import Vocabulary, protobuf
from metro_jax.data.tokenizer_vocabulary import TokenizerVocabulary
from metro_jax.data.vocabularies import SPACE, SPECIAL_PIECES

_FILES = ('tokenizer.json', 'tokenizer_config.json')


def write(
  folder: pathlib.Path, vocabulary: Vocabulary, longest: int | None
) -> None:
  """Writes a vocabulary, tokenizer.json and tokenizer_config.json.

  Args:
    folder: of the model.
    vocabulary: a BPE vocabulary, or one that is a tokenizer.json already.
    longest: tokens that the model can take, specials included.
  """
  pad, unk, cls, sep, mask = SPECIAL_PIECES
  vocabulary.save(folder)
  if not isinstance(vocabulary, TokenizerVocabulary):
    build(vocabulary.path).save(str(folder / _FILES[0]))
  config: dict[str, Any] = {
    'tokenizer_class': 'PreTrainedTokenizerFast',
    'pad_token': pad,
    'unk_token': unk,
    'cls_token': cls,
    'sep_token': sep,
    'mask_token': mask,
    'clean_up_tokenization_spaces': False,
    'model_input_names': ['input_ids', 'attention_mask'],
  }
  if longest is not None:
    config['model_max_length'] = longest
  (folder / _FILES[1]).write_text(json.dumps(config, indent=2) + '\n')


def build(path: pathlib.Path) -> Any:
  """A `tokenizers.Tokenizer` with the ids of a `.model` file."""
  from tokenizers import AddedToken, Tokenizer, decoders, models, processors

  model = protobuf.read_model(path.read_bytes())
  pieces = [p.text for p in model.pieces]
  bytes_ = any(p.type == protobuf.BYTE for p in model.pieces)
  tokenizer = Tokenizer(
    models.BPE(
      vocab={text: i for i, text in enumerate(pieces)},
      merges=_merges(model),
      unk_token=SPECIAL_PIECES[1],
      fuse_unk=not bytes_,
      byte_fallback=bytes_,
    )
  )
  tokenizer.normalizer = _normalizer(model)
  tokenizer.pre_tokenizer = _pre_tokenizer(model)
  tokenizer.decoder = decoders.Sequence(
    [decoders.ByteFallback(), decoders.Metaspace()]
  )
  cls, sep = SPECIAL_PIECES[2:4]
  tokenizer.post_processor = processors.TemplateProcessing(
    single=f'{cls} $A {sep}',
    pair=f'{cls} $A {sep} $B {sep}',
    special_tokens=[(cls, 2), (sep, 3)],
  )
  special = (protobuf.CONTROL, protobuf.UNKNOWN)
  tokenizer.add_special_tokens(
    [
      AddedToken(p.text, special=True, normalized=False)
      for p in model.pieces
      if p.type in special
    ]
  )
  return tokenizer


def _merges(model: protobuf.Model) -> list[tuple[str, str]]:
  """Pairs to merge, the first first.

  SentencePiece scores what a merge makes; `tokenizers` lists what it is made
  of, so each piece has all its ways, one after another.
  """
  normal = {p.text: p.score for p in model.pieces if p.type == protobuf.NORMAL}
  ranked = sorted(normal, key=lambda text: -normal[text])
  return [
    (text[:i], text[i:])
    for text in ranked
    for i in range(1, len(text))
    if text[:i] in normal and text[i:] in normal
  ]


def _normalizer(model: protobuf.Model) -> Any:
  from tokenizers import Regex, normalizers

  steps = []
  if model.charsmap:
    steps.append(normalizers.Precompiled(model.charsmap))
  steps += [
    normalizers.Strip(),
    normalizers.Replace(Regex(' {2,}'), ' '),
  ]
  return normalizers.Sequence(steps)


def _pre_tokenizer(model: protobuf.Model) -> Any:
  from tokenizers import pre_tokenizers

  crossing = any(
    SPACE in p.text[1:] for p in model.pieces if p.type == protobuf.NORMAL
  )
  return pre_tokenizers.Metaspace(
    replacement=SPACE, prepend_scheme='always', split=not crossing
  )
