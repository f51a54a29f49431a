# SPDX-License-Identifier: Apache-2.0
"""The command line of the trainer: T5X's flags, gin files, and plain errors.

  python -m metro_jax.train --gin_file=metro_lm/tiny.gin --gin.MODEL_DIR=runs/a

Files are read in the order run file, --gin_file ..., --gin.NAME=VALUE. Whatever
a user can get wrong ends in one line on stderr and exit code 2. What imports
much (jax, gin's configurables) is imported after flags have been understood.
"""

import ast
import errno
import os
import pathlib
import re
import signal
import sys
import tokenize
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import gin
import jax
from absl import flags

from metro_jax import gin_messages, gin_safety, host_memory, hosts
from metro_jax.errors import UserError
from metro_jax.gin_messages import did_you_mean, one_line

ROOT = pathlib.Path(__file__).resolve().parents[1]
USER_ERROR = 2
# What a file binds a macro to that has no default.
_REQUIRED = gin.config.parse_value('%gin.REQUIRED')
_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES)

_GIN_FILE = flags.DEFINE_multi_string(
  'gin_file',
  [],
  'A recipe, e.g. metro_lm/tiny.gin; looked up here, beside the metro_jax'
  ' folder and in gin_configs. Repeatable; later files override.',
)
_GIN_BINDINGS = flags.DEFINE_multi_string(
  'gin_bindings', [], "Binding in gin's syntax. --gin.NAME=VALUE is shorter."
)
_SEARCH_PATHS = flags.DEFINE_list(
  'gin_search_paths', [], 'More folders to look gin files up in.'
)
_SAFE_GIN = flags.DEFINE_bool(
  'safe_gin',
  False,
  'Refuse gin files that import anything but this project, or name what it has'
  ' not registered. For files that you have not written yourself.',
)
_SAFE_IMPORTS = flags.DEFINE_list(
  'safe_gin_imports', [], 'Packages that --safe_gin lets pass besides.'
)
_TFDS = flags.DEFINE_string(
  'tfds_data_dir', None, 'Where TFDS corpora were prepared ($TFDS_DATA_DIR).'
)
_DRY_RUN = flags.DEFINE_bool(
  'dry_run', False, 'Plan everything, print parameters and memory, and stop.'
)
_PROFILE = flags.DEFINE_integer(
  'profile_steps', 0, 'Steps to trace into MODEL_DIR/profile.'
)
_MULTIPROCESS = flags.DEFINE_bool(
  'multiprocess_gpu',
  False,
  'Several processes, joined by the three flags'
  ' below. TPU pods and SLURM steps need none of them.',
)
_COORDINATOR = flags.DEFINE_string(
  'coordinator_address', None, 'host:port of process 0.'
)
_COUNT = flags.DEFINE_integer('process_count', None, 'Number of processes.')
_INDEX = flags.DEFINE_integer('process_index', None, 'This one, from 0.')


def main(
  entry: str,
  run_file: str,
  usage: str,
  argv: Sequence[str] | None = None,
  body: Callable[[], int] | None = None,
  base: str | None = None,
  then: str | None = None,
) -> int:
  """Runs one entry point of gin and returns the exit code.

  Args:
    entry: Name of the configurable, e.g. `training.train`.
    run_file: Gin file that binds its arguments to macros.
    usage: First lines of --help.
    argv: Words of the command line; default those of the process.
    body: Called instead of the entry point, which it may `build`.
    base: Macro that names a MODEL_DIR, or a checkpoint in one, which the run
      starts from: its config.gin is read before the run file.
    then: Another configurable, called when the first has ended well.

  Returns:
    0, 2 after a mistake of the user, 130 after Ctrl-C.
  """
  try:
    if not _parse_flags(list(argv or sys.argv), usage):
      return 0
    return _run(entry, run_file, body, base, then)
  except UserError as error:
    # gin appends lines of its own to an error that passes through it.
    print(f'error: {str(error).splitlines()[0]}', file=sys.stderr)
    return USER_ERROR
  except OSError as error:
    if error.errno not in _DISK_ERRORS:
      raise
    print(f'error: {error.filename}: {error.strerror}', file=sys.stderr)
    return USER_ERROR
  except jax.errors.JaxRuntimeError as error:
    if jax.process_count() == 1:
      raise
    hosts.give_up(error)
  except KeyboardInterrupt:
    print('interrupted', file=sys.stderr)
    return 128 + signal.SIGINT


def _parse_flags(argv: list[str], usage: str) -> bool:
  """Reads the flags; False if they only asked for help."""
  if any(word in ('--help', '-h', '-help', '--helpfull') for word in argv[1:]):
    print(
      usage + '\n\nFlags:\n' + flags.FLAGS.module_help(sys.modules[__name__])
    )
    return False
  try:
    words = flags.FLAGS(rewrite(argv))
  except flags.Error as error:
    raise UserError(f'{one_line(error)} (--help lists the flags)') from None
  if len(words) > 1:
    raise UserError(
      f'{words[1]!r} is not a flag; write --gin_file=FILE or --gin.NAME=VALUE'
    )
  return True


