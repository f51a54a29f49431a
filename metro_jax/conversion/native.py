# SPDX-License-Identifier: Apache-2.0
"""Folders of this project's own, for models that no library has a class for.

config.json describes the model (`description`), the tensors have the names of
the checkpoint. `load` is the loader:

  from metro_jax.conversion import native

  model = native.load('exported')
  model.encode(['Some text.'])[0].hidden
"""

import os
import pathlib
from typing import Any

import jax
import jax.numpy as jnp

from metro_jax import inference
from metro_jax.conversion import description, folders, model_dirs, rules
from metro_jax.conversion.rules import Rule, Tensors
from metro_jax.data.tokenizer_vocabulary import TokenizerVocabulary
from metro_jax.errors import UserError

NAME = 'native'
MODEL_TYPE = 'metro_jax'


def misfit(model: Any) -> str | None:
  """Why a model cannot be written; None if it can."""
  try:
    description.describe(model)
  except UserError as error:
    return str(error)
  return None


def export(model: Any, params: Tensors) -> dict[str, Any]:
  """Folders of a model: '' -> (config, tensors)."""
  about = {
    'architectures': [type(model).__name__],
    'model_type': MODEL_TYPE,
    'vocab_size': model.vocab_size,
    'model': description.describe(_unscanned(model)),
  }
  return {'': (about, _name_map(params).export(params))}


def restore(
  source: str, config: dict[str, Any], tensors: Tensors, dtype: str
) -> tuple[Any, rules.NameMap, Tensors]:
  """A model for the tensors of a folder, and how to read them."""
  del dtype  # Its own.
  model = description.build(config.get('model', {}), f'{source}/config.json')
  if not hasattr(model, 'build_batch_spec'):
    raise UserError(f'{source}/config.json: describes no model')
  return model, _name_map(model_dirs.shapes(model)), tensors


def load(
  folder: str | os.PathLike, batch_size: int = 32
) -> inference.PretrainedModel:
  """Loads an encoder from an exported folder, to ask it about text.

  Args:
    folder: made by `python -m metro_jax.convert`.
    batch_size: the most rows that go through the model at once.

  Returns:
    The same as `inference.load` makes of a MODEL_DIR.
  """
  folder = pathlib.Path(folder)
  model, name_map, tensors = restore(
    str(folder),
    folders.read_config(folder),
    folders.read_tensors(folder),
    'float32',
  )
  shapes = model_dirs.shapes(model)
  flat, _ = name_map.restore(str(folder), tensors, shapes)
  vocabulary = model_dirs.find_vocabulary(folder)
  if vocabulary is None:
    raise UserError(f'{folder}: has no vocabulary to tokenize text with')
  if isinstance(vocabulary, TokenizerVocabulary):
    flat = model_dirs.reorder(flat, vocabulary.order)
  params = jax.tree.map(jnp.asarray, model_dirs.tree_of(flat))
  return inference.PretrainedModel(model, params, vocabulary, 0, batch_size)


def _name_map(names: Any) -> rules.NameMap:
  return rules.NameMap([Rule(name, name.replace('/', '.')) for name in names])


def _unscanned(model: Any) -> Any:
  """The same model with its layers apart, as exported tensors are."""
  plain = description.describe(model)

  def visit(node: Any) -> Any:
    if isinstance(node, list):
      return [visit(x) for x in node]
    if not isinstance(node, dict):
      return node
    node = {name: visit(x) for name, x in node.items()}
    return node | {'scan_layers': False} if 'scan_layers' in node else node

  return description.build(visit(plain), 'this model')
