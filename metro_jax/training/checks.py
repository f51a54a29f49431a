# SPDX-License-Identifier: Apache-2.0
"""Whether model, data and MODEL_DIR belong together, before work is done."""

import os
import pathlib
import tempfile
from collections.abc import Mapping
from typing import Any

import jax

from metro_jax.errors import UserError
from metro_jax.models.base import Model
from metro_jax.training.prefetch import Dataset

# What data leave in MODEL_DIR that says which ids stand for what.
_ASSETS = ('*.model', 'tokenizer.json')


def check_periods(
  train_steps: int, stats_period: int, eval_period: int
) -> None:
  """Raises UserError unless all are positive."""
  for name, value in (
    ('TRAIN_STEPS', train_steps),
    ('STATS_PERIOD', stats_period),
    ('EVAL_PERIOD', eval_period),
  ):
    if value < 1:
      raise UserError(f'{name} is {value}; give 1 or more')


def check_optimizer(optimizer: Any) -> None:
  """Raises UserError if gin was given a function in place of its result."""
  if not hasattr(optimizer, 'init'):
    name = getattr(optimizer, '__name__', 'adamw')
    raise UserError(
      f'OPTIMIZER is {name}, not what it returns; a call has parentheses:'
      f' OPTIMIZER = @training.{name}()'
    )


def check_fits(model: Model, dataset: Dataset, what: str) -> None:
  """Raises UserError if rows are too long or ids too large for the model.

  Args:
    model: Tells its `max_length` and `vocab_size`.
    dataset: Tells its `length` and `vocab_size`.
    what: The argument that the dataset was bound to.
  """
  if dataset.length > model.max_length:
    raise UserError(
      f'LENGTH: rows of {what} have {dataset.length} tokens, and the position'
      f' table ends at {model.max_length}; lower LENGTH or raise'
      ' modules.PositionConfig.max_length'
    )
  if dataset.vocab_size > model.vocab_size:
    raise UserError(
      f'VOCAB_SIZE: the vocabulary of {what} has {dataset.vocab_size} ids, and'
      f' the embedding table {model.vocab_size}; set VOCAB_SIZE to'
      f' {dataset.vocab_size} or more'
    )


def check_assets(dataset: Dataset, model_dir: str | os.PathLike) -> None:
  """Raises UserError if MODEL_DIR holds another vocabulary than the data's."""
  with tempfile.TemporaryDirectory() as fresh:
    dataset.save_assets(fresh)
    for asset in sorted(
      p for name in _ASSETS for p in pathlib.Path(fresh).glob(name)
    ):
      held = pathlib.Path(model_dir) / asset.name
      if held.exists() and held.read_bytes() != asset.read_bytes():
        raise UserError(
          f'{held} is not the vocabulary of this dataset; bind VOCABULARY to'
          f' {held}, or name another folder than {model_dir}'
        )


def write_assets(
  dataset: Dataset, model_dir: str | os.PathLike, page: str
) -> None:
  """Writes model-info.txt and the vocabulary.

  Args:
    dataset: Has the vocabulary.
    model_dir: The folder; it exists.
    page: Text of model-info.txt.
  """
  if jax.process_index() == 0:
    dataset.save_assets(model_dir)
    (pathlib.Path(model_dir) / 'model-info.txt').write_text(page)


def check_same_data(
  saved: Mapping[str, Any], now: Mapping[str, Any], model_dir: str
) -> None:
  """Raises UserError if a run would go on with other data or another seed.

  Args:
    saved: `dataset` item of the checkpoint.
    now: The same of this run.
    model_dir: For the message.
  """
  for name, parts in (
    (
      'fingerprint',
      'SOURCE, VOCABULARY, LENGTH, BATCH_SIZE, MASK_RATE,'
      ' PACKING or the text itself',
    ),
    ('seed', 'RANDOM_SEED'),
  ):
    if saved.get(name) != now[name]:
      raise UserError(
        f'{model_dir}: its checkpoint was trained with other data ({parts}'
        f' changed: {name} {saved.get(name)}, now {now[name]}); bind what it'
        ' had (see config.gin there), or use another MODEL_DIR with'
        f' INITIAL_CHECKPOINT_PATH={model_dir}'
      )
