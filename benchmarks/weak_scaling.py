# SPDX-License-Identifier: Apache-2.0
"""What a device computes and sends as a job grows, from compiled steps.

  python benchmarks/weak_scaling.py --gin_file=metro_lm/base.gin \\
    --rows=8 --targets v5p:2x2x2 v5p:4x4x4 v5p:4x8x8

The batch grows with the devices (--rows each). Each target is compiled by
metro_jax.precompile; prints a Markdown table. Lower bounds, no measurements:
FLOPs at the data sheet's peak, bytes at its bandwidth, nothing overlapped or
delayed. Words that are not flags of this script go to precompile.
"""

import argparse
import json
import subprocess
import sys
from typing import Any


def compiled(target: str, rows: int, words: list[str]) -> dict[str, Any]:
  """The report of precompile on a target, with so many rows on a device."""
  command = [sys.executable, '-m', 'metro_jax.precompile', *words]
  command += [f'--target={target}', '--json', '--nosuggest']
  devices = json.loads(
    subprocess.run(
      [*command, '--nocompile'], check=True, stdout=subprocess.PIPE
    ).stdout
  )['devices']
  command.append(f'--gin.BATCH_SIZE={rows * devices}')
  done = subprocess.run(command, check=True, stdout=subprocess.PIPE)
  return json.loads(done.stdout)


def row(report: dict[str, Any]) -> str:
  """One line of the table."""
  moved = sum(c['moved'] for c in report['collectives'])
  cells = [
    report['target'],
    report['devices'],
    f'{report["flops"] / 1e12:,.1f}',
    f'{moved / 1e9:,.2f}',
    f'{report["memory"].get("peak", float("nan")) / 1e9:,.1f}',
  ]
  bounds = report['bounds']
  if bounds:
    together = bounds['compute'] + bounds['links']
    cells += [f'{1e3 * bounds[k]:,.1f}' for k in ('compute', 'links')]
    cells.append(f'{bounds["compute"] / together:.0%}')
  else:
    cells += ['', '', '']
  return '| ' + ' | '.join(map(str, cells)) + ' |'


def main() -> None:
  """Compiles for each target and prints the table."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--targets', nargs='+', required=True)
  parser.add_argument('--rows', type=int, default=8, help='of a device')
  flags, words = parser.parse_known_args()
  titles = (
    'target', 'devices', 'TFLOP', 'GB sent', 'GB peak', 'ms of FLOPs',
    'ms of sending', 'efficiency if nothing overlaps',
  )  # fmt: skip
  print('| ' + ' | '.join(titles) + ' |')
  print('|' + '---|' * len(titles), flush=True)
  for target in flags.targets:
    print(row(compiled(target, flags.rows, words)), flush=True)


if __name__ == '__main__':
  main()
