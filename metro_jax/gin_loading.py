# SPDX-License-Identifier: Apache-2.0
"""A model from the config.gin that training left in MODEL_DIR.

gin has one global configuration. What another part of the program has set in
it is put back afterwards, so that a notebook can train and load.
"""

import contextlib
import pathlib
from collections.abc import Iterator

from metro_jax import gin_registration
from metro_jax.errors import UserError
from metro_jax.models import PretrainingModel

_gin = gin_registration.gin
_STATE = ('_CONFIG', '_SINGLETONS', '_IMPORTS', '_OPERATIVE_CONFIG')


def load_model(path: pathlib.Path) -> PretrainingModel:
  """Builds what MODEL is bound to in a config.gin.

  Args:
    path: the file; it may import what it likes, so it should be one's own.

  Returns:
    The model, without parameters.
  """
  try:
    text = path.read_text(encoding='utf-8')
  except (OSError, UnicodeDecodeError) as error:
    raise UserError(
      f'{path}: cannot be read ({error}); give the MODEL_DIR of a training run'
    ) from error
  with _own_configuration():
    try:
      _gin.parse_config(text)
      return _gin.query_parameter('%MODEL').scoped_configurable_fn()
    except UserError:
      raise
    except Exception as error:  # gin raises what the file makes it raise.
      first = (str(error).strip().splitlines() or [type(error).__name__])[0]
      raise UserError(
        f'{path}: does not describe a model ({first}); give the MODEL_DIR of a'
        ' training run made by this version'
      ) from error


@contextlib.contextmanager
def _own_configuration() -> Iterator[None]:
  """An empty global configuration; the one before is put back."""
  config = _gin.config
  saved = {name: getattr(config, name).copy() for name in _STATE}
  locked = _gin.config_is_locked()
  _gin.clear_config()
  try:
    yield
  finally:
    _gin.clear_config()
    for name, value in saved.items():
      getattr(config, name).update(value)
    if locked:
      _gin.finalize()
