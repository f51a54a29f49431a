# SPDX-License-Identifier: Apache-2.0
"""Name maps: which of our parameters is which tensor of another library.

An architecture is a table of rules, read in either direction. A rule names a
parameter here, a tensor there, and a form: how the numbers of the one become
those of the other. All arrays are NumPy, and nothing is written until every
name, shape and number has been checked.
"""

import dataclasses
import fnmatch
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from metro_jax.errors import UserError

Tensors = dict[str, np.ndarray]
Shape = tuple[int, ...]
_SHOWN = 3  # Names in a message.


@dataclasses.dataclass(frozen=True)
class Form:
  """How a parameter is laid out elsewhere.

  Attributes:
    shape: shape of ours -> shape of theirs.
    export: ours -> theirs.
    restore: theirs, shape of ours -> ours.
  """

  shape: Callable[[Shape], Shape]
  export: Callable[[np.ndarray], np.ndarray]
  restore: Callable[[np.ndarray, Shape], np.ndarray]


def _linear(inputs: int) -> Form:
  def shape(ours: Shape) -> Shape:
    return math.prod(ours[inputs:]), math.prod(ours[:inputs])

  return Form(
    shape,
    lambda x: x.reshape(shape(x.shape)[::-1]).T,
    lambda x, ours: x.T.reshape(ours),
  )


SAME = Form(lambda s: s, lambda x: x, lambda x, s: x)
# A bias by heads, [heads, head_dim], as one vector.
VECTOR = Form(
  lambda s: (math.prod(s),), lambda x: x.reshape(-1), lambda x, s: x.reshape(s)
)
# PyTorch's Linear holds [out, in]; ours [in axes, out axes].
LINEAR = _linear(1)
# Attention's output, whose input axes are heads and head_dim.
LINEAR_OF_HEADS = _linear(2)


def scaled(form: Form, factor: float) -> Form:
  """A form whose numbers are `factor` times larger here than there."""
  return Form(
    form.shape,
    lambda x: form.export(x) / np.float32(factor),
    lambda x, s: form.restore(x, s) * np.float32(factor),
  )


def below(form: Form, rows: int) -> Form:
  """A form that has so many rows of no use above ours."""
  return Form(
    lambda s: (s[0] + rows, *s[1:]),
    lambda x: np.pad(form.export(x), [(rows, 0)] + [(0, 0)] * (x.ndim - 1)),
    lambda x, s: form.restore(x[rows:], s),
  )


def permuted(order: np.ndarray) -> Form:
  """A form whose row i here is row order[i] there."""
  back = np.argsort(order)
  return Form(lambda s: s, lambda x: x[back], lambda x, s: x[order])


@dataclasses.dataclass(frozen=True)
class Rule:
  """One parameter in two libraries.

  Attributes:
    ours: slash-joined name in a checkpoint of this project.
    theirs: name of the tensor.
    form: how their layouts differ.
  """

  ours: str
  theirs: str
  form: Form = SAME


