# SPDX-License-Identifier: Apache-2.0
"""What the data commands share: how text is named, and one-line errors."""

import argparse
import os
import sys
from collections.abc import Callable

from metro_jax.data import sources, text_files
from metro_jax.errors import UserError


def add_source_flags(parser: argparse.ArgumentParser) -> None:
  """Adds --task, --input and how the input is parted into documents."""
  group = parser.add_argument_group('which text')
  group.add_argument(
    '--task',
    help='a registered task or mixture, such as metro_docstrings (the embedded'
    ' corpus, the default when there is no --input) or metro_wikibook',
  )
  group.add_argument(
    '--input',
    nargs='+',
    metavar='GLOB',
    default=[],
    help="your own text: .txt, .jsonl and their .gz, such as '/data/**/*.txt'",
  )
  group.add_argument(
    '--document',
    default='file',
    metavar='UNIT',
    help='what one document of --input is: file, blank_line, line or json'
    ' (default: file; .jsonl files are always JSON lines)',
  )
  group.add_argument(
    '--json_key',
    default='text',
    metavar='KEY',
    help='field of a JSON line that holds the text (default: text)',
  )
  group.add_argument(
    '--invalid_utf8',
    default='replace',
    metavar='HOW',
    help='replace (and count) invalid bytes, or stop with an error'
    ' (default: replace)',
  )
  group.add_argument(
    '--validation_fraction',
    type=float,
    default=0.01,
    metavar='F',
    help='share of the --input documents held out (default: 0.01)',
  )
  group.add_argument(
    '--module_import',
    nargs='*',
    metavar='MODULE',
    default=list(sources.REGISTERING_MODULES),
    help='modules that register your own tasks (default: tasks)',
  )
  group.add_argument(
    '--data_dir',
    metavar='DIR',
    help='where caches go (default: $METRO_DATA_DIR or ~/.cache/metro_jax)',
  )
  group.add_argument(
    '--tfds_data_dir',
    metavar='DIR',
    help='where TFDS corpora were prepared (default: $TFDS_DATA_DIR)',
  )


def source_from(flags: argparse.Namespace) -> sources.Source:
  """The corpus that the flags name."""
  if flags.tfds_data_dir:
    os.environ['TFDS_DATA_DIR'] = flags.tfds_data_dir
  if flags.input and flags.task:
    raise UserError('--task and --input: give one of them')
  if flags.input:
    return text_files.TextFiles(
      flags.input,
      flags.document,
      flags.json_key,
      flags.invalid_utf8,
      flags.validation_fraction,
    )
  task = flags.task or sources.EMBEDDED
  source = sources.resolve(task, flags.data_dir)
  if isinstance(source, sources.Registered):
    return sources.Registered(task, tuple(flags.module_import))
  return source


def run(main: Callable[[list[str]], None]) -> None:
  """Runs a command; what a user can mend ends it with one line and code 2."""
  try:
    main(sys.argv[1:])
  except UserError as error:
    print(f'error: {error}', file=sys.stderr)
    sys.exit(2)
  except KeyboardInterrupt:
    print('stopped', file=sys.stderr)
    sys.exit(130)
