# SPDX-License-Identifier: Apache-2.0
"""Gin's complaints in one line, with the name that was meant."""

import difflib
import inspect
import re
from collections.abc import Iterable
from typing import Any


def explain(error: Exception, registry: Any) -> str:
  """Gin's message on one line, with the nearest name that does exist.

  Args:
    error: of gin.
    registry: of gin's configurables.

  Returns:
    The line.
  """
  message = one_line(error)
  unknown = re.search(
    r"'([\w./]+)' doesn't have a parameter named '(\w+)'", message
  )
  if unknown:
    target = registry.get_match(unknown.group(1).split('/')[-1]).wrapped
    names = inspect.signature(target).parameters
    return message + did_you_mean(unknown.group(2), names)
  unknown = re.search(
    r"No configurable matching (?:reference )?'@?([\w./]+)", message
  )
  if unknown:
    names = [name for name in registry._selector_map if '.' in name]
    return message + did_you_mean(unknown.group(1).split('/')[-1], names)
  return message


def did_you_mean(name: str, names: Iterable[str]) -> str:
  """'; did you mean X?' with the nearest of the names, if one is near."""
  near = difflib.get_close_matches(name, list(names), n=1, cutoff=0.5)
  return f'; did you mean {near[0]}?' if near else ''


def one_line(error: Exception) -> str:
  """A message without gin's quotation of where it was."""
  text = str(error.args[0] if error.args else error)
  return ' '.join(text.split('\n  In ')[0].split())