@dataclasses.dataclass(frozen=True)
class NameMap:
  """All rules of an architecture.

  Attributes:
    rules: one for each parameter.
    tied: copies that some files have besides -> the name that is read.
    unread: patterns (of shells) of tensors that have no place here.
  """

  rules: Sequence[Rule]
  tied: Mapping[str, str] = dataclasses.field(default_factory=dict)
  unread: Sequence[str] = ()

  def export(self, params: Tensors) -> Tensors:
    """Their tensors from our parameters.

    Raises:
      UserError: naming parameters that no rule takes, or are not there.
    """
    needed = {rule.ours for rule in self.rules}
    _compare('this model', set(params), needed)
    _check_finite('this model', params)
    out = {r.theirs: r.form.export(params[r.ours]) for r in self.rules}
    return {k: np.ascontiguousarray(x, np.float32) for k, x in out.items()}

  def restore(
    self, source: str, tensors: Tensors, shapes: Mapping[str, Shape]
  ) -> tuple[Tensors, list[str]]:
    """Our parameters from their tensors.

    Args:
      source: where the tensors come from, for messages.
      tensors: all that the file holds.
      shapes: of our parameters, by name.

    Returns:
      The parameters, and the names of the tensors that have no place here.

    Raises:
      UserError: naming what is missing, surplus, of another shape, not a
        number, or unlike the tensor it should be a copy of.
    """
    _compare('the rules', {r.ours for r in self.rules}, set(shapes))
    unread = sorted(
      name
      for name in tensors
      if any(fnmatch.fnmatchcase(name, p) for p in self.unread)
    )
    used = {k: x for k, x in tensors.items() if k not in unread}
    self._check_tied(source, used)
    used = {k: x for k, x in used.items() if k not in self.tied}
    _compare(source, set(used), {r.theirs for r in self.rules})
    wrong = [
      f'{r.theirs} is {used[r.theirs].shape} instead of'
      f' {r.form.shape(shapes[r.ours])}'
      for r in self.rules
      if used[r.theirs].shape != r.form.shape(shapes[r.ours])
    ]
    if wrong:
      raise UserError(f'{source}: {_some(wrong)}; its config does not fit it')
    _check_finite(source, used)
    out = {
      r.ours: r.form.restore(
        np.asarray(used[r.theirs], np.float32), shapes[r.ours]
      )
      for r in self.rules
    }
    return {k: np.ascontiguousarray(x) for k, x in out.items()}, unread

  def _check_tied(self, source: str, tensors: Tensors) -> None:
    for copy, name in self.tied.items():
      if copy in tensors and name not in tensors:
        tensors[name] = tensors[copy]
      if copy in tensors and not np.array_equal(tensors[copy], tensors[name]):
        raise UserError(
          f'{source}: {copy} is not {name}; models with an output matrix of'
          ' its own have no place here'
        )


def layers(
  count: int, ours: str, theirs: str, table: Iterable[tuple[str, str, Form]]
) -> list[Rule]:
  """Rules of all layers of a stack.

  Args:
    count: of the layers.
    ours: name of the stack here; `layers_<i>` follows.
    theirs: name of a layer there, with {i} in it.
    table: rest of our name, rest of theirs, form.
  """
  return [
    Rule(f'{ours}/layers_{i}/{here}', f'{theirs.format(i=i)}.{there}', form)
    for i in range(count)
    for here, there, form in table
  ]


def dense(ours: str, theirs: str, form: Form = LINEAR) -> list[Rule]:
  """Rules of a linear map with a bias."""
  bias = SAME if form is not LINEAR_OF_HEADS else VECTOR
  return [
    Rule(f'{ours}/kernel', f'{theirs}.weight', form),
    Rule(f'{ours}/bias', f'{theirs}.bias', bias),
  ]


def norm(ours: str, theirs: str) -> list[Rule]:
  """Rules of a LayerNorm."""
  return [
    Rule(f'{ours}/scale', f'{theirs}.weight'),
    Rule(f'{ours}/bias', f'{theirs}.bias'),
  ]


def split_layers(params: Tensors) -> Tensors:
  """`.../layers/...`, stacked by `scan_layers`, as `.../layers_<i>/...`."""
  out = {}
  for name, x in params.items():
    parts = re.fullmatch(r'(.*/)?layers/(.*)', name)
    if parts is None:
      out[name] = x
      continue
    for i, layer in enumerate(x):
      out[f'{parts[1] or ""}layers_{i}/{parts[2]}'] = layer
  return out


def _compare(source: str, found: set[str], wanted: set[str]) -> None:
  """Raises UserError unless the names are the same."""
  missing, surplus = sorted(wanted - found), sorted(found - wanted)
  if missing:
    raise UserError(f'{source} lacks {_some(missing)}')
  if surplus:
    raise UserError(
      f'{source} has {_some(surplus)}, which this architecture does not know'
    )


def _check_finite(source: str, tensors: Tensors) -> None:
  bad = sorted(k for k, x in tensors.items() if not np.all(np.isfinite(x)))
  if bad:
    raise UserError(f'{source}: {_some(bad)} has values that are no numbers')


def _some(names: Sequence[str]) -> str:
  more = f' and {len(names) - _SHOWN} more' if len(names) > _SHOWN else ''
  return ', '.join(names[:_SHOWN]) + more
