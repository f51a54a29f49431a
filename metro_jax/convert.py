# SPDX-License-Identifier: Apache-2.0
"""Converts models to and from other libraries' files.

  python -m metro_jax.convert export --model_dir=runs/electra --output=out
  python -m metro_jax.convert import --source=out --model_dir=runs/again

  export --model_dir --output [--format] [--step]
  import --source --model_dir [--auxiliary] [--vocabulary] [--dtype]

export: a folder for `transformers` (ELECTRA, BERT, T5) where one of its
architectures fits, else a folder with a loader of this project.
import: ELECTRA, BERT, T5, COCO-LM, AMOS, METRO-T0 and exported folders, and
fairseq checkpoints of the last three; to train further, or to ask.
"""

import argparse
import pathlib

from metro_jax.data import command_line


def main(argv: list[str]) -> None:
  """Converts one model."""
  flags = _parser().parse_args(argv)
  from metro_jax import conversion  # After --help.

  if flags.command == 'export':
    name = conversion.export_model(
      flags.model_dir, flags.output, flags.format, flags.step
    )
    print(f'{flags.output}: written as {name}')
    return
  unread = conversion.import_model(
    flags.source,
    flags.model_dir,
    flags.auxiliary,
    flags.vocabulary,
    flags.dtype,
  )
  for name in unread:
    print(f'left out: {name}')
  print(
    f'{flags.model_dir}: written; train on with'
    f' --gin_file={flags.model_dir}/config.gin after a recipe, and'
    f' --gin.INITIAL_CHECKPOINT_PATH={flags.model_dir}'
  )


def _parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(
    prog='python -m metro_jax.convert',
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
    allow_abbrev=False,
  )
  commands = parser.add_subparsers(dest='command', required=True)
  add = commands.add_parser('export', allow_abbrev=False).add_argument
  add('--model_dir', type=_path, required=True, help='of a training run')
  add('--output', type=_path, required=True, help='folder to make')
  add(
    '--format',
    default='auto',
    choices=(
      *('auto', 'electra', 'bert', 't5'),
      *('electra_classifier', 'bert_classifier', 'native'),
    ),
    help='default: the first of them that fits',
  )
  add('--step', type=int, help='checkpoint to use (default: the newest)')
  add = commands.add_parser('import', allow_abbrev=False).add_argument
  add('--source', type=_path, required=True, help='model folder or .pt file')
  add('--model_dir', type=_path, required=True, help='folder to make')
  add('--auxiliary', type=_path, help="folder of ELECTRA's generator")
  add('--vocabulary', type=_path, help='a .model file')
  add(
    '--dtype',
    default='float32',
    choices=('float32', 'bfloat16'),
    help='of activations when trained further (default: float32)',
  )
  return parser


def _path(text: str) -> pathlib.Path:
  return pathlib.Path(text).expanduser()


if __name__ == '__main__':
  command_line.run(main)
