# SPDX-License-Identifier: Apache-2.0
"""Tokens a second of the joint training step, here and with PyTorch.

  python -m benchmarks.training_step --shape=mini
  python -m benchmarks.training_step --shape=base --dtype=bfloat16

Contenders are measured in turn (A B C A B C ...) in one run, in one process,
on the same batches of random tokens; a turn is some steps. The table has the
median over the turns, their spread, and our tokens a second over theirs, turn
by turn. All do the same work: forward pass, sampling, backward pass, clipping,
AdamW, dropout of 0.1; they differ as their names say:

  electra         here
  metro_lm        here: METRO-LM (relative positions, CLM)
  torch           Hugging Face and PyTorch, as users write it: logits everywhere
  torch_gathered  the same with logits at the masked positions only
  torch_compiled  that, under torch.compile

With --kernels, `electra` and `metro_lm` also run with Pallas kernels, as
`electra+pallas`. Needs no TensorFlow, SeqIO or gin; torch and transformers
only for their rows.
"""

import argparse
import json
import os
import pathlib
import platform
import statistics
import time
from typing import Any

OURS = ('electra', 'metro_lm')
THEIRS = ('torch', 'torch_gathered', 'torch_compiled')
_BATCHES = 4


def main() -> None:
  """Entry point."""
  flags = _flags()
  if flags.threads:  # Before anything starts its threads.
    os.sched_setaffinity(0, list(os.sched_getaffinity(0))[: flags.threads])
  from benchmarks import shapes
  from metro_jax import host_memory

  host_memory.keep_pages()  # As our commands do; PyTorch profits, too.
  shape = shapes.SHAPES[flags.shape]
  names = flags.contenders.split(',')
  if flags.kernels:
    names += [f'{name}+pallas' for name in names if name in OURS]
  steps = {name: _make(name, shape, flags.dtype) for name in names}
  batches = shapes.batches(shape, _BATCHES)
  seconds = _measure(steps, batches, flags)
  rows = [_row(name, step, seconds, shape) for name, step in steps.items()]
  _print(rows, flags, shape)
  if flags.json:
    about = {'machine': _machine(), 'flags': vars(flags), 'rows': rows}
    pathlib.Path(flags.json).write_text(json.dumps(about, indent=2) + '\n')


def _flags() -> argparse.Namespace:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  add = parser.add_argument
  add('--shape', default='mini', help='tiny, mini, small or base')
  add('--contenders', default='electra,metro_lm,torch,torch_gathered')
  add('--kernels', action='store_true', help='also with Pallas kernels')
  add('--dtype', default='float32')
  add('--turns', type=int, default=10)
  add('--steps', type=int, default=4, help='steps in a turn')
  add('--threads', type=int, help='processor cores; default: all')
  add('--json', help='file to write')
  return parser.parse_args()


def _make(name: str, shape: Any, dtype: str) -> Any:
  recipe, _, pallas = name.partition('+')
  if recipe in OURS:
    from benchmarks import native

    return native.Step(recipe, shape, dtype, 'pallas' if pallas else 'xla')
  if recipe not in THEIRS:
    raise SystemExit(f'--contenders: {name} is not one of {OURS + THEIRS}')
  import torch

  from benchmarks import electra_torch

  device = 'cuda' if torch.cuda.is_available() else 'cpu'
  return electra_torch.ElectraStep(
    shape,
    device,
    dtype,
    gathered=recipe != 'torch',
    compiled=recipe == 'torch_compiled',
  )


def _measure(
  steps: dict[str, Any], batches: list[dict], flags: argparse.Namespace
) -> dict[str, list[float]]:
  """Seconds a step, by contender and turn; the first turn is not counted."""
  fed = {name: step.batches(batches) for name, step in steps.items()}
  seconds: dict[str, list[float]] = {name: [] for name in steps}
  for turn in range(-1, flags.turns):
    for name, step in steps.items():
      start = time.perf_counter()
      for i in range(flags.steps):
        loss = step(fed[name][i % _BATCHES])
      loss = step.wait(loss)
      if turn >= 0:
        seconds[name].append((time.perf_counter() - start) / flags.steps)
      if loss != loss:
        raise SystemExit(f'{name}: the loss is not a number')
  return seconds


def _row(
  name: str, step: Any, seconds: dict[str, list[float]], shape: Any
) -> dict[str, Any]:
  times = seconds[name]
  row = {
    'name': name,
    'ms': 1e3 * statistics.median(times),
    'spread': (max(times) - min(times)) / statistics.median(times),
    'tokens_per_second': shape.tokens / statistics.median(times),
  }
  for other in THEIRS:
    if other in seconds and name not in THEIRS:
      ratios = [b / a for a, b in zip(times, seconds[other], strict=True)]
      row[f'over {other}'] = statistics.median(ratios)
  if hasattr(step, 'flops'):
    row['tflops'] = step.flops / statistics.median(times) / 1e12
    row['mfu'] = step.peak and 1e12 * row['tflops'] / step.peak
    row['memory'] = step.memory()
  return row


def _print(rows: list[dict], flags: argparse.Namespace, shape: Any) -> None:
  print(f'{flags.shape}: {shape}\n{flags.dtype}, {_machine()}')
  columns = [c for c in rows[0] if c.startswith('over ')]
  head = ['step', 'ms', 'spread', 'tokens/s', *columns, 'TFLOP/s', 'MFU']
  table = [head, ['---'] * len(head)]
  for row in rows:
    line = [row['name'], f'{row["ms"]:.1f}', f'{row["spread"]:.0%}']
    line.append(f'{row["tokens_per_second"]:,.0f}')
    line += [f'{row[c]:.2f}' if c in row else '' for c in columns]
    line.append(f'{row["tflops"]:.3f}' if 'tflops' in row else '')
    line.append(f'{row["mfu"]:.1%}' if row.get('mfu') else '')
    table.append(line)
  for line in table:
    print('| ' + ' | '.join(line) + ' |')


def _machine() -> str:
  import jax

  device = jax.devices()[0]
  cores = len(os.sched_getaffinity(0))
  return f'{device.device_kind}, {cores} cores, {platform.machine()}'


if __name__ == '__main__':
  main()
