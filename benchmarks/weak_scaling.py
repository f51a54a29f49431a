# SPDX-License-Identifier: Apache-2.0
"""What a device computes and sends as a job grows, from compiled steps.

  python benchmarks/weak_scaling.py --gin_file=metro_lm/base.gin --rows=32 \\
    --targets h200:8 h200:64 h200:256 v5p:2x2x2 v5p:4x4x4 v5p:4x8x8 \\
    --paper 1024 4096 --picture=weak_scaling.png

The batch grows with the devices (--rows each). Each target is compiled by
metro_jax.precompile; prints a Markdown table, and draws it with --picture.
Sizes of --paper are not compiled: the largest compiled step of a kind of device
with longer rings, which move (n - 1) / n of the same arrays.

Times are bounds, no measurements: FLOPs at the data sheet's peak, bytes at its
bandwidth. A real step is not faster than the longer of the two (everything
overlaps); their sum is what nothing overlapped would take.

With --reports=FILE, what was compiled is kept, and not compiled again. Words
that are not flags of this script go to precompile.
"""

import argparse
import json
import pathlib
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

Report = dict[str, Any]
_TITLES = (
  'target', 'devices', 'TFLOP', 'GB sent', 'GB peak', 'ms of FLOPs',
  'ms of sending', 'of peak, overlapped', 'of peak, not overlapped',
)  # fmt: skip
# Okabe and Ito's colours, which colour-blind readers can tell apart.
_COLOURS = ('#0072B2', '#D55E00', '#009E73', '#CC79A7')


def compiled(target: str, rows: int, words: Sequence[str]) -> Report:
  """The report of precompile on a target, with so many rows on a device."""
  command = [sys.executable, '-m', 'metro_jax.precompile', *words]
  command += [f'--target={target}', '--json', '--nosuggest']

  def told(*more: str) -> Report:
    done = subprocess.run([*command, *more], check=True, stdout=subprocess.PIPE)
    return json.loads(done.stdout)

  devices = told('--nocompile')['devices']
  return told(f'--gin.BATCH_SIZE={rows * devices}')


class Kept:
  """Reports in a file, one JSON object a line, by what was asked for."""

  def __init__(self, path: str | None):
    self._path = pathlib.Path(path) if path else None
    lines = []
    if self._path and self._path.exists():
      lines = self._path.read_text().splitlines()
    self._reports = dict(json.loads(line) for line in lines)

  def report(self, target: str, rows: int, words: Sequence[str]) -> Report:
    """Compiles, unless it is there already."""
    key = ' '.join([target, str(rows), *words])
    if key not in self._reports:
      self._reports[key] = compiled(target, rows, words)
      if self._path:
        with self._path.open('a') as file:
          file.write(json.dumps([key, self._reports[key]]) + '\n')
    return self._reports[key]


def moved(report: Report) -> float:
  """Bytes that a device sends in a step."""
  return sum(c['moved'] for c in report['collectives'])


def on_paper(report: Report, devices: int) -> Report:
  """A step of more devices: the same FLOPs of each, longer rings."""
  before = report['devices']
  longer = (1 - 1 / devices) / (1 - 1 / before)
  bounds = report['bounds']
  return report | {
    'target': f'{report["target"].partition(":")[0]}, on paper',
    'devices': devices,
    'collectives': [{'moved': longer * moved(report)}],
    'bounds': bounds | {'links': longer * bounds['links']},
  }


def shares(report: Report) -> tuple[float, float]:
  """Of the peak FLOP/s: if all sending is hidden, and if none is."""
  compute, links = (report['bounds'][k] for k in ('compute', 'links'))
  return compute / max(compute, links), compute / (compute + links)


def row(report: Report) -> str:
  """One line of the table."""
  cells = [
    report['target'],
    f'{report["devices"]:,}',
    f'{report["flops"] / 1e12:,.1f}',
    f'{moved(report) / 1e9:,.2f}',
    f'{report["memory"].get("peak", float("nan")) / 1e9:,.1f}',
  ]
  if report['bounds']:
    bounds = report['bounds']
    cells += [f'{1e3 * bounds[k]:,.1f}' for k in ('compute', 'links')]
    cells += [f'{share:.0%}' for share in shares(report)]
  else:
    cells += [''] * 4
  return '| ' + ' | '.join(cells) + ' |'


def draw(kinds: dict[str, list[Report]], path: str) -> None:
  """Bytes sent, and the bounds of the FLOP/s reached, over devices."""
  import matplotlib

  matplotlib.use('agg')  # No display needed.
  from matplotlib import pyplot

  figure, (sent, reached) = pyplot.subplots(1, 2, figsize=(9, 3.4))
  for (kind, reports), colour in zip(kinds.items(), _COLOURS, strict=False):
    devices = [r['devices'] for r in reports]
    sent.plot(
      devices, [moved(r) / 1e9 for r in reports], 'o-', color=colour, label=kind
    )
    if not all(r['bounds'] for r in reports):
      continue
    best, worst = zip(*(shares(r) for r in reports), strict=True)
    reached.fill_between(devices, worst, best, color=colour, alpha=0.25)
    reached.plot(devices, worst, 'o-', color=colour, label=kind)
  sent.set_title('GB sent by a device in a step', fontsize=10)
  reached.set_title('Share of peak FLOP/s: nothing to all hidden', fontsize=10)
  reached.set_ylim(0, 1.02)
  sent.set_ylim(bottom=0)
  counts = sorted({r['devices'] for reports in kinds.values() for r in reports})
  for axes in (sent, reached):
    axes.set_xscale('log', base=2)
    axes.set_xticks(counts, [f'{n:,}' for n in counts])
    axes.set_xlabel('devices')
    axes.grid(alpha=0.3)
    if axes.get_legend_handles_labels()[0]:
      axes.legend(frameon=False, loc='lower right')
  figure.tight_layout()
  figure.savefig(path, dpi=120)


def main() -> None:
  """Compiles for each target, prints the table and draws it."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--targets', nargs='+', required=True)
  parser.add_argument('--rows', type=int, default=8, help='of a device')
  parser.add_argument('--paper', nargs='*', type=int, default=[])
  parser.add_argument('--picture', help='file to draw to')
  parser.add_argument('--reports', help='file of what was compiled')
  flags, words = parser.parse_known_args()
  kept, kinds = Kept(flags.reports), {}
  print('| ' + ' | '.join(_TITLES) + ' |')
  print('|' + '---|' * len(_TITLES), flush=True)
  for target in flags.targets:
    report = kept.report(target, flags.rows, words)
    kinds.setdefault(target.partition(':')[0], []).append(report)
    print(row(report), flush=True)
  for reports in kinds.values():
    largest = max(reports, key=lambda r: r['devices'])
    for devices in flags.paper:
      reports.append(on_paper(largest, devices))
      print(row(reports[-1]), flush=True)
  if flags.picture:
    draw(kinds, flags.picture)


if __name__ == '__main__':
  main()
