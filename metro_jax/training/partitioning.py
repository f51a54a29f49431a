# SPDX-License-Identifier: Apache-2.0
"""How a run lies on its devices: a mesh, a table of rules, ZeRO by sharding.

The mesh has three axes. `data` splits the batch; `fsdp` splits the batch and
also the parameters (along their `embed` axis); `tensor` splits heads, MLP and
vocabulary. ZeRO is nothing but a sharding: `zero_spec` adds the data axis to
what a stage says, and XLA emits the collectives.

  stage   parameters   gradients    optimizer slots
  0       replicated   replicated   replicated
  1       replicated   replicated   over data
  2       replicated   over data    over data
  3       over data    over data    over data

("replicated" over `data`; `fsdp` and `tensor` split by the rules regardless.)
Nothing that is computed depends on the mesh but the order of sums.
"""

import contextlib
import dataclasses
import functools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax.experimental import mesh_utils

from metro_jax.errors import UserError
from metro_jax.training.state import TrainState, named_leaves, path_names, unbox

PyTree = Any
Rules = Sequence[tuple[str, str | tuple[str, ...] | None]]
PartitionSpec = jax.sharding.PartitionSpec
NamedSharding = jax.sharding.NamedSharding

MESH_AXES = ('data', 'fsdp', 'tensor')
BATCH_AXES = ('data', 'fsdp')

# Logical axis -> mesh axis. A mesh axis serves once in one array, the leftmost
# dimension first: activations [batch, length, embed] use fsdp for the batch.
DEFAULT_RULES: Rules = (
  ('batch', BATCH_AXES),
  ('vocab', 'tensor'),
  ('mlp', 'tensor'),
  ('heads', 'tensor'),
  ('joined_kv', 'tensor'),
  ('embed', 'fsdp'),
  ('kv', None),
  ('length', None),
  ('layers', None),
  ('stack', None),
  ('relpos_buckets', None),
  ('position', None),
)


def zero_spec(
  spec: PartitionSpec,
  shape: Sequence[int],
  mesh: jax.sharding.Mesh | jax.sharding.AbstractMesh,
  axis: str = 'data',
) -> PartitionSpec:
  """Adds a mesh axis to the largest dimension that is free and divisible.

  Args:
    spec: Mesh axes by dimension, as the rules gave them.
    shape: The array's shape.
    mesh: The mesh.
    axis: The mesh axis to add.

  Returns:
    The new spec; `spec` itself when no dimension can take the axis, or it is
    there already.
  """
  size = mesh.shape[axis]
  dims = [*_drop_trivial(spec, mesh), *[None] * (len(shape) - len(spec))]
  used = {a for d in dims for a in (d if isinstance(d, tuple) else (d,))}
  free = [i for i, d in enumerate(dims) if d is None and shape[i] % size == 0]
  if size == 1 or axis in used or not free:
    return spec
  dims[max(free, key=lambda i: shape[i])] = axis
  return PartitionSpec(*dims)


def _drop_trivial(
  spec: PartitionSpec, mesh: jax.sharding.Mesh | jax.sharding.AbstractMesh
) -> PartitionSpec:
  """A spec without mesh axes of size 1, which split nothing."""

  def keep(axes: str | tuple[str, ...] | None) -> Any:
    names = axes if isinstance(axes, tuple) else (axes,)
    left = tuple(a for a in names if a is not None and mesh.shape[a] > 1)
    return left if len(left) > 1 else (left[0] if left else None)

  return PartitionSpec(*map(keep, spec))


