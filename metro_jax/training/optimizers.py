# SPDX-License-Identifier: Apache-2.0
"""Optimizers: optax transformations that also tell their learning rate.

Parameters are addressed by regular expressions over slash-joined names
(`auxiliary/.*`), matched from the start of the name to its end.
"""

import dataclasses
import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import optax

from metro_jax.errors import UserError
from metro_jax.training.layer_decay import scale_by_depth
from metro_jax.training.schedules import Schedule
from metro_jax.training.state import named_leaves, path_names

PyTree = Any


@dataclasses.dataclass(frozen=True)
class Optimizer:
  """An optax transformation and the schedule inside it, for the logs.

  Attributes:
    init: params -> slots.
    update: (gradients, slots, params) -> (updates, slots).
    learning_rate: Finished steps -> learning rate.
  """

  init: Callable[[PyTree], optax.OptState]
  update: Callable[..., tuple[PyTree, optax.OptState]]
  learning_rate: Schedule


def adamw(
  learning_rate: float | Schedule,
  b1: float = 0.9,
  b2: float = 0.98,
  epsilon: float = 1e-6,
  weight_decay: float = 0.01,
  clip_norm: float | None = 2.0,
  no_decay: Sequence[str] = (),
  frozen: Sequence[str] = (),
  layer_decay: float | None = None,
) -> Optimizer:
  """Adam with decoupled weight decay, after clipping the global norm.

  The defaults are those of METRO-LM (Table 13): decay on every parameter,
  none excluded. Epsilon is added to the bias-corrected root, as in the Adam
  paper.

  Args:
    learning_rate: A number or a schedule.
    b1: Decay of the first moment.
    b2: Decay of the second moment.
    epsilon: Added to the root of the second moment.
    weight_decay: Decoupled decay, multiplied by the learning rate.
    clip_norm: Largest global gradient norm over the trained parameters, or
      None.
    no_decay: Names of parameters without weight decay, e.g. `.*/bias`.
    frozen: Names of parameters that stay as they are. They get no slots, and
      their gradients do not count in the clipping.
    layer_decay: Factor from each layer's learning rate to that of the layer
      below it, see `layer_decay.scale_by_depth`; None for none.

  Returns:
    An optimizer.
  """
  schedule = _schedule(learning_rate)
  decayed = optax.adamw(
    schedule,
    b1=b1,
    b2=b2,
    eps=epsilon,
    weight_decay=weight_decay,
    mask=lambda params: _unmatched(params, no_decay, 'no_decay'),
  )
  return _finish(decayed, schedule, clip_norm, frozen, layer_decay)


def adamax(
  learning_rate: float | Schedule,
  b1: float = 0.9,
  b2: float = 0.98,
  epsilon: float = 1e-6,
  weight_decay: float = 0.01,
  clip_norm: float | None = 1.0,
  no_decay: Sequence[str] = (),
  frozen: Sequence[str] = (),
  layer_decay: float | None = None,
) -> Optimizer:
  """AdaMax with decoupled weight decay: Adam with a maximum for its root.

  What Fast-ELECTRA fine-tunes with (Table 4). Arguments as those of `adamw`;
  epsilon is added to the magnitude before the maximum is taken.

  Returns:
    An optimizer.
  """
  schedule = _schedule(learning_rate)
  decayed = optax.adamaxw(
    schedule,
    b1=b1,
    b2=b2,
    eps=epsilon,
    weight_decay=weight_decay,
    mask=lambda params: _unmatched(params, no_decay, 'no_decay'),
  )
  return _finish(decayed, schedule, clip_norm, frozen, layer_decay)


def _schedule(learning_rate: float | Schedule) -> Schedule:
  return (
    learning_rate if callable(learning_rate) else (lambda step: learning_rate)
  )


def _finish(
  decayed: optax.GradientTransformation,
  schedule: Schedule,
  clip_norm: float | None,
  frozen: Sequence[str],
  layer_decay: float | None,
) -> Optimizer:
  """Clipping before, layer-wise rates after, and nothing for the frozen."""
  if clip_norm is not None and clip_norm <= 0:
    raise UserError(
      f'training.adamw.clip_norm is {clip_norm}; give a positive norm, or None'
      ' for no clipping'
    )
  clip = (
    optax.identity()
    if clip_norm is None
    else (optax.clip_by_global_norm(clip_norm))
  )
  parts = [clip, decayed]
  if layer_decay is not None:
    parts.append(scale_by_depth(layer_decay))
  transformation = optax.chain(*parts)
  if frozen:
    transformation = _freeze(transformation, frozen)
  return Optimizer(transformation.init, transformation.update, schedule)


def _freeze(
  transformation: optax.GradientTransformation, frozen: Sequence[str]
) -> optax.GradientTransformation:
  """The transformation on all but the frozen, which get a zero update."""

  def labels(params: PyTree) -> PyTree:
    return jax.tree.map(
      lambda trained: 'trained' if trained else 'frozen',
      _unmatched(params, frozen, 'frozen'),
    )

  parts = {'trained': transformation, 'frozen': optax.set_to_zero()}
  return optax.multi_transform(parts, labels)


def _unmatched(params: PyTree, patterns: Sequence[str], what: str) -> PyTree:
  """True where no pattern matches the parameter's name.

  Args:
    params: Parameters (or what has their structure).
    patterns: Regular expressions.
    what: The argument of `adamw` that they come from.

  Returns:
    A tree of bool.
  """
  compiled = []
  for pattern in patterns:
    try:
      compiled.append(re.compile(pattern))
    except re.error as error:
      raise UserError(
        f'training.adamw.{what}: {pattern!r} is not a regular expression:'
        f' {error}'
      ) from None
  names = named_leaves(params)
  for pattern in compiled:
    # A mask over what is left after freezing may rightly be empty; a pattern
    # that matches no parameter at all is a spelling mistake.
    if what == 'frozen' and not any(map(pattern.fullmatch, names)):
      raise UserError(
        f'training.adamw.frozen: {pattern.pattern!r} matches no parameter;'
        f' names look like {next(iter(names), "?")!r}'
      )

  def keep(path: tuple[Any, ...], _: Any) -> bool:
    name = '/'.join(path_names(path))
    return not any(pattern.fullmatch(name) for pattern in compiled)

  return jax.tree_util.tree_map_with_path(keep, params)
