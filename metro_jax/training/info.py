# SPDX-License-Identifier: Apache-2.0
"""model-info.txt: every parameter, where it lies, and what it all weighs."""

import math
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from metro_jax.training.initialization import Layout
from metro_jax.training.partitioning import Partitioner, bytes_per_device
from metro_jax.training.state import named_leaves

PyTree = Any


def model_info(layout: Layout, partitioner: Partitioner) -> str:
  """The whole page: parameters, totals by part, slots, memory of a device.

  Args:
    layout: Shapes and shardings of the state.
    partitioner: Names the mesh and the stage.

  Returns:
    Text of several lines.
  """
  mesh = ' x '.join(f'{k}={v}' for k, v in partitioner.mesh.shape.items())
  sections = [
    f'Mesh {mesh}, zero_stage={partitioner.zero_stage}',
    _parameter_table(layout),
    _totals_table(layout.state.params),
    _slots_line(layout),
    _memory_table(layout, partitioner),
  ]
  return '\n\n'.join(sections) + '\n'


def _parameter_table(layout: Layout) -> str:
  axes = jax.tree.leaves(
    nn.get_partition_spec(layout.boxed),
    is_leaf=lambda x: isinstance(x, jax.sharding.PartitionSpec),
  )
  params = named_leaves(layout.state.params)
  rows = [('Parameter', 'Count', 'Shape', 'Type', 'Axes', 'Sharding')]
  for (name, x), names in zip(params.items(), axes, strict=True):
    rows.append(
      (
        name,
        f'{math.prod(x.shape):,}',
        str(tuple(x.shape)),
        str(x.dtype),
        _spec(names),
        _spec(x.sharding.spec),
      )
    )
  return align(rows)


def _spec(spec: jax.sharding.PartitionSpec) -> str:
  return '(' + ', '.join(str(axis) for axis in spec) + ')'


def totals_by_part(params: PyTree) -> dict[str, int]:
  """Number of parameters of each part: the first component of the name."""
  totals: dict[str, int] = {}
  for name, x in named_leaves(params).items():
    part = name.split('/')[0]
    totals[part] = totals.get(part, 0) + math.prod(x.shape)
  return totals


def _totals_table(params: PyTree) -> str:
  totals = totals_by_part(params)
  rows = [('Part', 'Parameters')]
  rows += [(part, f'{count:,}') for part, count in totals.items()]
  return align([*rows, ('total', f'{sum(totals.values()):,}')])


def _slots_line(layout: Layout) -> str:
  slots = sum(
    math.prod(x.shape) for x in jax.tree.leaves(layout.state.opt_state)
  )
  return f'Optimizer slots: {slots:,} numbers'


def memory_per_device(
  layout: Layout, partitioner: Partitioner
) -> Mapping[str, int]:
  """Bytes that a device holds of parameters, gradients and slots.

  Activations are not among them: they are the compiler's to tell.
  """
  shards = layout.shardings
  gradients = partitioner.gradient_shardings(layout.boxed) or (
    partitioner.param_shardings(layout.boxed)
  )
  fp32 = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, np.float32), layout.state.params
  )
  state = layout.state
  return {
    'parameters': bytes_per_device(state.params, shards.params),
    'gradients': bytes_per_device(fp32, gradients),
    'optimizer slots': bytes_per_device(state.opt_state, shards.opt_state),
  }


def _memory_table(layout: Layout, partitioner: Partitioner) -> str:
  memory = memory_per_device(layout, partitioner)
  rows = [('Memory of a device', 'MB')]
  rows += [(name, f'{count / 1e6:,.2f}') for name, count in memory.items()]
  return align([*rows, ('total', f'{sum(memory.values()) / 1e6:,.2f}')])


def align(rows: list[tuple[str, ...]]) -> str:
  """Rows as columns; what looks like a number is set to the right."""
  widths = [max(map(len, column)) for column in zip(*rows, strict=True)]

  def cell(text: str, width: int) -> str:
    number = text.replace(',', '').replace('.', '').isdigit()
    return text.rjust(width) if number else text.ljust(width)

  return '\n'.join('  '.join(map(cell, row, widths)).rstrip() for row in rows)
