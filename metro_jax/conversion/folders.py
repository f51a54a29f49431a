# SPDX-License-Identifier: Apache-2.0
"""Model folders of the Hugging Face kind: config.json and tensors."""

import json
import pathlib
from typing import Any

import ml_dtypes
import numpy as np

from metro_jax.conversion import pickles
from metro_jax.conversion.rules import Tensors
from metro_jax.errors import UserError

SAFETENSORS = 'model.safetensors'
_PICKLED = 'pytorch_model.bin'
CONFIG = 'config.json'
_DTYPES = {
  'F64': np.float64,
  'F32': np.float32,
  'F16': np.float16,
  'BF16': ml_dtypes.bfloat16,
  'I64': np.int64,
  'I32': np.int32,
  'U8': np.uint8,
  'BOOL': np.bool_,
}


def read_config(folder: pathlib.Path) -> dict[str, Any]:
  """config.json of a model folder."""
  return _read_json(folder / CONFIG)


def read_tensors(folder: pathlib.Path) -> Tensors:
  """All tensors of a model folder; safetensors are preferred to pickles.

  Raises:
    UserError: if there are none, a file is broken, or an index names a file
      outside of the folder.
  """
  for name, read in ((SAFETENSORS, _read_safetensors), (_PICKLED, _read_bin)):
    index = folder / f'{name}.index.json'
    if (folder / name).is_file():
      return read(folder / name)
    if index.is_file():
      tensors: Tensors = {}
      for shard in _shards(index):
        tensors |= read(shard)
      return tensors
  raise UserError(
    f'{folder}: holds neither {SAFETENSORS} nor {_PICKLED}; give the folder of'
    ' a model'
  )


def write(
  folder: pathlib.Path, config: dict[str, Any], tensors: Tensors
) -> None:
  """Writes config.json and model.safetensors."""
  from safetensors import numpy as safetensors

  folder.mkdir(parents=True, exist_ok=True)
  (folder / CONFIG).write_text(json.dumps(config, indent=2) + '\n')
  # transformers reads the framework's name from the metadata.
  safetensors.save_file(tensors, folder / SAFETENSORS, {'format': 'pt'})


def _shards(index: pathlib.Path) -> list[pathlib.Path]:
  """Files that an index names, all of them in its own folder."""
  names = _read_json(index).get('weight_map')
  if not isinstance(names, dict):
    raise UserError(f'{index}: has no weight_map')
  out = []
  for name in sorted(set(map(str, names.values()))):
    path = index.parent / name
    # Not through a link either.
    inside = path.resolve().parent == index.parent.resolve()
    if pathlib.PurePath(name).name != name or not inside:
      raise UserError(f'{index}: names {name!r}, outside of its folder')
    if not path.is_file():
      raise UserError(f'{index}: names {name!r}, which is not there')
    out.append(path)
  return out


def _read_safetensors(path: pathlib.Path) -> Tensors:
  import safetensors

  # Its own reader for NumPy has no bfloat16.
  try:
    found = safetensors.deserialize(path.read_bytes())
    return {
      name: np.frombuffer(x['data'], _DTYPES[x['dtype']]).reshape(x['shape'])
      for name, x in found
    }
  except KeyError as error:
    raise UserError(f'{path}: numbers of type {error} are not read') from error
  except (safetensors.SafetensorError, ValueError) as error:
    raise UserError(f'{path}: broken safetensors file ({error})') from error


def _read_bin(path: pathlib.Path) -> Tensors:
  loaded = pickles.load(path)
  if not isinstance(loaded, dict):
    raise UserError(f'{path}: does not hold tensors by name')
  return {str(k): x for k, x in loaded.items() if isinstance(x, np.ndarray)}


def _read_json(path: pathlib.Path) -> dict[str, Any]:
  try:
    value = json.loads(path.read_text(encoding='utf-8'))
  except (OSError, ValueError, RecursionError) as error:
    raise UserError(f'{path}: cannot be read ({error})') from error
  if not isinstance(value, dict):
    raise UserError(f'{path}: is not a JSON object')
  return value
