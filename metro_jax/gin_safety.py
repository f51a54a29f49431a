# SPDX-License-Identifier: Apache-2.0
"""Gin files from strangers.

A gin file is a program: its imports run the modules that they name, and with
dynamic registration it may call whatever can be reached from them by dots
(`@metro_jax.cli.os.system()` needs no import of its own). With `--safe_gin` a
file may import only what is allowed, and name only what this project has
registered, so that it can choose among parts and set their parameters. It can
still say which files are read and where the run is written.
"""

import types
from collections.abc import Sequence
from typing import Any

from metro_jax.errors import UserError

# What this project's recipes import.
ALLOWED = ('__gin__', 'metro_jax', 'tasks', 'gin_configs')
# What would not stay a mere import: entry points.
_PROGRAMS = ('metro_jax.scripts',)


def restrict(config: types.ModuleType, more: Sequence[str] = ()) -> None:
  """Makes gin refuse what a stranger's file should not do, from now on.

  Args:
    config: the module `gin.config`; what has been registered so far may be
      named.
    more: packages that may be imported, and whose contents may be named, too.
  """

  class CarefulContext(config.ParseContext):
    """Of one file; looks at imports and names before gin does."""

    def process_import(self, statement: Any) -> None:
      module = statement.module
      allowed = _within(module, (*ALLOWED, *more))
      if not allowed or _within(module, _PROGRAMS):
        raise UserError(
          f'--safe_gin: {_place(statement)} imports {module}, which is not'
          f' among {", ".join((*ALLOWED[1:], *more))}; if you trust it, add'
          f' --safe_gin_imports={module.split(".")[0]}'
        )
      super().process_import(statement)

    def _register(self, names: list[str], values: list[Any]) -> Any:
      home = getattr(values[-1], '__module__', None) or ''
      if not _within(home, more):
        raise UserError(
          f'--safe_gin: {".".join(names)} is not one of the registered parts'
          ' (metro_jax/gin_registration.py); if you trust it, run without'
          ' --safe_gin'
        )
      return super()._register(names, values)

  config.ParseContext = CarefulContext


def _within(name: str, packages: Sequence[str]) -> bool:
  return any(name == p or name.startswith(f'{p}.') for p in packages)


def _place(statement: Any) -> str:
  location = statement.location
  return f'{location.filename or "a gin file"}, line {location.line_num}'
