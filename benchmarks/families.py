# SPDX-License-Identifier: Apache-2.0
"""Every family's tiny recipe, trained to its end, in one table.

  python -m benchmarks.families --output=runs/families --seeds 0 1 2

OUTPUT/table.md has the last held-out metrics of each, OUTPUT/curves.png its
losses. --gin.NAME=VALUE holds for all of them. The same command goes on where
it was stopped, and trains nothing twice.
"""

import argparse
import pathlib
from collections.abc import Sequence

from metro_jax import ablate
from metro_jax.data import command_line
from metro_jax.errors import UserError

# The frozen auxiliary of fast_electra, of the same seed, is trained before it.
AUXILIARY = 'mlm_auxiliary'
RECIPES = {
  'metro_lm': 'metro_lm/tiny.gin',
  'amos': 'amos/tiny.gin',
  AUXILIARY: 'mlm/tiny_auxiliary.gin',
  'fast_electra': 'fast_electra/tiny.gin',
  'coco_lm': 'coco_lm/tiny.gin',
  'electra': 'electra/tiny.gin',
  'metro_t5': 'metro_t5/tiny.gin',
  't5': 't5/tiny.gin',
  'mlm': 'mlm/tiny.gin',
}


def runs(
  output: pathlib.Path, seeds: Sequence[int], bindings: Sequence[str]
) -> list[ablate.Run]:
  """All of them, every recipe with the first seed before any other."""
  every = []
  for seed in seeds:
    auxiliary = output / AUXILIARY / f'seed_{seed}'
    for row, recipe in RECIPES.items():
      own = list(bindings)
      if row == 'fast_electra':
        own.append(f'--gin.AUX_CHECKPOINT_PATH={auxiliary}')
      every.append(ablate.run_of(row, [recipe], own, seed, output))
  return every


def main(argv: list[str]) -> None:
  """Trains what is left to train."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--output', default='runs/families', metavar='DIR')
  parser.add_argument('--seeds', type=int, nargs='+', default=[0])
  flags, bindings = parser.parse_known_args(argv)
  ablate.check_bindings(bindings)
  output = pathlib.Path(flags.output)
  failures = ablate.compare(runs(output, flags.seeds, bindings), output)
  print(f'{output}/table.md')
  if failures:
    raise UserError(f'{len(failures)} failed; {failures[0]}')


if __name__ == '__main__':
  command_line.run(main)
