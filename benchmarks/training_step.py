# SPDX-License-Identifier: Apache-2.0
"""Tokens a second of the joint training step, here and with PyTorch.

  python -m benchmarks.training_step --shape=mini
  python -m benchmarks.training_step --shape=base --dtype=bfloat16

Contenders are measured in turn (A B C A B C ...) in one run, each in a process
of its own that waits while others run, on the same batches of random tokens; a
turn is some steps. The table has the median over the turns, their spread, and
our tokens a second over theirs, turn by turn. All do the same work: forward
pass, sampling, backward pass, clipping, AdamW, dropout of 0.1; they differ as
their names say:

  electra         here
  metro_lm        here: METRO-LM (relative positions, CLM)
  torch           Hugging Face and PyTorch, as users write it: logits everywhere
  torch_gathered  the same with logits at the masked positions only
  torch_compiled  that, under torch.compile

On a CPU, ours keep the memory of the last step (`metro_jax.host_memory`), as
our commands do; `electra+unkept` does not, and `torch+kept` is what PyTorch
makes of it. With --kernels, `electra` and `metro_lm` also run with Pallas
kernels, as `electra+pallas`.
Needs no TensorFlow, SeqIO or gin; torch and transformers only for their rows.
"""

import argparse
import json
import multiprocessing
import os
import pathlib
import platform
import statistics
import time
from multiprocessing.connection import Connection
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

  shape = shapes.SHAPES[flags.shape]
  names = flags.contenders.split(',')
  if flags.kernels:
    names += [f'{name}+pallas' for name in names if name in OURS]
  # Several processes share the accelerator.
  os.environ['XLA_PYTHON_CLIENT_PREALLOCATE'] = 'false'
  contenders = {name: Contender(name, shape, flags.dtype) for name in names}
  seconds = _measure(contenders, flags)
  rows = [_row(name, one, seconds, shape) for name, one in contenders.items()]
  _print(rows, flags, shape)
  if flags.json:
    about = {'machine': _machine(), 'flags': vars(flags), 'rows': rows}
    pathlib.Path(flags.json).write_text(json.dumps(about, indent=2) + '\n')


def _flags() -> argparse.Namespace:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  add = parser.add_argument
  add('--shape', default='mini', choices=('tiny', 'mini', 'small', 'base'))
  add('--contenders', default='electra,metro_lm,torch,torch_gathered')
  add('--kernels', action='store_true', help='also with Pallas kernels')
  add('--dtype', default='float32', choices=('float32', 'bfloat16'))
  add('--turns', type=int, default=10)
  add('--steps', type=int, default=4, help='steps in a turn')
  add('--threads', type=int, help='processor cores; default: all')
  add('--json', help='file to write')
  flags = parser.parse_args()
  names = flags.contenders.split(',')
  if wrong := [name for name in names if not _known(name)]:
    parser.error(
      f'--contenders: {wrong[0]!r} is none of {", ".join(OURS + THEIRS)}, with'
      ' +pallas or +unkept after ours and +kept after the others'
    )
  return flags


def _known(name: str) -> bool:
  base, _, variant = name.partition('+')
  variants = {OURS: ('', 'pallas', 'unkept'), THEIRS: ('', 'kept')}
  return any(base in k and variant in v for k, v in variants.items())


class Contender:
  """A training step in a process of its own."""

  def __init__(self, name: str, shape: Any, dtype: str):
    """Starts the process, and takes one step.

    Raises:
      SystemExit: if its process ended.
    """
    base, _, variant = name.partition('+')
    self.name = name
    context = multiprocessing.get_context('spawn')
    self._pipe, theirs = context.Pipe()
    self._process = context.Process(
      target=_serve, args=(theirs, base, variant, shape, dtype), daemon=True
    )
    self._process.start()
    theirs.close()
    self.seconds(1)

  def seconds(self, steps: int) -> float:
    """Takes that many steps; seconds a step.

    Raises:
      SystemExit: if the loss is not a number, or the process ended.
    """
    loss, seconds = self._ask(steps)
    if loss != loss:
      raise SystemExit(f'{self.name}: the loss is not a number')
    return seconds / steps

  def facts(self) -> dict[str, float | None]:
    """FLOPs of a step, peak FLOP/s and most bytes, where known."""
    return self._ask(0)

  def _ask(self, question: int) -> Any:
    try:
      self._pipe.send(question)
      return self._pipe.recv()
    except (EOFError, BrokenPipeError):
      raise SystemExit(f'{self.name}: its process has ended') from None


def _serve(
  pipe: Connection, base: str, variant: str, shape: Any, dtype: str
) -> None:
  """Takes as many steps as it is told, until the other end closes."""
  from benchmarks import shapes
  from metro_jax import host_memory

  if variant == 'kept' or (base in OURS and variant != 'unkept'):
    host_memory.keep_pages()
  step = _make(base, variant, shape, dtype)
  batches = step.batches(shapes.batches(shape, _BATCHES))
  while True:
    try:
      count = pipe.recv()
    except EOFError:
      return
    if not count:
      pipe.send(_facts(step))
      continue
    start = time.perf_counter()
    for i in range(count):
      loss = step(batches[i % _BATCHES])
    loss = step.wait(loss)
    pipe.send((loss, time.perf_counter() - start))


def _facts(step: Any) -> dict[str, float | None]:
  memory = getattr(step, 'memory', lambda: None)
  facts = {name: getattr(step, name, None) for name in ('flops', 'peak')}
  return facts | {'memory': memory()}


def _make(base: str, variant: str, shape: Any, dtype: str) -> Any:
  if base in OURS:
    from benchmarks import native

    kernels = 'pallas' if variant == 'pallas' else 'xla'
    return native.Step(base, shape, dtype, kernels)
  import torch

  from benchmarks import electra_torch

  device = 'cuda' if torch.cuda.is_available() else 'cpu'
  return electra_torch.ElectraStep(
    shape,
    device,
    dtype,
    gathered=base != 'torch',
    compiled=base == 'torch_compiled',
  )


def _measure(
  contenders: dict[str, Contender], flags: argparse.Namespace
) -> dict[str, list[float]]:
  """Seconds a step, by contender and turn; the first turn is not counted."""
  seconds: dict[str, list[float]] = {name: [] for name in contenders}
  for turn in range(-1, flags.turns):
    for name, contender in contenders.items():
      one = contender.seconds(flags.steps)
      if turn >= 0:
        seconds[name].append(one)
  return seconds


def _row(
  name: str,
  contender: Contender,
  seconds: dict[str, list[float]],
  shape: Any,
) -> dict[str, Any]:
  times = seconds[name]
  median = statistics.median(times)
  row = {
    'name': name,
    'ms': 1e3 * median,
    'spread': (max(times) - min(times)) / median,
    'tokens_per_second': shape.tokens / median,
  }
  if name.partition('+')[0] not in OURS:
    return row
  for other in seconds:
    if other.partition('+')[0] in THEIRS:
      ratios = [b / a for a, b in zip(times, seconds[other], strict=True)]
      row[f'over {other}'] = statistics.median(ratios)
  facts = contender.facts()
  row['tflops'] = facts['flops'] / median / 1e12
  row['mfu'] = facts['peak'] and 1e12 * row['tflops'] / facts['peak']
  return row | {'memory': facts['memory']}


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
