# SPDX-License-Identifier: Apache-2.0
"""Every op on the accelerator that is there: kernel, XLA, and a library.

  python -m pallas_kernels.benchmark              a table
  python -m pallas_kernels.benchmark --json       one JSON object a line
  python -m pallas_kernels.benchmark --op attention --rows 128

Forward and backward at the sizes of METRO-LM's base model. First numbers, then
speed: `error` is the largest difference from float64, of the result and of all
gradients, relative to the largest value of each, on fresh random inputs (of 2
rows). `temporary` is what the compiled program keeps beside its arguments and
results. Times are medians of calls that take turns.
"""

import argparse
import functools
import json
import statistics
import sys
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels import backend as backends
from pallas_kernels.benchmark import cases as cases_lib

_COLUMNS = ('op', 'by', 'ms', 'rate', 'temporary MiB', 'error')
_TINY = cases_lib.Sizes(2, 32, 32, 2, 300, 6)


def main(argv: list[str] | None = None) -> int:
  """The command line; returns the exit status."""
  parser = argparse.ArgumentParser(
    prog='python -m pallas_kernels.benchmark',
    description='Times kernels against XLA, forward and backward.',
  )
  parser.add_argument('--op', action='append', help='only this; repeatable')
  parser.add_argument('--rows', type=int, default=32, help='of a batch')
  parser.add_argument('--rounds', type=int, default=20, help='calls to time')
  parser.add_argument('--json', action='store_true', help='a JSON line each')
  parser.add_argument(
    '--interpret',
    choices=('gpu', 'tpu'),
    help="that platform's kernels as plain JAX at a tiny size: a check of"
    ' numbers on any machine, whose times mean nothing',
  )
  args = parser.parse_args(argv)
  platform = args.interpret or jax.default_backend()
  if platform == 'cpu':
    return _fail(
      'no GPU or TPU here, and kernels run on those only; --interpret gpu'
      ' checks their numbers on this machine'
    )
  sizes = _TINY if args.interpret else cases_lib.Sizes(rows=args.rows)
  cases = cases_lib.cases(sizes)
  small = cases_lib.cases(sizes if args.interpret else cases_lib.Sizes(rows=2))
  for name in args.op or ():
    if name not in cases:
      return _fail(f'--op {name}: not one of {", ".join(cases)}')
  if not args.json:
    device = jax.devices()[0].device_kind
    print(f'{device}, jax {jax.__version__}, {sizes.rows} rows')
    print(_line(_COLUMNS))
  with backends.target(platform, interpret=bool(args.interpret)):
    for name in args.op or cases:
      for row in measure(name, cases[name], small[name], args.rounds):
        text = _line(row[c] for c in _COLUMNS)
        print(json.dumps(row) if args.json else text, flush=True)
  return 0


def measure(
  name: str, case: cases_lib.Case, small: cases_lib.Case, rounds: int
) -> list[dict]:
  """A row of the table for each implementation.

  Args:
    name: of the case.
    case: at the size to time.
    small: at the size to compare with float64.
    rounds: calls to time.

  Returns:
    Rows by `_COLUMNS`; an implementation that refuses, or does not fit, has
    its reason in the place of an error.
  """
  ways = {b: functools.partial(case.op, b) for b in ('pallas', 'xla')}
  if case.library:
    ways['library'] = case.library
  rows, compiled = [], {}
  arguments = case.arguments(jax.random.key(0))
  fresh = small.arguments(jax.random.key(time.time_ns() % 2**31))
  exact = in_float64(small, *fresh)
  for by, op in ways.items():
    row = {c: None for c in _COLUMNS} | {'op': name, 'by': by}
    rows.append(row)
    try:
      row['error'] = f'{error(jax.jit(pulled(op))(*fresh), exact):.1e}'
      step = jax.jit(pulled(op)).lower(*arguments).compile()
      jax.block_until_ready(step(*arguments))
    except Exception as problem:  # A row that says why, and the next one.
      row['error'] = f'{type(problem).__name__}: {problem}'.split('\n')[0][:80]
      continue
    temporary = step.memory_analysis().temp_size_in_bytes / 2**20
    row['temporary MiB'] = round(temporary, 1)
    compiled[by] = step
  for by, seconds in in_turn(compiled, arguments, rounds).items():
    row = next(r for r in rows if r['by'] == by)
    row['ms'] = round(seconds * 1e3, 3)
    scale = {'GB/s': 1e9, 'TFLOP/s': 1e12}[case.unit]
    row['rate'] = f'{case.work / seconds / scale:.1f} {case.unit}'
  return rows


def in_turn(
  steps: dict[str, Callable], arguments: tuple, rounds: int
) -> dict[str, float]:
  """Median seconds of each step; one call of each, then again."""
  times: dict[str, list[float]] = {name: [] for name in steps}
  for _ in range(rounds):
    for name, step in steps.items():
      start = time.perf_counter()
      jax.block_until_ready(step(*arguments))
      times[name].append(time.perf_counter() - start)
  return {name: statistics.median(t) for name, t in times.items()}


def pulled(op: Callable) -> Callable:
  """Result and gradients of an op; the cotangent is a fixed wave."""

  def both(floats, others):
    y, pull = jax.vjp(lambda f: op(f, others), floats)
    wave = jnp.cos(jnp.arange(y.size, dtype=jnp.float32)).reshape(y.shape)
    wave = wave.astype(jnp.bfloat16)  # The same number in every dtype.
    return y, pull(wave.astype(y.dtype))[0]

  return both


def in_float64(case: cases_lib.Case, floats: dict, others: dict) -> tuple:
  """Result and gradients as they should be."""
  with jax.enable_x64(True):
    floats = {name: jnp.asarray(np.float64(x)) for name, x in floats.items()}
    return jax.device_get(jax.jit(pulled(case.exact))(floats, others))


def error(got: tuple, exact: tuple) -> float:
  """Largest difference, relative to the largest value of each array."""
  worst = 0.0
  for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(exact), strict=True):
    difference = np.abs(np.float64(a) - b).max()
    worst = max(worst, difference / max(np.abs(b).max(), 1e-30))
  return float(worst)


def _fail(problem: str) -> int:
  print(f'error: {problem}', file=sys.stderr)
  return 2


def _line(values) -> str:
  widths = (29, 8, 9, 14, 14, 9)
  cells = zip(values, widths, strict=True)
  return ' '.join(('-' if v is None else str(v)).ljust(w) for v, w in cells)


if __name__ == '__main__':
  sys.exit(main())
