# SPDX-License-Identifier: Apache-2.0
"""The state of training: everything a step reads and writes, but the batch.

There is no separate collection for frozen parameters: they stay in `params`
and the optimizer's `frozen` patterns keep them still and without slots.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax import struct

PyTree = Any


class TrainState(struct.PyTreeNode):
  """What a checkpoint holds.

  Attributes:
    step: Number of finished steps, int32 scalar.
    params: Parameters by name, fp32, without logical-axis boxes.
    opt_state: The optimizer's slots.
    guard: What the guard remembers of earlier steps.
  """

  step: jax.Array
  params: PyTree
  opt_state: optax.OptState
  guard: PyTree = ()

  @classmethod
  def create(
    cls,
    params: PyTree,
    optimizer: optax.GradientTransformation,
    guard: PyTree = (),
  ) -> 'TrainState':
    """A state before the first step, with the guard's first memory."""
    return cls(
      step=jnp.zeros([], jnp.int32),
      params=params,
      opt_state=optimizer.init(params),
      guard=guard,
    )

  def to_tree(self) -> dict[str, Any]:
    """The tree that is stored: T5X's `target` and `state`.

    The guard's memory is stored beside it, so that a run may go on with
    another guard.
    """
    slots = {'step': self.step, 'param_states': self.opt_state}
    return {'target': self.params, 'state': slots}

  @classmethod
  def from_tree(cls, tree: Mapping[str, Any]) -> 'TrainState':
    """The inverse of `to_tree`."""
    return cls(
      step=tree['state']['step'],
      params=tree['target'],
      opt_state=tree['state']['param_states'],
    )


def unbox(boxed: PyTree) -> PyTree:
  """Parameters without their logical-axis boxes, arrays or shapes alike.

  Flax's own unboxing adds a sharding constraint, which shapes cannot take.
  """
  return jax.tree.map(
    lambda x: x.value if _is_box(x) else x, boxed, is_leaf=_is_box
  )


def _is_box(x: Any) -> bool:
  return isinstance(x, nn.meta.AxisMetadata)


def path_names(path: tuple[Any, ...]) -> tuple[str, ...]:
  """Dictionary keys on a key path; list, tuple and field entries are left out.

  What remains of the path of an optimizer slot ends with the path of its
  parameter, whatever optax wraps around it.
  """
  keys = (e.key for e in path if isinstance(e, jax.tree_util.DictKey))
  return tuple(str(key) for key in keys)


def named_leaves(tree: PyTree) -> dict[str, Any]:
  """Leaves by slash-joined name, in the tree's order."""
  leaves = jax.tree_util.tree_leaves_with_path(tree)
  return {'/'.join(path_names(path)): leaf for path, leaf in leaves}
