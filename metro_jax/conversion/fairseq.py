# SPDX-License-Identifier: Apache-2.0
"""What fairseq's checkpoints of COCO-LM, AMOS and METRO-T5 have in common.

fairseq numbers its vocabulary <s>, <pad>, </s>, <unk>, pieces, and what a task
adds ([MASK], sentinels) at the end. This project begins with [PAD], [UNK],
[CLS], [SEP], [MASK] and ends with sentinels, <extra_id_0> last. So rows of the
tables move: `order` says which.
"""

import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from metro_jax.conversion import pickles, rules
from metro_jax.conversion.rules import LINEAR, SAME, VECTOR, Rule, Tensors
from metro_jax.errors import UserError

EPSILON = 1e-5
# Buckets -> the distance of the last; the papers' pairs. No file has it.
DISTANCES = {32: 128, 64: 128, 128: 256}
_BOS, _PAD, _EOS, _UNK = range(4)

_HEADS = rules.LINEAR_OF_HEADS


def attention(ours: str, theirs: str) -> tuple[tuple[str, str, Any], ...]:
  """Rules of one attention, for `rules.layers`."""
  out = []
  for here, there in (('query', 'q'), ('key', 'k'), ('value', 'v')):
    name = f'{theirs}.{there}_proj'
    out.append((f'{ours}/{here}/kernel', f'{name}.weight', LINEAR))
    out.append((f'{ours}/{here}/bias', f'{name}.bias', VECTOR))
  norm = f'{theirs}_layer_norm'
  return (
    *out,
    (f'{ours}/out/kernel', f'{theirs}.out_proj.weight', _HEADS),
    (f'{ours}/out/bias', f'{theirs}.out_proj.bias', SAME),
    (f'{ours}_norm/scale', f'{norm}.weight', SAME),
    (f'{ours}_norm/bias', f'{norm}.bias', SAME),
  )


MLP = (
  ('mlp/wi/kernel', 'fc1.weight', LINEAR),
  ('mlp/wi/bias', 'fc1.bias', SAME),
  ('mlp/wo/kernel', 'fc2.weight', LINEAR),
  ('mlp/wo/bias', 'fc2.bias', SAME),
  ('mlp_norm/scale', 'final_layer_norm.weight', SAME),
  ('mlp_norm/bias', 'final_layer_norm.bias', SAME),
)
LAYER = (*attention('attention', 'self_attn'), *MLP)


def mlm_head(ours: str, theirs: str, vocabulary: rules.Form) -> list[Rule]:
  """Rules of a masked-language-model head."""
  return [
    *rules.dense(f'{ours}/dense', f'{theirs}.dense'),
    *rules.norm(f'{ours}/norm', f'{theirs}.layer_norm'),
    Rule(f'{ours}/bias', f'{theirs}.bias', vocabulary),
  ]


def order(size: int, sentinels: int) -> np.ndarray:
  """Which of fairseq's rows is each of ours.

  Args:
    size: of the vocabulary.
    sentinels: symbols at its end, the first of them the mask token.

  Returns:
    int [size].
  """
  added = size - sentinels
  first = [_PAD, _UNK, _BOS, _EOS, added]
  pieces = np.arange(4, added)
  return np.concatenate([first, pieces, np.arange(size - 1, added, -1)])


def count_layers(source: str, tensors: Tensors, prefix: str) -> int:
  """How many layers there are under `prefix`.<i>."""
  found = {
    name.removeprefix(f'{prefix}.').split('.')[0]
    for name in tensors
    if name.startswith(f'{prefix}.')
  }
  count = len(found)
  if found != {str(i) for i in range(count)} or not count:
    raise UserError(f'{source}: lacks layers of {prefix}')
  return count


def shape(source: str, tensors: Tensors, name: str) -> tuple[int, int]:
  """Shape of a matrix that a model's sizes are read from."""
  x = tensors.get(name)
  if x is None or x.ndim != 2:
    raise UserError(f'{source}: lacks the matrix {name}')
  return x.shape


def distance(source: str, buckets: int) -> int:
  """The distance that the papers use with so many buckets."""
  if buckets not in DISTANCES:
    raise UserError(
      f'{source}: {buckets} buckets of relative positions; the distance of the'
      f' last is known for {sorted(DISTANCES)} only'
    )
  return DISTANCES[buckets]


def split_projections(tensors: Tensors) -> Tensors:
  """`in_proj`, which holds queries, keys and values, as three."""
  out = {}
  for name, x in tensors.items():
    if '.in_proj.' in name and len(x) % 3 == 0:
      for part, rows in zip('qkv', np.split(x, 3), strict=True):
        out[name.replace('.in_proj.', f'.{part}_proj.')] = rows
    else:
      out[name] = x
  return out


def read(source: pathlib.Path, architectures: Any) -> tuple[Any, dict, Tensors]:
  """The architecture, settings and tensors of a `.pt` file.

  Args:
    source: the file.
    architectures: modules with a function `owns(tensors)`.
  """
  loaded = pickles.load(source)
  model = loaded.get('model') if isinstance(loaded, Mapping) else None
  if not isinstance(model, Mapping):
    raise UserError(f'{source}: is no fairseq checkpoint: it has no "model"')
  tensors = {k: x for k, x in model.items() if isinstance(x, np.ndarray)}
  for architecture in architectures:
    if architecture.owns(tensors):
      return architecture, {}, tensors
  raise UserError(f'{source}: is neither COCO-LM, AMOS nor METRO-T5')