def rewrite(argv: Iterable[str]) -> list[str]:
  """Turns --gin.NAME=VALUE into a --gin_bindings flag, which absl can parse.

  A value that gin cannot read but that looks like a word or a path is quoted:
  nobody wants to write --gin.MODEL_DIR='"runs/tiny"'.
  """
  words = []
  for word in argv:
    match = re.fullmatch(r'--?gin\.([^=]+)=(.*)', word, re.DOTALL)
    if match:
      name, value = match.group(1).strip(), match.group(2).strip()
      word = f'--gin_bindings={name} = {quote_bare(value, name)}'
    elif word.startswith(('--gin.', '-gin.')):
      raise UserError(f'{word}: write --gin.NAME=VALUE')
    words.append(word)
  return words


def quote_bare(value: str, name: str = '') -> str:
  """A value as gin reads it.

  Args:
    value: What was typed after the equals sign.
    name: What it is bound to; folders and paths are never numbers.

  Returns:
    The value, quoted if it is a bare word or path.
  """
  if value.lower() in ('true', 'false'):
    return value.capitalize()
  try:
    literal = ast.literal_eval(value)
  except (ValueError, SyntaxError):
    bare = re.fullmatch(r"[A-Za-z_/.~*][^'\"()%@]*", value)
    return repr(value) if bare else value
  is_path = re.search(r'(DIR|PATH|FILES)$', name)
  return repr(value) if is_path and isinstance(literal, int) else value


def _run(
  entry: str,
  run_file: str,
  body: Callable[[], int] | None,
  base: str | None,
  then: str | None,
) -> int:
  """Sets up the process, reads the configuration, calls the entry point."""
  from metro_jax.training import model_dir  # Seconds that --help need not pay.

  # Machines that share the work of corrupting need not know of each other.
  alone = entry == 'offline.corrupt' and not _COORDINATOR.value
  alone = alone and (_INDEX.value, _COUNT.value) != (None, None)
  _set_up_process(join=body is None and not alone)
  _read_config(entry, run_file, base)
  if body:
    return body()
  arguments = {}
  if entry == 'training.train':
    arguments = {'dry_run': _DRY_RUN.value, 'profile_steps': _PROFILE.value}
    if not _DRY_RUN.value:
      model_dir.claim(macro('MODEL_DIR'), gin.config_str())
  elif entry == 'offline.corrupt':
    arguments = {'process_index': _INDEX.value, 'process_count': _COUNT.value}
  result = gin.get_configurable(entry)(**arguments)
  stopped = getattr(result, 'signal', None)
  if then and stopped is None and not _DRY_RUN.value:
    gin.get_configurable(then)()
  return 128 + stopped if stopped == signal.SIGINT else 0


def _set_up_process(join: bool) -> None:
  """What must be known before jax looks for devices and TFDS for data."""
  if _TFDS.value:
    os.environ['TFDS_DATA_DIR'] = _TFDS.value
  if not os.environ.get('JAX_COMPILATION_CACHE_DIR'):
    data_dir = os.environ.get('METRO_DATA_DIR') or '~/.cache/metro_jax'
    cache = os.environ.get('METRO_COMPILATION_CACHE') or f'{data_dir}/jax_cache'
    jax.config.update('jax_compilation_cache_dir', os.path.expanduser(cache))
  given = (_COORDINATOR.value, _COUNT.value, _INDEX.value)
  if _MULTIPROCESS.value and given == (None, None, None):
    raise UserError('--multiprocess_gpu needs --coordinator_address')
  host_memory.keep_pages()
  if join:
    hosts.join(*given)


# ----------------------------------------------------------------------
# Gin files and bindings.
# ----------------------------------------------------------------------


def _read_config(entry: str, run_file: str, base: str | None) -> None:
  """Parses the run file, the user's files and the user's bindings."""
  # Gin's other reader takes folders for Python packages, and fails on those
  # that are none.
  gin.config._FILE_READERS[:] = [(open, os.path.isfile)]
  for path in (str(ROOT), str(ROOT / 'gin_configs'), *_SEARCH_PATHS.value):
    gin.add_config_file_search_path(path)
  if base:
    _parse_base(base)
  _parse_file(run_file)
  if _SAFE_GIN.value:
    gin_safety.restrict(gin.config, _SAFE_IMPORTS.value)
  files = list(_GIN_FILE.value)
  if entry == 'training.evaluate':
    files.insert(0, str(_model_dir('MODEL_DIR') / 'config.gin'))
  elif not files and not base:
    raise UserError(
      'no recipe: add --gin_file=metro_lm/tiny.gin, or another of gin_configs/'
    )
  for path in files:
    _parse_file(path)
  known = _macros_in_use()
  for binding in _GIN_BINDINGS.value:
    _parse_binding(binding, known)
  missing = [
    name
    for name, value in _macros_in_use().items()
    if repr(value) == repr(_REQUIRED)
  ]
  if missing:
    raise UserError(f'{missing[0]} is not set: add --gin.{missing[0]}=VALUE')
  try:
    gin.finalize()
  except (ValueError, NameError) as error:
    raise UserError(one_line(error)) from None


