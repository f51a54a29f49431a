# SPDX-License-Identifier: Apache-2.0
"""Compiles a recipe's training step for a machine that need not be there."""

import dataclasses
import json
import math
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from absl import flags

from metro_jax import cli, ops
from metro_jax.training import ahead, targets
from metro_jax.training.info import align
from metro_jax.training.progress import human

USAGE = """Compiles a recipe's training step; tells its memory and collectives.

  python -m metro_jax.precompile --gin_file=metro_lm/xxl.gin --target=v5p:4x8x8

Nothing is trained and no data is read. Targets: v5p:4x8x8 (v4, v5e, v6e: a TPU
slice by its topology; 2*v5p:4x8x8 is two slices), h200:8 (h100), cpu:256.

  --target=NAME   what to compile for
  --json          print one JSON object instead of a table
  --nocompile     count parameters and state only: seconds, not minutes
  --nosuggest     do not look for settings that fit where the recipe's do not"""

_TARGET = flags.DEFINE_string('target', None, 'What to compile for.')
_JSON = flags.DEFINE_bool('json', False, 'Print one JSON object.')
_COMPILE = flags.DEFINE_bool('compile', True, 'Compile the step.')
_SUGGEST = flags.DEFINE_bool('suggest', True, 'Look for settings that fit.')

ENTRY = 'training.Plan'
REMATS = ('none', 'dots', 'full')


def compile_recipe(
  target: targets.Target, macros: Mapping[str, Any], compiled: bool = True
) -> ahead.Report:
  """Compiles (or describes) gin's recipe, with some macros changed."""
  with ops.target(target.platform):
    plan = cli.build(ENTRY, **macros).on(target)
    tell = ahead.compile_plan if compiled else ahead.describe
    return tell(plan, target)


def suggest(
  target: targets.Target, failed: ahead.Report
) -> tuple[dict[str, Any], ahead.Report] | None:
  """The least change of a recipe that fits, by compiling it.

  In the order of what they cost: microbatches cost nothing but the size of a
  product, a higher ZeRO stage bytes on the network, rematerialisation FLOPs.

  Args:
    target: Where it is to fit.
    failed: The recipe as it is, which does not.

  Returns:
    Macros to change, and what compiling with them told; None if nothing fits.
  """
  for number, macros in enumerate(_candidates(failed.zero_stage)):
    plan = cli.build(ENTRY, **macros).on(target)
    if ahead.held_bytes(plan) > target.kind.memory:
      continue
    # The first changes nothing.
    report = compile_recipe(target, macros) if number else failed
    while not report.fits:
      changed = _with_microbatches(plan, report, macros)
      if changed is None:
        break
      macros, report = changed, compile_recipe(target, changed)
    if report.fits:
      return macros, report
  return None


def _candidates(stage: int) -> Iterator[dict[str, Any]]:
  """Macros to try, the cheapest first; each names all that it changes."""
  remat = cli.macro('REMAT')
  start = REMATS.index(remat) if remat in REMATS else len(REMATS)
  original = {'NUM_MICROBATCHES': cli.macro('NUM_MICROBATCHES')}
  for remat in REMATS[start:] or (None,):
    for zero_stage in range(stage, 4):
      changed = {} if remat is None else {'REMAT': remat}
      yield {**original, 'ZERO_STAGE': zero_stage, **changed}


def _with_microbatches(
  plan: ahead.Plan, report: ahead.Report, macros: Mapping[str, Any]
) -> dict[str, Any] | None:
  """As many microbatches as make the activations fit; None if none would."""
  held = ahead.held_bytes(plan)
  room = max(report.limit - held, 1)
  more = 2
  if 'peak' in report.memory:
    # One tenth for what does not shrink with the rows.
    needed = max(1.1 * (report.memory['peak'] - held), 1)
    more = 2 ** max(1, math.ceil(math.log2(needed / room)))
  count = report.num_microbatches * more
  if plan.rows_per_device % count:
    return None
  return {**macros, 'NUM_MICROBATCHES': count}


