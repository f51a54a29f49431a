# SPDX-License-Identifier: Apache-2.0
"""Models to and from other libraries' files.

An architecture is a module with MODEL_TYPE (of config.json) and `restore`, and,
if it can be written as well, NAME, `misfit` (why a model cannot be one) and
`export`. Everything is checked before anything is written.
"""

import pathlib
from typing import Any

from metro_jax import data
from metro_jax.conversion import (
  bert,
  card,
  classifiers,
  coco_lm,
  electra,
  folders,
  metro_t0,
  model_dirs,
  native,
  rules,
  t5,
  tokenizer_files,
)
from metro_jax.conversion.model_dirs import Trained
from metro_jax.data import files
from metro_jax.data.tokenizer_vocabulary import TokenizerVocabulary
from metro_jax.errors import UserError

# In the order in which a format is looked for.
_CLASSIFIERS = (classifiers.ELECTRA, classifiers.BERT)
FORMATS = {m.NAME: m for m in (electra, bert, t5, *_CLASSIFIERS, native)}
# By the model_type of config.json.
_READABLE = {
  a.MODEL_TYPE: a for a in (electra, bert, t5, native, metro_t0)
} | dict.fromkeys(coco_lm.MODEL_TYPES, coco_lm)
# By the class that config.json names.
_FINE_TUNED = {c.ARCHITECTURE: c for c in _CLASSIFIERS}


def export_model(
  model_dir: pathlib.Path,
  output: pathlib.Path,
  format_: str = 'auto',
  step: int | None = None,
) -> str:
  """Writes a MODEL_DIR as a folder for other libraries.

  Args:
    model_dir: of a training run.
    output: the folder to make.
    format_: a key of `FORMATS`, or 'auto' for the first that fits.
    step: which checkpoint; None for the newest.

  Returns:
    The format's name.

  Raises:
    UserError: if the model does not fit the format, or `output` is there.
  """
  if output.exists():
    raise UserError(f'--output={output}: exists; give another folder')
  trained = model_dirs.read(model_dir, step)
  name = _choose(trained.model, format_)
  params, vocabulary = trained.params, trained.vocabulary
  if isinstance(vocabulary, TokenizerVocabulary):
    params = model_dirs.reorder(params, vocabulary.order, back=True)
  written = FORMATS[name].export(trained.model, params)
  longest = trained.model.max_length
  longest = longest if longest < 2**31 else None
  output.parent.mkdir(parents=True, exist_ok=True)
  with files.new_folder(output) as scratch:
    for folder, (config, tensors) in written.items():
      folders.write(scratch / folder, config, tensors)
      if vocabulary is not None:
        tokenizer_files.write(scratch / folder, vocabulary, longest)
    card.write(scratch, name, trained, sorted(written))
  return name


def import_model(
  source: pathlib.Path,
  model_dir: pathlib.Path,
  auxiliary: pathlib.Path | None = None,
  vocabulary: pathlib.Path | None = None,
  dtype: str = 'float32',
) -> list[str]:
  """Writes a MODEL_DIR with the parameters of another library's folder.

  Args:
    source: a model folder, or a fairseq checkpoint (`.pt`).
    model_dir: the folder to make.
    auxiliary: the folder of ELECTRA's generator.
    vocabulary: a `.model` file or a tokenizer.json; None for what is in the
      source: vocabulary.model, or else tokenizer.json.
    dtype: of activations, in the config.gin that is written.

  Returns:
    Names of the tensors that have no place here.
  """
  if model_dir.exists():
    raise UserError(f'--model_dir={model_dir}: exists; give another folder')
  model, params, unread = read_model(source, auxiliary, dtype)
  if vocabulary is None:
    found = model_dirs.find_vocabulary(source)
  else:
    found = data.open_vocabulary(vocabulary)
  if found is not None and found.size > model.vocab_size:
    raise UserError(
      f'vocabulary {found.path}: its {found.size} ids are more than the'
      f' {model.vocab_size} of the model'
    )
  if isinstance(found, TokenizerVocabulary):
    params = model_dirs.reorder(params, found.order)
  model_dirs.write(model_dir, Trained(model, params, found))
  return unread


def read_model(
  source: pathlib.Path,
  auxiliary: pathlib.Path | None = None,
  dtype: str = 'float32',
) -> tuple[Any, rules.Tensors, list[str]]:
  """A model, its parameters by name, and tensors that have no place here."""
  if source.is_file():
    architecture, config, tensors = _fairseq(source)
  else:
    config = folders.read_config(source)
    architecture = _architecture(source, config)
    tensors = folders.read_tensors(source)
  model, name_map, tensors = architecture.restore(
    str(source), config, tensors, dtype
  )
  shapes = model_dirs.shapes(model)
  params, unread = name_map.restore(str(source), tensors, shapes)
  if auxiliary is None:
    return model, params, unread
  if architecture is not electra:
    raise UserError(
      f'--auxiliary={auxiliary}: only ELECTRA has it in a folder of its own'
    )
  config = folders.read_config(auxiliary)
  tensors = folders.read_tensors(auxiliary)
  model, name_map, tensors = electra.join(
    str(auxiliary), config, tensors, model, params
  )
  shapes = model_dirs.shapes(model)
  own = {rule.ours for rule in name_map.rules}
  theirs, more = name_map.restore(
    str(auxiliary), tensors, {k: s for k, s in shapes.items() if k in own}
  )
  return model, theirs | params, unread + more


def _choose(model: Any, format_: str) -> str:
  if format_ != 'auto':
    reason = FORMATS[format_].misfit(model)
    if reason:
      raise UserError(f'--format={format_}: the model does not fit: {reason}')
    return format_
  fitting = [n for n, a in FORMATS.items() if a.misfit(model) is None]
  if not fitting:
    raise UserError(f'no format fits: {native.misfit(model)}')
  return fitting[0]


def _architecture(source: pathlib.Path, config: dict[str, Any]) -> Any:
  for name in config.get('architectures') or ():
    if name in _FINE_TUNED:
      return _FINE_TUNED[name]
  kind = config.get('model_type')
  if kind not in _READABLE:
    raise UserError(
      f'{source}/config.json: model_type {kind!r} is not one of'
      f' {", ".join(sorted(_READABLE))}'
    )
  return _READABLE[kind]


def _fairseq(source: pathlib.Path) -> tuple[Any, dict, rules.Tensors]:
  """The architecture and the tensors of a fairseq checkpoint."""
  from metro_jax.conversion import fairseq

  return fairseq.read(source, (coco_lm, metro_t0))