@dataclasses.dataclass(frozen=True)
class Partitioner:
  """Mesh shape, logical axis rules and ZeRO stage.

  Attributes:
    data: Size of the data axis; -1 takes the devices that are left over.
    fsdp: Size of the axis that splits both batch and parameters.
    tensor: Size of the axis that splits heads, MLP and vocabulary.
    zero_stage: 0 to 3, see the table above.
    rules: Logical axis -> mesh axis.
    devices: What the mesh is made of; None takes all devices of all hosts.
  """

  data: int = -1
  fsdp: int = 1
  tensor: int = 1
  zero_stage: int = 1
  rules: Rules = DEFAULT_RULES
  devices: tuple[jax.Device, ...] | None = None

  def __post_init__(self):
    if self.zero_stage not in (0, 1, 2, 3):
      raise UserError(
        f'training.Partitioner.zero_stage is {self.zero_stage!r}; give 0, 1, 2'
        ' or 3'
      )
    for name in ('fsdp', 'tensor', 'data'):
      size = getattr(self, name)
      if size < 1 and not (name == 'data' and size == -1):
        raise UserError(
          f'training.Partitioner.{name} is {size!r}; give a positive number'
        )
    for _, axes in self.rules:
      for axis in axes if isinstance(axes, tuple) else (axes,):
        if axis not in (None, *MESH_AXES):
          raise UserError(
            f'training.Partitioner.rules names the mesh axis {axis!r}; the'
            f' axes are {", ".join(MESH_AXES)}'
          )

  @functools.cached_property
  def mesh(self) -> jax.sharding.Mesh:
    """The mesh over all devices; of several slices, `data` crosses them."""
    devices = self.devices or tuple(jax.devices())
    count = len(devices)
    data, fixed = self.data, self.fsdp * self.tensor
    if data == -1 and count % fixed == 0:
      data = count // fixed
    if data * fixed != count:
      shape = f'data={self.data}, fsdp={self.fsdp}, tensor={self.tensor}'
      raise UserError(
        f'training.Partitioner: {shape} does not make {count} devices; let'
        f' fsdp x tensor divide {count} and leave data=-1'
      )
    # Auto: explicit axis types, the default, refuse the constraints that this
    # module places.
    auto = (jax.sharding.AxisType.Auto,) * 3
    shape = (data, self.fsdp, self.tensor)
    slices = len({getattr(d, 'slice_index', 0) for d in devices})
    if slices == 1:
      return jax.make_mesh(shape, MESH_AXES, axis_types=auto, devices=devices)
    across = _across_slices(shape, slices)
    within = [a // b for a, b in zip(shape, across, strict=True)]
    grid = mesh_utils.create_hybrid_device_mesh(
      within, across, devices, allow_split_physical_axes=True
    )
    return jax.sharding.Mesh(grid, MESH_AXES, axis_types=auto)

  @contextlib.contextmanager
  def context(self) -> Iterator[None]:
    """Makes the mesh and the rules visible to what is traced inside."""
    with jax.set_mesh(self.mesh), nn.logical_axis_rules(self.rules):
      yield

  @property
  def replicated(self) -> NamedSharding:
    """The sharding of what every device holds whole."""
    return NamedSharding(self.mesh, PartitionSpec())

  @property
  def batch_sharding(self) -> NamedSharding:
    """The sharding of [batch, ...]."""
    return NamedSharding(self.mesh, PartitionSpec(BATCH_AXES))

  @property
  def batch_shards(self) -> int:
    """The number of parts a batch is split into."""
    return math.prod(self.mesh.shape[axis] for axis in BATCH_AXES)

  def check_batch(
    self, batch_size: int, num_microbatches: int = 1, what: str = 'BATCH_SIZE'
  ) -> None:
    """Raises UserError unless every device gets the same number of rows."""
    if num_microbatches < 1 or batch_size % num_microbatches:
      raise UserError(
        f'{what}={batch_size} is not divisible by'
        f' NUM_MICROBATCHES={num_microbatches}'
      )
    rows = batch_size // num_microbatches
    if rows % self.batch_shards:
      micro = f' / {num_microbatches} microbatches = {rows}'
      shards = self.batch_shards
      raise UserError(
        f'{what}={batch_size}{micro if num_microbatches > 1 else ""} is not'
        f' divisible by the {shards} devices it is split over (mesh data='
        f'{self.mesh.shape["data"]} x fsdp={self.mesh.shape["fsdp"]}); the'
        f' nearest that is: {_nearest(batch_size, shards * num_microbatches)}'
      )

  def logical_specs(self, boxed: PyTree) -> PyTree:
    """Mesh axes of each parameter, by the rules alone.

    Args:
      boxed: Parameters in logical-axis boxes (arrays or their shapes).

    Returns:
      A tree of PartitionSpec with the structure of the unboxed parameters.
    """
    logical = nn.get_partition_spec(boxed)
    return jax.tree.map(
      lambda spec: _drop_trivial(
        nn.logical_to_mesh_axes(spec, self.rules), self.mesh
      ),
      logical,
      is_leaf=lambda x: isinstance(x, PartitionSpec),
    )

  def state_shardings(self, boxed: PyTree, state: TrainState) -> TrainState:
    """Shardings of a train state.

    Args:
      boxed: Parameters in logical-axis boxes, as shapes.
      state: The same parameters, unboxed, with their slots, as shapes.

    Returns:
      A TrainState of NamedSharding.
    """
    specs = self.logical_specs(boxed)
    self._check_divides(boxed, specs)
    slots = slot_specs(state.opt_state, state.params, specs)
    return TrainState(
      step=self.replicated,
      params=self.param_shardings(boxed),
      opt_state=self._named(slots, state.opt_state, self.zero_stage >= 1),
      guard=jax.tree.map(lambda _: self.replicated, state.guard),
    )

  def param_shardings(self, boxed: PyTree) -> PyTree:
    """Shardings of the parameters."""
    specs, shapes = self.logical_specs(boxed), unbox(boxed)
    return self._named(specs, shapes, self.zero_stage >= 3)

  def gradient_shardings(self, boxed: PyTree) -> PyTree:
    """Shardings of the gradients, or None below stage 2."""
    return self._shares(boxed) if self.zero_stage >= 2 else None

  def update_shardings(self, boxed: PyTree) -> PyTree:
    """Shardings of updates, or None at stage 0."""
    return self._shares(boxed) if self.zero_stage >= 1 else None

  def _shares(self, boxed: PyTree) -> PyTree:
    """Of each parameter its share on each device, as the slots lie."""
    return self._named(self.logical_specs(boxed), unbox(boxed), zero=True)

  def _named(self, specs: PyTree, shapes: PyTree, zero: bool) -> PyTree:
    def named(spec: PartitionSpec, array: Any) -> NamedSharding:
      full = zero_spec(spec, array.shape, self.mesh) if zero else spec
      return NamedSharding(self.mesh, full)

    return jax.tree.map(named, specs, shapes, is_leaf=_is_spec)

  def _check_divides(self, boxed: PyTree, specs: PyTree) -> None:
    """Raises UserError naming the first dimension that its axis leaves over."""
    shapes = named_leaves(unbox(boxed))
    logical = jax.tree.leaves(nn.get_partition_spec(boxed), is_leaf=_is_spec)
    mesh_axes = jax.tree.leaves(specs, is_leaf=_is_spec)
    for (name, array), names, axes in zip(
      shapes.items(), logical, mesh_axes, strict=True
    ):
      for size, logical_name, axis in zip(
        array.shape, names, axes, strict=False
      ):
        axis_names = axis if isinstance(axis, tuple) else (axis,)
        parts = math.prod(self.mesh.shape[a] for a in axis_names if a)
        if size % parts:
          raise UserError(
            f"parameter {name}: its '{logical_name}' dimension of {size} is"
            f' not divisible by training.Partitioner.{axis_names[0]}={parts};'
            f' choose a divisor of {size}'
          )


def _across_slices(shape: Sequence[int], slices: int) -> tuple[int, int, int]:
  """How often each axis crosses slices, whose network is the slower one.

  `data` moves the fewest bytes, so it crosses first, then `fsdp`; `tensor`
  stays inside a slice.
  """
  data = math.gcd(shape[0], slices)
  fsdp = math.gcd(shape[1], slices // data)
  if data * fsdp != slices:
    raise UserError(
      f'training.Partitioner: data={shape[0]} x fsdp={shape[1]} does not divide'
      f' over {slices} slices, and tensor={shape[2]} must not leave a slice;'
      ' choose a smaller tensor'
    )
  return data, fsdp, 1


def _is_spec(x: Any) -> bool:
  return isinstance(x, PartitionSpec)


def _nearest(value: int, multiple: int) -> int:
  return max(multiple, round(value / multiple) * multiple)


def slot_specs(opt_state: PyTree, params: PyTree, specs: PyTree) -> PyTree:
  """Spec of each slot: its parameter's if of the same shape, else replicated.

  A slot belongs to the parameter whose name its own path ends with.
  """
  paths = [
    path_names(p) for p, _ in jax.tree_util.tree_leaves_with_path(params)
  ]
  of_param = {
    path: (array.shape, spec)
    for path, array, spec in zip(
      paths,
      jax.tree.leaves(params),
      jax.tree.leaves(specs, is_leaf=_is_spec),
      strict=True,
    )
  }

  def spec_of(path: tuple[Any, ...], slot: Any) -> PartitionSpec:
    names = path_names(path)
    for start in range(len(names)):
      shape, spec = of_param.get(names[start:], (None, None))
      if shape == slot.shape:
        return spec
    return PartitionSpec()

  return jax.tree_util.tree_map_with_path(spec_of, opt_state)


def bytes_per_device(shapes: PyTree, shardings: PyTree) -> int:
  """Bytes of one device's share of a sharded tree."""

  def share(array: Any, sharding: NamedSharding) -> int:
    local = sharding.shard_shape(array.shape)
    return math.prod(local) * np.dtype(array.dtype).itemsize

  return sum(jax.tree.leaves(jax.tree.map(share, shapes, shardings)))