def table(report: ahead.Report) -> str:
  """The report for a person, in several small tables."""
  mesh = ' x '.join(f'{axis}={n}' for axis, n in report.mesh.items())
  total = sum(report.parameters.values())
  rows = [('Parameters', 'Millions')]
  rows += [(k, f'{n / 1e6:,.2f}') for k, n in report.parameters.items()]
  rows.append(('total', f'{total / 1e6:,.2f}'))
  memory = [('Memory of a device', 'GB')]
  memory += [(k, f'{n / 1e9:,.3f}') for k, n in report.memory.items()]
  if report.limit:
    memory.append(('of', f'{report.limit / 1e9:,.3f}'))
  sections = [
    f'{report.target}: mesh {mesh}, zero_stage={report.zero_stage},'
    f' num_microbatches={report.num_microbatches}',
    align(rows),
    f'FLOPs of a step: {human(report.flops * report.devices)} in all,'
    f' {human(report.flops)} on a device',
    align(memory),
    _collectives(report),
    _bounds(report),
    verdict(report),
  ]
  return '\n\n'.join(section for section in sections if section)


def _collectives(report: ahead.Report) -> str:
  rows = [('Collectives of a step', 'Count', 'GB', 'GB moved by a device')]
  for c in report.collectives:
    sizes = (f'{c.size / 1e9:,.3f}', f'{c.moved / 1e9:,.3f}')
    rows.append((c.kind, f'{c.count:,}', *sizes))
  if len(rows) > 1:
    return align(rows)
  return 'No collectives' if 'peak' in report.memory else ''


def _bounds(report: ahead.Report) -> str:
  if not report.bounds:
    return ''
  compute, links = report.bounds['compute'], report.bounds['links']
  return (
    f'A step takes at least {compute:.3g} s of FLOPs at their peak, and'
    f' {links:.3g} s of sending'
  )


def verdict(report: ahead.Report) -> str:
  """One sentence: whether it fits, and by how much."""
  took = f' (compiled in {report.seconds:.0f} s)' if report.seconds else ''
  if report.fits is None:
    if 'peak' not in report.memory:
      return 'Not compiled: activations are not known'
    return f'A simulated device has no limit; its peak is an upper bound{took}'
  if report.fits:
    spare = (report.limit - report.memory['peak']) / 1e9
    return f'It fits, with {spare:,.1f} GB to spare{took}'
  if report.over:
    return f'It does not fit; the compiler says: {report.over}'
  lacks = f'It does not fit: {report.missing / 1e9:,.1f} GB too much'
  before = '' if 'peak' in report.memory else ' before any activations'
  return f'{lacks}{before}{took}'


def run() -> int:
  """Compiles what the command line asks for, and prints it."""
  if not _TARGET.value:
    raise cli.UserError('no target: add --target=v5p:4x8x8, h200:8 or cpu:8')
  target = targets.find(_TARGET.value)
  report = compile_recipe(target, {}, compiled=_COMPILE.value)
  if not _JSON.value:
    print(table(report), flush=True)
  found = None
  if report.fits is False and _COMPILE.value and _SUGGEST.value:
    found = suggest(target, report)
    if not _JSON.value:
      print(_advice(found))
  if _JSON.value:
    page = dataclasses.asdict(report) | {'fits': report.fits}
    print(json.dumps(page | {'suggestion': found[0] if found else None}))
  return 0


def _advice(found: tuple[dict[str, Any], ahead.Report] | None) -> str:
  if found is None:
    return (
      'No ZERO_STAGE, REMAT and NUM_MICROBATCHES fit: take more devices, or'
      ' raise training.Partitioner.fsdp or tensor'
    )
  macros, report = found
  words = ' '.join(f'--gin.{k}={v}' for k, v in macros.items())
  peak = f'{report.memory["peak"] / 1e9:,.1f} GB'
  return f'This would fit ({peak}): {words}'


def main() -> int:
  """Runs the command line and returns the exit code."""
  return cli.main(ENTRY, 'gin_configs/runs/precompile.gin', USAGE, body=run)


if __name__ == '__main__':
  sys.exit(main())
