# SPDX-License-Identifier: Apache-2.0
"""Corruption ahead of training: Fast-ELECTRA's offline preprocessing.

A frozen auxiliary at a given temperature makes the same of a row whenever it
is asked. So its part of training is done once, epoch by epoch, at the progress
of the middle of each epoch; row r of epoch e is a function of (seed, e, r).
"""

import contextlib
import dataclasses
import itertools
import pathlib
import time
from collections import Counter
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from metro_jax import frozen_auxiliary
from metro_jax.data import stream_files
from metro_jax.data.token_dataset import TokenDataset
from metro_jax.errors import UserError
from metro_jax.models import PretrainingModel
from metro_jax.training import restore
from metro_jax.training.partial import PartialCheckpoint
from metro_jax.training.progress import Progress, duration, human

# Seconds between lines where an epoch takes long.
_EVERY = 60.0


def corrupt(
  *,
  model: PretrainingModel,
  stream_dir: str,
  train_dataset: TokenDataset,
  eval_datasets: Mapping[str, TokenDataset],
  train_steps: int,
  epochs: int | None = None,
  partial_checkpoint: PartialCheckpoint | None = None,
  random_seed: int = 0,
  shard_rows: int = 16384,
  process_index: int | None = None,
  process_count: int | None = None,
) -> bool:
  """Writes a stream of each dataset, or goes on with it.

  Args:
    model: with the auxiliary; nothing else of it is computed.
    stream_dir: gets a folder for each dataset.
    train_dataset: what is corrupted epoch by epoch.
    eval_datasets: what is corrupted once, as at the end of training, by name.
    train_steps: of the run that is to read the stream.
    epochs: how many to write; None for as many as that run needs.
    partial_checkpoint: where the auxiliary's parameters are.
    random_seed: of the draws. Masks have their dataset's.
    shard_rows: rows of a file.
    process_index: which of the processes that share the work this is; None
      for that of jax.
    process_count: how many these are; None for that of jax.

  Returns:
    Whether the streams are complete; False while other processes have files
    to write.
  """
  index, count = _share_of_work(process_index, process_count)
  for name, value in (
    ('EPOCHS', epochs),
    ('offline.corrupt.shard_rows', shard_rows),
  ):
    if value is not None and value < 1:
      raise UserError(f'{name} is {value}; give 1 or more')
  frozen_auxiliary.check(model)
  steps = _middle_steps(train_dataset, train_steps, epochs)
  with contextlib.ExitStack() as stack:
    stack.enter_context(frozen_auxiliary.local_mesh(train_dataset.batch_size))
    params = frozen_auxiliary.load_params(
      model, train_dataset, partial_checkpoint
    )
    identity = {
      'auxiliary': frozen_auxiliary.described(model.pretrainer.auxiliary),
      'sampler': frozen_auxiliary.described(model.pretrainer.sampler),
      'parameters': frozen_auxiliary.digest(params),
      'checkpoint': _checkpoint_name(partial_checkpoint),
      'random_seed': random_seed,
      'shard_rows': shard_rows,
    }
    compute = frozen_auxiliary.compile_corruption(model, params, random_seed)
    works = []
    for name, dataset, at in (
      ('train', train_dataset, [_progress(model, step) for step in steps]),
      *((name, dataset, [1.0]) for name, dataset in eval_datasets.items()),
    ):
      plan = _plan(model, dataset, at) | identity
      path = pathlib.Path(stream_dir) / name
      writer = stream_files.StreamWriter(path, plan, dataset.vocabulary)
      works.append(_Work(name, dataset, writer, compute, index, count))
    total = sum(len(work.todo) for work in works)
    progress = stack.enter_context(Progress(total))
    meter = _Meter(progress, total)
    return all([work.run(meter) for work in works])


