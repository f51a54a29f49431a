# SPDX-License-Identifier: Apache-2.0
"""Optimizers: optax transformations that also tell their learning rate.

Parameters are addressed by regular expressions over slash-joined names
(`auxiliary/.*`), matched from the start of the name to its end.
"""

import dataclasses
import functools
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import optax
from optax import contrib

from metro_jax.errors import UserError
from metro_jax.training.layer_decay import scale_by_depth
from metro_jax.training.schedules import Schedule
from metro_jax.training.state import named_leaves, path_names

PyTree = Any

_HIDDEN_MATRICES = '.*/(stack/.*|dense)/kernel'  # Both sides grow with width.


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
  clip_norm_of_parts: float | None = None,
  rate_factors: Mapping[str, float] | None = None,
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
    clip_norm_of_parts: Largest gradient norm of each part, a part being a top
      name (`main`, `auxiliary`, ...), or None. It comes before `clip_norm`, and
      keeps a wild part from shrinking the steps of the others.
    rate_factors: Name (a regular expression) -> factor of the learning rate,
      of which weight decay takes no part; the first that matches counts. See
      `width_factors`.
    layer_decay: Factor from each layer's learning rate to that of the layer
      below it, see `layer_decay.scale_by_depth`; None for none.

  Returns:
    An optimizer.
  """
  schedule = _schedule(learning_rate)
  moments = optax.scale_by_adam(b1=b1, b2=b2, eps=epsilon)
  if rate_factors:
    moments = optax.chain(moments, _scale(rate_factors))
  decayed = optax.chain(
    moments,
    optax.add_decayed_weights(
      weight_decay,
      lambda params: _unmatched(params, no_decay, 'adamw.no_decay'),
    ),
    optax.scale_by_learning_rate(schedule),
  )
  return _optimizer(
    decayed,
    schedule,
    'adamw',
    clip_norm,
    frozen,
    clip_norm_of_parts,
    layer_decay,
  )


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
    mask=lambda params: _unmatched(params, no_decay, 'adamax.no_decay'),
  )
  return _optimizer(
    decayed,
    schedule,
    'adamax',
    clip_norm,
    frozen,
    layer_decay=layer_decay,
  )


def muon(
  learning_rate: float | Schedule,
  update_rms: float = 0.2,
  beta: float = 0.95,
  b1: float = 0.9,
  b2: float = 0.98,
  weight_decay: float = 0.01,
  clip_norm: float | None = 2.0,
  matrices: str = '.*/stack/.*/kernel',
  frozen: Sequence[str] = (),
) -> Optimizer:
  """Muon on the Transformers' matrices, AdamW on all else.

  No paper of this family uses it; a short run learns in half the steps. An
  update of a matrix is its momentum, orthogonalised (Jordan et al. 2024), and
  scaled to a root mean square that a learning rate tuned for Adam fits (Liu et
  al. 2025, arXiv:2502.16982).

  Args:
    learning_rate: A number or a schedule, for both.
    update_rms: Root mean square of a matrix's update, over the learning rate.
    beta: Decay of a matrix's momentum, of Nesterov's kind.
    b1: Decay of Adam's first moment.
    b2: Decay of Adam's second moment.
    weight_decay: Decoupled decay, multiplied by the learning rate.
    clip_norm: Largest global gradient norm over the trained parameters, or
      None.
    matrices: Regular expression of the names of what Muon updates: kernels as
      `modules.Dense` has them.
    frozen: Names of parameters that stay as they are, as in `adamw`.

  Returns:
    An optimizer.
  """
  schedule = _schedule(learning_rate)
  transformation = contrib.muon(
    schedule,
    beta=beta,
    weight_decay=weight_decay,
    adam_b1=b1,
    adam_b2=b2,
    adam_weight_decay=weight_decay,
    muon_weight_dimension_numbers=functools.partial(
      _matrix_axes, pattern=matrices
    ),
    consistent_rms=update_rms,
  )

  def init(params: PyTree) -> optax.OptState:
    # Without a match all would be left to Adam, and nobody would know.
    _unmatched(params, [matrices], 'muon.matrices')
    return transformation.init(params)

  checked = optax.GradientTransformation(init, transformation.update)
  return _optimizer(checked, schedule, 'muon', clip_norm, frozen)


def _matrix_axes(params: PyTree, pattern: str) -> PyTree:
  """How each kernel is a matrix: its axes of inputs and of outputs, or None."""

  def axes(
    path: tuple[Any, ...], leaf: jax.Array
  ) -> contrib.MuonDimensionNumbers | None:
    names = path_names(path)
    if not hasattr(leaf, 'ndim') or not re.fullmatch(pattern, '/'.join(names)):
      return None
    # Scanned layers are matrices side by side. All projections have one axis
    # of inputs, but the one that joins the heads: it has one of outputs.
    inner = tuple(range('layers' in names, leaf.ndim))
    split = -1 if names[-2] == 'out' else 1
    return contrib.MuonDimensionNumbers(inner[:split], inner[split:])

  return jax.tree_util.tree_map_with_path(
    axes, params, is_leaf=lambda x: isinstance(x, optax.MaskedNode)
  )


def _schedule(learning_rate: float | Schedule) -> Schedule:
  if callable(learning_rate):
    return learning_rate
  return lambda step: learning_rate


def _optimizer(
  transformation: optax.GradientTransformation,
  schedule: Schedule,
  name: str,
  clip_norm: float | None,
  frozen: Sequence[str],
  clip_norm_of_parts: float | None = None,
  layer_decay: float | None = None,
) -> Optimizer:
  """Clipping before, rates by layer after, and nothing for the frozen."""
  norms = {'clip_norm': clip_norm, 'clip_norm_of_parts': clip_norm_of_parts}
  for argument, norm in norms.items():
    if norm is not None and norm <= 0:
      raise UserError(
        f'training.{name}.{argument} is {norm}; give a positive norm, or None'
        ' for no clipping'
      )
  clip = (
    optax.identity()
    if clip_norm is None
    else optax.clip_by_global_norm(clip_norm)
  )
  if clip_norm_of_parts is not None:
    clip = optax.chain(_clip_parts(clip_norm_of_parts), clip)
  parts = [clip, transformation]
  if layer_decay is not None:
    parts.append(scale_by_depth(layer_decay))
  transformation = optax.chain(*parts)
  if frozen:
    transformation = _freeze(transformation, frozen, f'{name}.frozen')
  return Optimizer(transformation.init, transformation.update, schedule)


def width_factors(width: int, base_width: int) -> dict[str, float]:
  """`rate_factors` that carry a learning rate to another width.

  With the rate of matrices between hidden layers proportional to 1 / width, and
  that of tables, norms and biases constant, the rate that is best at one width
  is about the best at another: muP for Adam (Yang et al. 2022, table 8), and
  with the usual initialisation as well (Everett et al. 2024). Such matrices are
  those of the layers, and the dense ones of the heads; not the columns that
  heads put out.

  Args:
    width: of the model.
    base_width: at which the learning rate was tuned.

  Returns:
    Their names -> base_width / width.
  """
  if base_width < 1 or width < 1:
    raise UserError(
      f'training.width_factors: width={width} and base_width={base_width} must'
      ' be positive'
    )
  return {_HIDDEN_MATRICES: base_width / width}


def _clip_parts(norm: float) -> optax.GradientTransformation:
  """Clips each top name of the tree by its own norm."""
  clip = optax.clip_by_global_norm(norm)

  def update(
    gradients: PyTree, state: optax.OptState, params: PyTree = None
  ) -> tuple[PyTree, optax.OptState]:
    del params
    empty = optax.EmptyState()
    return {k: clip.update(g, empty)[0] for k, g in gradients.items()}, state

  return optax.GradientTransformation(lambda _: optax.EmptyState(), update)


def _scale(factors: Mapping[str, float]) -> optax.GradientTransformation:
  """Multiplies updates by the factor of the first pattern that matches."""

  def update(
    updates: PyTree, state: optax.OptState, params: PyTree = None
  ) -> tuple[PyTree, optax.OptState]:
    del params
    left = jax.tree.map(lambda _: True, updates)
    for pattern, factor in factors.items():
      misses = _unmatched(updates, [pattern], 'adamw.rate_factors')
      hits = jax.tree.map(lambda miss, free: free and not miss, misses, left)
      updates = jax.tree.map(
        lambda hit, u, f=factor: u * f if hit else u, hits, updates
      )
      left = jax.tree.map(lambda hit, free: free and not hit, hits, left)
    return updates, state

  return optax.GradientTransformation(lambda _: optax.EmptyState(), update)


def _freeze(
  transformation: optax.GradientTransformation,
  frozen: Sequence[str],
  argument: str,
) -> optax.GradientTransformation:
  """The transformation on all but the frozen, which get a zero update."""

  def labels(params: PyTree) -> PyTree:
    return jax.tree.map(
      lambda trained: 'trained' if trained else 'frozen',
      _unmatched(params, frozen, argument),
    )

  parts = {'trained': transformation, 'frozen': optax.set_to_zero()}
  return optax.multi_transform(parts, labels)


def _unmatched(
  params: PyTree, patterns: Sequence[str], argument: str
) -> PyTree:
  """True where no pattern matches the parameter's name.

  Args:
    params: Parameters (or what has their structure).
    patterns: Regular expressions.
    argument: The optimizer's argument that they come from: 'adamw.frozen'.

  Returns:
    A tree of bool.
  """
  compiled = []
  for pattern in patterns:
    try:
      compiled.append(re.compile(pattern))
    except re.error as error:
      raise UserError(
        f'training.{argument}: {pattern!r} is not a regular expression: {error}'
      ) from None
  names = named_leaves(params)
  for pattern in compiled:
    # A mask over what is left after freezing may rightly be empty; a pattern
    # that matches no parameter at all is a spelling mistake.
    needed = not argument.endswith('.no_decay')
    if needed and not any(map(pattern.fullmatch, names)):
      raise UserError(
        f'training.{argument}: {pattern.pattern!r} matches no parameter;'
        f' names look like {next(iter(names), "?")!r}'
      )

  def keep(path: tuple[Any, ...], _: Any) -> bool:
    name = '/'.join(path_names(path))
    return not any(pattern.fullmatch(name) for pattern in compiled)

  return jax.tree_util.tree_map_with_path(keep, params)
