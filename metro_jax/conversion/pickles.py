# SPDX-License-Identifier: Apache-2.0
"""Tensors out of PyTorch's files, which are pickles, without running them.

A pickle is a program. This reader knows the dozen names that tensors are made
of and nothing else: any other class becomes an inert `Opaque` (fairseq keeps
its settings beside the weights), and what would be called is not called. A file
that names what no checkpoint needs, such as os.system, is refused. It needs no
PyTorch. Both forms are read: the zip archive, and the older sequence
of pickles.
"""

import collections
import io
import math
import pathlib
import pickle
import sys
import zipfile
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np

from metro_jax.errors import UserError

_DTYPES = {
  'FloatStorage': np.float32,
  'DoubleStorage': np.float64,
  'HalfStorage': np.float16,
  'BFloat16Storage': ml_dtypes.bfloat16,
  'LongStorage': np.int64,
  'IntStorage': np.int32,
  'ShortStorage': np.int16,
  'CharStorage': np.int8,
  'ByteStorage': np.uint8,
  'BoolStorage': np.bool_,
}
# Of the standard library, what settings are made of; Python 2's names, too.
_HARMLESS = {
  *('argparse', 'collections', 'copyreg', 'copy_reg', 'datetime', 'decimal'),
  *('enum', 'fractions', 'pathlib', 'typing', 'uuid', '_codecs'),
}
_BUILTIN = ('builtins', '__builtin__')
_BUILTIN_TYPES = {
  *('bool', 'bytearray', 'bytes', 'complex', 'dict', 'float', 'frozenset'),
  *('int', 'list', 'object', 'range', 'set', 'slice', 'str', 'tuple'),
}
# The first of the older form's pickles.
_MAGIC = 0x1950A86A20F9469CFC6C


class Opaque:
  """Stands for an object of a class that is not known here.

  Attributes:
    state: what the file says of it: a dict of attributes, or None.
  """

  def __init__(self, *unused: Any):
    """Takes whatever the class would have been made from."""
    del unused
    self.state: Any = None

  def __setstate__(self, state: Any) -> None:
    self.state = state

  # Lists, dicts and sets of unknown classes are filled item by item.
  def append(self, item: Any) -> None:
    """Leaves an item out."""

  def extend(self, items: Any) -> None:
    """Leaves items out."""

  def __setitem__(self, key: Any, value: Any) -> None:
    """Leaves an item out."""


class _Storage:
  """Numbers that tensors are views of; they may come after the tensors."""

  def __init__(self, dtype: Any, load: Callable[[], bytes]):
    self._dtype, self._load = np.dtype(dtype), load

  def view(self, offset: int, size: tuple[int, ...], stride: tuple[int, ...]):
    flat = np.frombuffer(self._load(), self._dtype)
    last = offset + sum((n - 1) * s for n, s in zip(size, stride, strict=True))
    whole = all(type(n) is int and n >= 0 for n in (offset, *size, *stride))
    fits = math.prod(size) <= flat.size and (0 in size or last < flat.size)
    if not whole or not fits:
      raise ValueError('a tensor reaches beyond its storage')
    steps = [s * flat.itemsize for s in stride]
    return np.lib.stride_tricks.as_strided(
      flat[offset:], size, steps, writeable=False
    ).copy()


class _Tensor:
  """A tensor whose numbers are not read yet."""

  def __init__(self, storage: _Storage, offset: int, size, stride):
    self.place = storage, offset, tuple(size), tuple(stride)

  def __setstate__(self, state: Any) -> None:
    """Parameters may carry attributes, of no use here."""

  def read(self) -> np.ndarray:
    storage, *where = self.place
    return storage.view(*where)


def _rebuild(storage: Any, offset: int, size, stride, *unused: Any) -> _Tensor:
  return _Tensor(storage, offset, size, stride)


def _parameter(tensor: _Tensor, *unused: Any) -> _Tensor:
  return tensor


_KNOWN = {
  ('collections', 'OrderedDict'): collections.OrderedDict,
  ('torch._utils', '_rebuild_tensor_v2'): _rebuild,
  ('torch._utils', '_rebuild_parameter'): _parameter,
}


def _runs_code(module: str, name: str) -> bool:
  """Whether a name is one of Python's own that settings are not made of."""
  root = module.partition('.')[0]
  if root in _BUILTIN:
    return name not in _BUILTIN_TYPES
  return root in sys.stdlib_module_names and root not in _HARMLESS


class _Reader(pickle.Unpickler):
  """An unpickler that can make tensors, plain containers and `Opaque`s."""

  def __init__(self, file: Any, storage: Callable[[Any, str], _Storage]):
    super().__init__(file, encoding='utf-8')
    self._storage = storage

  def find_class(self, module: str, name: str) -> Any:
    if module in ('torch', 'torch.storage') and name in _DTYPES:
      return _DTYPES[name]
    if _runs_code(module, name):
      raise pickle.UnpicklingError(
        f'it names {module}.{name}, which no checkpoint needs and which could'
        ' run code elsewhere'
      )
    return _KNOWN.get((module, name), Opaque)

  def persistent_load(self, place: Any) -> _Storage:
    if not isinstance(place, tuple) or len(place) < 3:
      raise ValueError('a storage is not described as PyTorch does')
    kind, dtype, key = place[:3]
    if kind != 'storage' or not isinstance(dtype, type) or dtype is Opaque:
      raise ValueError('a storage of an unknown type')
    return self._storage(dtype, str(key))


def load(path: pathlib.Path) -> Any:
  """What a PyTorch file holds, tensors as NumPy arrays.

  Args:
    path: a `.pt` or `.bin` file.

  Returns:
    Dicts, lists and scalars as saved; `Opaque` in place of other objects.

  Raises:
    UserError: if it is no such file, or is broken.
  """
  try:
    if zipfile.is_zipfile(path):
      return _arrays(_load_zip(path))
    return _arrays(_load_old(path))
  except Exception as error:  # A broken pickle or archive may raise anything.
    why = ' '.join(str(error).split()) or type(error).__name__
    raise UserError(
      f'{path}: cannot be read as a PyTorch checkpoint ({why})'
    ) from error


def _load_zip(path: pathlib.Path) -> Any:
  archive = zipfile.ZipFile(path)
  (main,) = [n for n in archive.namelist() if n.endswith('data.pkl')]
  folder = main.removesuffix('data.pkl')

  def storage(dtype: Any, key: str) -> _Storage:
    return _Storage(dtype, lambda: archive.read(f'{folder}data/{key}'))

  return _Reader(io.BytesIO(archive.read(main)), storage).load()


def _load_old(path: pathlib.Path) -> Any:
  found: dict[str, bytes] = {}
  sizes: dict[str, int] = {}

  def storage(dtype: Any, key: str) -> _Storage:
    sizes[key] = np.dtype(dtype).itemsize
    return _Storage(dtype, lambda: found[key])

  with path.open('rb') as file:
    if _Reader(file, storage).load() != _MAGIC:
      raise ValueError('it does not begin as one')
    for _ in ('protocol', 'system'):
      _Reader(file, storage).load()
    out = _Reader(file, storage).load()
    for key in _Reader(file, storage).load():
      count = int.from_bytes(file.read(8), 'little')
      found[key] = file.read(count * sizes[key])
  return out


def _arrays(value: Any) -> Any:
  """The same, tensors read."""
  if isinstance(value, _Tensor):
    return value.read()
  if isinstance(value, dict):
    return {k: _arrays(x) for k, x in value.items()}
  if isinstance(value, list | tuple):
    return type(value)(_arrays(x) for x in value)
  return value