@dataclasses.dataclass(frozen=True)
class _Work:
  """One process's part of one stream."""

  name: str
  dataset: TokenDataset
  writer: stream_files.StreamWriter
  compute: frozen_auxiliary.Compute
  index: int
  count: int

  @property
  def todo(self) -> list[stream_files.Shard]:
    """Files that are this process's to write, and are not there yet."""
    every = stream_files.shards(self.writer.plan)
    mine = itertools.islice(every, self.index, None, self.count)
    return [shard for shard in mine if self.writer.lacks(shard)]

  def run(self, meter: '_Meter') -> bool:
    """Writes them; returns whether the stream is complete."""
    path, todo = self.writer.path, self.todo
    if self.writer.complete:
      meter.progress.note(f'{path} is complete: nothing to do')
      return True
    for epoch, of_epoch in itertools.groupby(todo, lambda shard: shard.epoch):
      counts: Counter = Counter()
      meter.begin()
      for shard in of_epoch:
        array, found = self._shard(shard)
        self.writer.write(shard, array, found)
        counts += found
        meter.advance(found['tokens'], self._title(epoch))
      meter.report(self._title(epoch), counts)
    left = self.writer.finish()
    if left:
      meter.progress.note(
        f'{path}: {left} files are left to the other processes; the last to'
        ' end completes it'
      )
    else:
      meter.progress.note(f'{path} is complete')
    return not left

  def _title(self, epoch: int | None) -> str:
    if epoch is None:
      return f'{self.name} text'
    epochs = self.writer.plan['epochs']
    title = f'{self.name} epoch {epoch + 1}/{len(epochs)}'
    at = epochs[epoch]
    for key in ('temperature', 'gamma'):
      if at.get(key) is not None:
        return f'{title} | {key} {at[key]:.3f}'
    return title

  def _shard(self, shard: stream_files.Shard) -> tuple[np.ndarray, Counter]:
    if shard.epoch is None:
      dtype = stream_files.id_dtype(self.writer.plan['vocabulary_size'])
      tokens = self.dataset.originals(np.array(shard.rows))[0]
      found = Counter(rows=len(tokens), tokens=int(np.count_nonzero(tokens)))
      return tokens.astype(dtype), found
    at = self.writer.plan['epochs'][shard.epoch]['progress']
    return self.compute(self.dataset, shard.epoch, shard.rows, at)


class _Meter:
  """Tells how far a process is, and how fast."""

  def __init__(self, progress: Progress, total: int):
    self.progress = progress
    self._total, self._done, self._tokens = total, 0, 0
    self._start = self._begun = self._told = time.monotonic()

  def begin(self) -> None:
    """Starts an epoch: speed is by epoch."""
    self._begun, self._tokens = time.monotonic(), 0

  def advance(self, tokens: int, title: str) -> None:
    """Counts a file."""
    self._done += 1
    self._tokens += tokens
    self.progress.advance(self._done)
    if time.monotonic() - self._told > _EVERY:
      self._tell(title)

  def report(self, title: str, counts: Mapping[str, int]) -> None:
    """Prints the line of an epoch."""
    share = ''
    if 'replaced' in counts:
      share = f' | replaced {counts["replaced"] / counts["tokens"]:.1%}'
    self._tell(title + share)

  def _tell(self, title: str) -> None:
    now = self._told = time.monotonic()
    speed = human(self._tokens / max(now - self._begun, 1e-9))
    left = (now - self._start) / self._done * (self._total - self._done)
    self.progress.note(f'{title} | {speed} tokens/s | ETA {duration(left)}')


# ----------------------------------------------------------------------
# What is to be written.
# ----------------------------------------------------------------------


def _middle_steps(
  dataset: TokenDataset, train_steps: int, epochs: int | None
) -> list[float]:
  """The training step in the middle of each epoch, as far as it is trained."""
  rows, batch_size = dataset.num_examples, dataset.batch_size
  steps, count = (
    rows / batch_size,
    epochs or -(-train_steps * batch_size // rows),
  )
  ends = [
    min((e + 1) * steps, max(train_steps, e * steps)) for e in range(count)
  ]
  return [(e * steps + end) / 2 for e, end in enumerate(ends)]


def _progress(model: PretrainingModel, step: float) -> float:
  if model.curriculum_steps is None:
    return 1.0
  return min(step / model.curriculum_steps, 1.0)


def _plan(
  model: PretrainingModel, dataset: TokenDataset, progress: list[float]
) -> dict[str, Any]:
  """What the content of a stream follows from, but the auxiliary."""
  length = dataset.length
  return {
    'rows': dataset.num_examples,
    'length': length,
    'slots': min(model.pretrainer.max_predictions or length, length),
    'vocabulary_size': dataset.vocab_size,
    'split': dataset.split,
    'mask_rate': dataset.mask_rate,
    'dataset': dataset.fingerprint,  # Text, order, masks, batch size.
    'batch_size': dataset.batch_size,
    'epochs': [
      {
        'progress': at,
        **frozen_auxiliary.curriculum(model.pretrainer.auxiliary, at),
      }
      for at in progress
    ],
  }


def _checkpoint_name(source: PartialCheckpoint | None) -> str | None:
  if source is None or source.path is None:
    return None
  return str(restore.find_checkpoint(source.path))


def _share_of_work(index: int | None, count: int | None) -> tuple[int, int]:
  if (index is None) != (count is None):
    raise UserError('--process_index and --process_count go together')
  if index is None:
    return jax.process_index(), jax.process_count()
  if not 0 <= index < count:
    raise UserError(
      f'--process_index={index} is not one of 0..{count - 1}, for'
      f' --process_count={count}'
    )
  return index, count