def _parse_base(base: str) -> None:
  """Parses config.gin of the run to start from, and keeps its model.

  Its vocabulary goes with its parameters, wherever it was made.
  """
  folder = _model_dir(base)
  _parse_file(str(folder / 'config.gin'))
  if macro('PRETRAINED_MODEL') is None:
    gin.bind_parameter('PRETRAINED_MODEL/gin.macro.value', macro('MODEL'))
  gin.parse_config(f'VOCABULARY = {str(folder / "vocabulary.model")!r}')


def _model_dir(name: str) -> pathlib.Path:
  """The MODEL_DIR that the command line names; a checkpoint lies in one."""
  for binding in reversed(_GIN_BINDINGS.value):
    given, _, value = binding.partition('=')
    if given.strip() == name:
      if not value.strip():
        raise UserError(f'{name} is empty: write --gin.{name}=FOLDER')
      path = pathlib.Path(str(gin.config.parse_value(value.strip())))
      if re.fullmatch(r'checkpoint_\d+', path.name):
        path = path.parent
      if not (path / 'config.gin').is_file():
        raise UserError(
          f'{path}/config.gin does not exist; {name} must be a folder that'
          ' metro_jax.train made'
        )
      return path
  raise UserError(f'{name} is not set: add --gin.{name}=FOLDER')


def _parse_file(path: str) -> None:
  try:
    gin.parse_config_file(path)
  except OSError as error:
    raise UserError(f'--gin_file={path}: {one_line(error)}') from None
  except (
    ValueError,
    SyntaxError,
    NameError,
    AttributeError,
    ImportError,
    tokenize.TokenError,
  ) as error:
    raise UserError(f'{path}: {_explain(error)}') from None


def _parse_binding(binding: str, known: Mapping[str, Any]) -> None:
  """Parses one binding of the command line, strictly.

  Args:
    binding: In gin's syntax.
    known: Macros that the files define or use, with their values. Gin would
      take any name; here one that nobody reads is a mistake.
  """
  name, _, value = (part.strip() for part in binding.partition('='))
  if re.fullmatch(r'\w+', name):
    if name not in known:
      raise UserError(f'unknown parameter {name}{did_you_mean(name, known)}')
    value = _as_type_of(known[name], name, value)
  try:
    gin.parse_config(f'{name} = {value}')
  except (
    ValueError,
    SyntaxError,
    NameError,
    AttributeError,
    ImportError,
    tokenize.TokenError,
  ) as error:
    raise UserError(f'--gin.{name}={value}: {_explain(error)}') from None


def _as_type_of(default: Any, name: str, value: str) -> str:
  """Refuses words where the files have numbers; 1e5 steps are 100000 steps."""
  kinds = {bool: 'True or False', int: 'a whole number', float: 'a number'}
  if type(default) not in kinds or value[:1] in ('@', '%') or value == 'None':
    return value
  try:
    given = ast.literal_eval(value)
  except (ValueError, SyntaxError):
    given = None
  if isinstance(default, bool):
    good = isinstance(given, bool)
  else:
    good = isinstance(given, int | float) and not isinstance(given, bool)
  if good and type(default) is int:
    good = given == int(given)
    value = str(int(given)) if good else value
  if not good:
    raise UserError(f'{name} takes {kinds[type(default)]}, not {value}')
  return value


def _macros_in_use() -> dict[str, Any]:
  """Macros with a value, and those referred to, as required."""
  config = gin.config._CONFIG  # Gin has no public way to list them.
  macros = {
    scope: parameters.get('value')
    for (scope, selector), parameters in config.items()
    if selector == 'gin.macro'
  }
  for reference in gin.config.iterate_references(config, to=gin.config.macro):
    macros.setdefault('/'.join(reference.scopes), _REQUIRED)
  return macros


def macro(name: str) -> Any:
  """The value of a macro, as it was bound; None if there is none."""
  return gin.config._CONFIG.get((name, 'gin.macro'), {}).get('value')


def build(entry: str, **macros: Any) -> Any:
  """Calls a configurable with some macros set to other values."""
  with gin.unlock_config():
    for name, value in macros.items():
      gin.parse_config(f'{name} = {value!r}')
  return gin.get_configurable(entry)()


def _explain(error: Exception) -> str:
  return gin_messages.explain(error, gin.config._REGISTRY)
