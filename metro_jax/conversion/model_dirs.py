# SPDX-License-Identifier: Apache-2.0
"""MODEL_DIRs as plain arrays: config.gin, vocabulary, newest checkpoint."""

import dataclasses
import pathlib
import re
from typing import Any

import jax
import numpy as np
import optax

from metro_jax import gin_loading
from metro_jax.conversion import description, rules
from metro_jax.conversion.rules import Shape, Tensors
from metro_jax.data import Vocabulary, open_vocabulary
from metro_jax.errors import UserError
from metro_jax.training import CheckpointConfig, restore
from metro_jax.training.checkpoints import Checkpointer
from metro_jax.training.state import TrainState, named_leaves, unbox

_IMPORTS = """\
from __gin__ import dynamic_registration

import metro_jax.gin_registration
from metro_jax import finetune
from metro_jax import models
from metro_jax import modules
from metro_jax import pretrain
"""
_SAMPLE_LENGTH = 8
# Parameters with a row for each token.
_BY_TOKEN = re.compile(r'(.*/)?(token/embedding|(lm|mlm)_head/bias)')


@dataclasses.dataclass(frozen=True)
class Trained:
  """A model, its parameters, and where its vocabulary is.

  Attributes:
    model: the functions.
    params: parameters by slash-joined name, float32; layers apart, whether
      the model scans them or not.
    vocabulary: of its tokens, or None.
    step: training steps that made the parameters.
  """

  model: Any
  params: Tensors
  vocabulary: Vocabulary | None = None
  step: int = 0


def shapes(model: Any) -> dict[str, Shape]:
  """Shapes of a model's parameters by name, layers apart."""
  length = min(_SAMPLE_LENGTH, model.max_length)
  batch = model.build_batch_spec(1, length)
  like = unbox(jax.eval_shape(model.init, jax.random.key(0), batch))
  # Zeros of stride 0: no memory, whatever the size.
  zeros = {
    name: np.broadcast_to(np.float32(0), x.shape)
    for name, x in named_leaves(like).items()
  }
  return {k: x.shape for k, x in rules.split_layers(zeros).items()}


def read(model_dir: pathlib.Path, step: int | None = None) -> Trained:
  """Reads a MODEL_DIR.

  Args:
    model_dir: the folder of a training run.
    step: which checkpoint; None for the newest.

  Raises:
    UserError: if it is none, or has no such checkpoint.
  """
  if not model_dir.is_dir():
    raise UserError(f'{model_dir}: no such folder; give a MODEL_DIR')
  model = gin_loading.load_model(model_dir / 'config.gin')
  checkpoint = restore.find_checkpoint(str(model_dir), step)
  batch = model.build_batch_spec(1, min(_SAMPLE_LENGTH, model.max_length))
  like = unbox(jax.eval_shape(model.init, jax.random.key(0), batch))
  params = restore.restore_params(str(checkpoint), like)
  flat = {k: np.asarray(x) for k, x in named_leaves(params).items()}
  return Trained(
    model,
    rules.split_layers(flat),
    find_vocabulary(model_dir),
    int(checkpoint.name.removeprefix(f'{restore.PREFIX}_')),
  )


def find_vocabulary(folder: pathlib.Path) -> Vocabulary | None:
  """The vocabulary in a folder, if there is one that can be used."""
  if (folder / 'vocabulary.model').is_file():
    return Vocabulary(folder)
  try:
    return open_vocabulary(folder / 'tokenizer.json')
  except UserError:
    return None  # T5's, for example, has no [CLS].


def reorder(params: Tensors, order: np.ndarray, back: bool = False) -> Tensors:
  """The same model for tokens with other ids.

  Args:
    params: parameters by name.
    order: int [ids]; new id i is old id order[i]. Rows of the tables beyond
      stay where they are.
    back: whether to undo it instead.
  """

  def move(x: np.ndarray) -> np.ndarray:
    whole = np.concatenate([order, np.arange(len(order), len(x))])
    return x[np.argsort(whole) if back else whole]

  return {
    k: move(x) if _BY_TOKEN.fullmatch(k) else x for k, x in params.items()
  }


def write(model_dir: pathlib.Path, trained: Trained) -> None:
  """Writes a MODEL_DIR to start training from, or to ask questions.

  Args:
    model_dir: a folder that is not there yet.
    trained: what to write; its model does not scan layers.

  Raises:
    UserError: if the folder is there.
  """
  if model_dir.exists():
    raise UserError(f'{model_dir}: exists; give another folder')
  model_dir.mkdir(parents=True)
  (model_dir / 'config.gin').write_text(config_gin(trained.model))
  if trained.vocabulary is not None:
    trained.vocabulary.save(model_dir)
  state = TrainState.create(tree_of(trained.params), optax.identity())
  state = state.replace(step=np.asarray(trained.step, np.int32))
  checkpointer = Checkpointer(
    str(model_dir), CheckpointConfig(asynchronous=False)
  )
  checkpointer.save_final(state, {}, [])
  checkpointer.close()


def tree_of(params: Tensors) -> dict[str, Any]:
  """Parameters by slash-joined name as the tree that models take."""
  tree: dict[str, Any] = {}
  for name, x in params.items():
    *parents, last = name.split('/')
    node = tree
    for parent in parents:
      node = node.setdefault(parent, {})
    node[last] = x
  return tree


def config_gin(model: Any) -> str:
  """A recipe of the model alone; data and optimizer come from others."""
  lengths = f'LENGTH = {model.max_length}\n' if model.max_length < 2**31 else ''
  return (
    f'# A converted model: MODEL, and what of the data it fixes. A recipe\n'
    f'# before it (--gin_file) brings data and optimizer.\n{_IMPORTS}\n'
    f'VOCAB_SIZE = {model.vocab_size}\n{lengths}\n'
    f'{description.gin_bindings(model)}'
  )
