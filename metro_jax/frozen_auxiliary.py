# SPDX-License-Identifier: Apache-2.0
"""A frozen auxiliary by itself: its identity, and what it makes of rows."""

import contextlib
import dataclasses
import hashlib
from collections import Counter, deque
from collections.abc import Callable, Iterator
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from metro_jax.data import hashing, stream_files
from metro_jax.data.token_dataset import TokenDataset
from metro_jax.errors import UserError
from metro_jax.models import PretrainingModel
from metro_jax.pretrain import MLM, Temperature
from metro_jax.training import orbax_noise, partitioning, prefetch
from metro_jax.training.partial import PartialCheckpoint
from metro_jax.training.state import TrainState, named_leaves, unbox

PyTree = Any
# (dataset, epoch, rows, progress) -> content of a file, counts.
Compute = Callable[
  [TokenDataset, int, range, float], tuple[np.ndarray, Counter]
]
_IN_FLIGHT = 2
_LONG = 16  # Of a tuple; a longer one is named by its hash.


def check(model: PretrainingModel) -> None:
  """Raises UserError unless the auxiliary's answers are known ahead."""
  pretrainer = getattr(model, 'pretrainer', None)
  if getattr(pretrainer, 'auxiliary', None) is None:
    raise UserError(
      'AUXILIARY is None: there is nothing to corrupt with; give the recipe'
      ' that has the auxiliary, such as fast_electra/base.gin'
    )
  if any(isinstance(o, MLM) for o in pretrainer.objectives):
    raise UserError(
      'OBJECTIVES: MLM trains the auxiliary, so that what it makes of a text'
      ' is not known ahead; give a recipe whose auxiliary is frozen, such as'
      ' fast_electra/base.gin'
    )
  shared = [part for part in pretrainer.share if part != 'lm_bias']
  if shared and isinstance(pretrainer.auxiliary, nn.Module):
    raise UserError(
      f'SHARE: the auxiliary shares {shared[0]!r} with the main model, which'
      ' is still to be trained; set SHARE = ()'
    )


@contextlib.contextmanager
def local_mesh(batch_size: int) -> Iterator[None]:
  """A mesh of this host's devices: hosts share no batch here."""
  devices = jax.local_devices()
  if batch_size % len(devices):
    raise UserError(
      f'BATCH_SIZE={batch_size} is not divisible by the {len(devices)} devices'
      ' of this host'
    )
  mesh = jax.make_mesh(
    (len(devices), 1, 1),
    partitioning.MESH_AXES,
    axis_types=(jax.sharding.AxisType.Auto,) * 3,
    devices=devices,
  )
  rules = nn.logical_axis_rules(partitioning.DEFAULT_RULES)
  with jax.set_mesh(mesh), rules:
    yield


def _sharding(*axes: Any) -> jax.sharding.NamedSharding:
  mesh = jax.sharding.get_mesh()
  return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*axes))


def load_params(
  model: PretrainingModel,
  dataset: TokenDataset,
  source: PartialCheckpoint | None,
) -> PyTree:
  """The auxiliary's parameters and no others, on every device."""
  batch = model.build_batch_spec(1, dataset.length)
  shapes = unbox(jax.eval_shape(model.init, jax.random.key(0), batch))
  kept = {k: v for k, v in shapes.items() if k == 'auxiliary'}
  if not kept:
    return {}
  whole = _sharding()
  shapes = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=whole), kept
  )
  if source is None or source.path is None:
    raise UserError(
      'AUX_CHECKPOINT_PATH is not set: the auxiliary would corrupt at random;'
      ' give the MODEL_DIR of its training'
    )
  orbax_noise.silence()
  state = TrainState(np.int32(0), shapes, ())
  return source.load(state, dataset).params


def compile_corruption(
  model: PretrainingModel, params: PyTree, random_seed: int
) -> Compute:
  """Builds (dataset, epoch, rows, progress) -> content of a file, counts."""
  batches = _sharding(partitioning.BATCH_AXES)

  @jax.jit
  def step(params, batch, rng, progress):
    corrupted = model.corrupt_batch(params, batch, rng, progress)
    masked = corrupted.masked
    drawn = masked.gather(corrupted.tokens)
    return masked.masked_positions, masked.weights, masked.targets, drawn

  def compute(
    dataset: TokenDataset, epoch: int, rows: range, progress: float
  ) -> tuple[np.ndarray, Counter]:
    rng = jax.random.fold_in(jax.random.key(random_seed), epoch)
    size, length = dataset.batch_size, dataset.length
    kind = stream_files.slot_dtype(length, dataset.vocab_size)
    parts, found, flying = [], Counter(rows=len(rows)), deque()

    def load(start: int) -> tuple[dict[str, jax.Array], int]:
      index = np.arange(start, start + size)
      index[index >= rows.stop] = -1
      batch = dataset.masked(np.full(size, epoch), index)
      batch['row_ids'] = index.astype(np.uint32)
      tokens = int(np.count_nonzero(batch['encoder_segment_ids']))
      return jax.device_put(batch, batches), tokens

    def land() -> None:
      position, weight, original, drawn = map(np.asarray, flying.popleft())
      used = weight > 0
      part = np.empty(position.shape, kind)
      part['position'] = np.where(used, position, length)
      part['token'] = np.where(used, drawn, 0)
      parts.append(part)
      found['masked'] += int(np.count_nonzero(used))
      found['replaced'] += int(np.count_nonzero(used & (drawn != original)))

    starts = range(rows.start, rows.stop, size)
    for batch, tokens in prefetch.prefetch(load, starts):
      found['tokens'] += tokens
      flying.append(step(params, batch, rng, np.float32(progress)))
      if len(flying) > _IN_FLIGHT:
        land()
    while flying:
      land()
    return np.concatenate(parts)[: len(rows)], found

  return compute


def curriculum(auxiliary: Any, progress: float) -> dict[str, float | None]:
  """Gamma and temperature of an epoch; None where there is none."""
  augmentation = getattr(auxiliary, 'augmentation', None)
  schedule = getattr(augmentation or auxiliary, 'schedule', None)
  gamma = float(schedule(progress)) if schedule else None
  warm = isinstance(augmentation, Temperature)
  return {'gamma': gamma, 'temperature': 1.0 + gamma if warm else None}


def described(part: Any) -> Any:
  """A part of a recipe as plain values: its class and its fields."""
  if part is None or isinstance(part, bool | int | float | str):
    return part
  if isinstance(part, tuple | list):
    if len(part) > _LONG:
      return hashing.short_hash(*part)
    return [described(x) for x in part]
  if dataclasses.is_dataclass(part):
    names = (field.name for field in dataclasses.fields(part))
    fields = {
      name: described(getattr(part, name))
      for name in names
      if name not in ('parent', 'name')  # Linen's own.
    }
    return {'class': type(part).__name__, **fields}
  return type(part).__name__


def digest(params: PyTree) -> str:
  """A hash of parameters by name, shape and value."""
  total = hashlib.sha256()
  for name, x in sorted(named_leaves(params).items()):
    array = np.asarray(x)
    total.update(f'{name} {array.dtype} {array.shape}'.encode())
    total.update(np.ascontiguousarray(array))
  return total.hexdigest()
