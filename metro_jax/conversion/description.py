# SPDX-License-Identifier: Apache-2.0
"""A model as plain data: what a config.json or a config.gin says of it.

Models are trees of dataclasses (Flax modules are dataclasses too). The tree
is written as {'class': 'modules.Encoder', 'config': {...}} and read back from
a closed list of classes. So a file from elsewhere can describe a model, and
do nothing else.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from metro_jax import finetune, models, modules, pretrain
from metro_jax.errors import UserError

_PACKAGES = {
  'finetune': finetune,
  'models': models,
  'modules': modules,
  'pretrain': pretrain,
}
_CLASSES = {
  f'{package}.{name}': value
  for package, module in _PACKAGES.items()
  for name, value in vars(module).items()
  if isinstance(value, type) and dataclasses.is_dataclass(value)
}
_NAMES = {value: name for name, value in _CLASSES.items()}
# The one key of a mapping, which is no class.
_MAPPING = 'mapping'
# Flax's own fields.
_OF_FLAX = ('parent', 'name')

Plain = Any


def describe(value: Any) -> Plain:
  """What JSON can hold of a model, or of a part of it."""
  if isinstance(value, tuple | list):
    return [describe(x) for x in value]
  if value is None or isinstance(value, bool | int | float | str):
    return value
  if isinstance(value, Mapping):
    return {_MAPPING: {str(k): describe(x) for k, x in value.items()}}
  name = _NAMES.get(type(value))
  if name is None:
    raise UserError(
      f'{type(value).__name__} is a class of your own; only models made of'
      " metro_jax's classes can be described in a file"
    )
  return {'class': name} | {
    f.name: describe(getattr(value, f.name)) for f in _fields(type(value))
  }


def build(plain: Plain, source: str) -> Any:
  """The inverse of `describe`.

  Args:
    plain: what `describe` has made.
    source: the file it was read from, for messages.

  Raises:
    UserError: if it names anything but classes of this project, and their
      fields.
  """
  if isinstance(plain, list):
    return tuple(build(x, source) for x in plain)
  if not isinstance(plain, dict):
    return plain
  if isinstance(plain.get(_MAPPING), dict):
    return {k: build(x, source) for k, x in plain[_MAPPING].items()}
  arguments = {str(k): v for k, v in plain.items() if k != 'class'}
  kind = _CLASSES.get(plain.get('class'))
  if kind is None:
    raise UserError(f'{source}: {plain.get("class")!r} is no part of a model')
  unknown = sorted(set(arguments) - {f.name for f in _fields(kind)})
  if unknown:
    raise UserError(
      f'{source}: {plain["class"]} has no {unknown[0]}; it was written by'
      ' another version'
    )
  values = {name: build(x, source) for name, x in arguments.items()}
  if 'parent' in {f.name for f in dataclasses.fields(kind)}:
    values['parent'] = None
  try:
    return kind(**values)
  except TypeError as error:
    raise UserError(f'{source}: {plain["class"]}: {error}') from error


def gin_bindings(model: Any) -> str:
  """Gin's lines that bind MODEL to such a model.

  Each object has a scope of its own, named after where it stands.
  """
  lines: list[str] = []
  reference = _bind(describe(model), 'model', lines)
  return '\n'.join([f'MODEL = {reference}', '', *lines])


def _bind(plain: Plain, scope: str, lines: list[str]) -> str:
  """A value in gin's syntax; adds the bindings of what is in it."""
  if isinstance(plain, list):
    items = [_bind(x, f'{scope}_{i}', lines) for i, x in enumerate(plain)]
    return f'({", ".join(items)}{"," if len(items) == 1 else ""})'
  if not isinstance(plain, dict):
    return repr(plain)
  if _MAPPING in plain:
    found = plain[_MAPPING].items()
    items = [f'{k!r}: {_bind(x, f"{scope}_{k}", lines)}' for k, x in found]
    return f'{{{", ".join(items)}}}'
  target = f'{scope}/{plain["class"]}'
  own = [
    f'{target}.{name} = {_bind(x, f"{scope}_{name}", lines)}'
    for name, x in plain.items()
    if name != 'class'
  ]
  lines += [*own, '']
  return f'@{target}()'


def _fields(kind: type) -> Iterator[dataclasses.Field]:
  return (f for f in dataclasses.fields(kind) if f.name not in _OF_FLAX)
