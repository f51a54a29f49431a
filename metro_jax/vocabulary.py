# SPDX-License-Identifier: Apache-2.0
"""Trains a cased SentencePiece BPE vocabulary.

  python -m metro_jax.vocabulary --output=my.model --size=32768 \
    --input '/data/**/*.txt' --document=blank_line
  python -m metro_jax.vocabulary --output=wikibook.model --size=128000 \
    --task=metro_wikibook

[PAD] [UNK] [CLS] [SEP] [MASK] have ids 0 to 4; T5 sentinels, when asked for,
are the last ids. Special tokens typed in text are not special.
"""

import argparse
import pathlib
import time

from metro_jax.data import command_line, vocabulary_training
from metro_jax.errors import UserError


def main(argv: list[str]) -> None:
  """Trains, writes and describes a vocabulary."""
  parser = argparse.ArgumentParser(
    prog='python -m metro_jax.vocabulary',
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
    allow_abbrev=False,
  )
  parser.add_argument(
    '--output',
    required=True,
    metavar='FILE',
    help='the .model file to write; a .json beside it says what it is',
  )
  parser.add_argument(
    '--size',
    type=int,
    default=32768,
    help='ids in all, specials and sentinels included, up to 131072'
    ' (default: 32768)',
  )
  parser.add_argument(
    '--extra_ids',
    type=int,
    default=0,
    help='T5 sentinels at the end (default: 0)',
  )
  parser.add_argument(
    '--character_coverage',
    type=float,
    default=0.9995,
    help='fraction of the characters that get a piece (default: 0.9995)',
  )
  parser.add_argument(
    '--byte_fallback',
    action='store_true',
    help='spell other characters as bytes instead of [UNK]',
  )
  parser.add_argument(
    '--force', action='store_true', help='replace an existing file'
  )
  command_line.add_source_flags(parser)
  flags = parser.parse_args(argv)
  output = pathlib.Path(flags.output).expanduser()
  if output.suffix != '.model':
    raise UserError(f'--output={output}: give a file name ending in .model')
  if output.exists() and not flags.force:
    raise UserError(f'--output={output}: exists; --force replaces it')
  source = command_line.source_from(flags)
  start = time.monotonic()
  vocabulary = vocabulary_training.train(
    source.documents('train'),
    output,
    flags.size,
    flags.extra_ids,
    flags.character_coverage,
    flags.byte_fallback,
  )
  if source.invalid:
    print(f'invalid UTF-8 sequences replaced: {source.invalid:,}')
  print(
    f'{vocabulary.path}: {vocabulary.size:,} ids, of them'
    f' {vocabulary.extra_ids} sentinels, sha256 {vocabulary.hash[:12]},'
    f' {time.monotonic() - start:.1f} s'
  )


if __name__ == '__main__':
  command_line.run(main)
