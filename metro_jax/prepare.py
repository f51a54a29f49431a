# SPDX-License-Identifier: Apache-2.0
"""Makes vocabulary and token cache ahead of training.

  python -m metro_jax.prepare
  python -m metro_jax.prepare --task=metro_wikibook --vocabulary=my.model
  python -m metro_jax.prepare --input '/data/*.jsonl.gz' --vocabulary_size=32768

Training does the same on first use; this does it where there is no
accelerator to keep waiting. What is there already is not made again.
"""

import argparse

from metro_jax.data import command_line, files, rows, sources
from metro_jax.data.token_cache import TokenCache


def main(argv: list[str]) -> None:
  """Builds what is missing and prints a table."""
  parser = argparse.ArgumentParser(
    prog='python -m metro_jax.prepare',
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
    allow_abbrev=False,
  )
  parser.add_argument(
    '--vocabulary',
    metavar='FILE',
    help='a .model file; without it one is trained and kept',
  )
  parser.add_argument(
    '--vocabulary_size',
    type=int,
    default=8192,
    help='ids of a vocabulary trained here (default: 8192)',
  )
  parser.add_argument(
    '--splits',
    nargs='+',
    default=['train', 'validation'],
    choices=['train', 'validation'],
    help='default: both',
  )
  parser.add_argument(
    '--length',
    type=int,
    nargs='*',
    default=[],
    help='also index rows of these lengths',
  )
  parser.add_argument(
    '--packing', action='store_true', help='index packed rows'
  )
  parser.add_argument(
    '--verify', action='store_true', help='read every checksum again'
  )
  command_line.add_source_flags(parser)
  flags = parser.parse_args(argv)
  source = command_line.source_from(flags)
  root = files.data_dir(flags.data_dir)
  vocabulary = sources.vocabulary_for(
    source, flags.vocabulary, flags.vocabulary_size, root
  )
  print(f'vocabulary      {vocabulary.size:,} ids  {vocabulary.path}')
  shown = set()
  for split in flags.splits:
    cache = sources.cache_for(source, split, vocabulary, root)
    if flags.verify:
      cache.verify()
    if cache.path not in shown:
      shown.add(cache.path)
      print(_table(cache))
    fraction = source.validation_fraction
    for length in flags.length:
      within = split if fraction is not None else 'all'
      made = rows.load(cache, within, fraction or 0.0, length, flags.packing)
      kind = 'packed rows' if flags.packing else 'rows'
      print(f'{split}: {made.count:,} {kind} of {length} tokens')


def _table(cache: TokenCache) -> str:
  about = cache.describe()
  lines = {
    'corpus': about['source'],
    'documents': f'{about["documents"]:,}',
    'characters': f'{about["characters"]:,}',
    'tokens': f'{about["tokens"]:,}',
    'tokens/s': f'{about["tokens_per_second"]:,.0f}',
    'invalid UTF-8': f'{about["invalid_utf8"]:,}',
    'size': f'{about["bytes"] / 1e6:,.1f} MB',
    'token cache': about['path'],
  }
  return '\n'.join(f'{name:<16}{value}' for name, value in lines.items())


if __name__ == '__main__':
  command_line.run(main)
