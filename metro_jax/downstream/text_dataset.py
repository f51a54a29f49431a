# SPDX-License-Identifier: Apache-2.0
"""Batches of text-to-text tasks, for `models.TextTaskModel`."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from metro_jax.data import files, hashing, vocabularies
from metro_jax.downstream import registry, t0
from metro_jax.downstream.dataset import Tasks, epoch_order, with_folders
from metro_jax.downstream.records import Task
from metro_jax.downstream.t0_stream import Stream
from metro_jax.downstream.text import TextPair
from metro_jax.errors import UserError

# Token ids of an input and of a target.
_Example = tuple[list[int], list[int]]
# So many examples of a mixture tell how many are too long.
_LOOKED_AT = 500


class TextTaskDataset:
  """One split of text-to-text tasks; several are one stream.

  For training and writing, an example is a record. For rank classification,
  outside training, it is a choice. What a mixture is trained on is read and
  tokenised batch by batch; all else when the dataset is made.

  Attributes:
    batch_size: examples of a global batch.
    length: tokens of an input.
    target_length: tokens of a target, the end token included.
    vocabulary: of the model.
    vocab_size: its number of ids.
    num_examples: examples in an epoch.
    fingerprint: identity of the data and its order.
    truncated: inputs and targets that were cut.
  """

  def __init__(
    self,
    task: Tasks,
    folder: str | os.PathLike | Sequence[str | os.PathLike],
    split: str = 'train',
    length: int = 512,
    target_length: int = 64,
    batch_size: int = 32,
    vocabulary: 'str | vocabularies.Vocabulary' = '',
    seed: int = 0,
    shuffle: bool = True,
    end_id: int = vocabularies.SEP,
    task_names: Sequence[str] | None = None,
  ):
    """Reads and tokenises the split.

    Args:
      task: as in `TaskDataset`; likewise folder, split, batch_size,
        vocabulary, seed and shuffle.
      folder: where the files are.
      split: which of the task's splits.
      length: tokens of an input, specials included.
      target_length: tokens of a target, the end token included.
      batch_size: examples of a global batch.
      vocabulary: the model's, or its path.
      seed: of the order.
      shuffle: a new order each epoch, and targets; False for evaluation.
      end_id: token that ends a target.
      task_names: not needed: the tasks share the decoder.
    """
    del task_names
    if length < 8 or target_length < 2 or batch_size < 1:
      raise UserError(
        f'TASK_LENGTH = {length}, TARGET_LENGTH = {target_length}, BATCH_SIZE ='
        f' {batch_size}: give at least 8, 2 and 1'
      )
    pairs = with_folders(task, folder)
    self.tasks = tuple(t for t, _ in pairs)
    wrong = [t for t in self.tasks if t.kind not in ('generation', 'rank')]
    if wrong:
      raise UserError(
        f'TASK: {wrong[0].name} is no text-to-text task; leave'
        ' finetune/text_to_text.gin out'
      )
    self.split, self.shuffle, self.seed = split, shuffle, seed
    self.batch_size, self.length = batch_size, length
    self.target_length, self.end_id = target_length, end_id
    if not isinstance(vocabulary, vocabularies.Vocabulary):
      vocabulary = vocabularies.Vocabulary(vocabulary)
    self.vocabulary, self.vocab_size = vocabulary, vocabulary.size
    self._stream: Stream | None = None
    content = self._open(pairs)
    self.fingerprint = hashing.short_hash(
      content,
      [t.name for t in self.tasks],
      (split, length, target_length, batch_size, seed, shuffle, end_id),
      vocabulary.hash,
    )

  def _open(self, pairs: Sequence[tuple[Task, Any]]) -> Any:
    """Reads the tasks; returns what identifies their content."""
    self._examples: list[_Example] = []
    self.owners: list[int] = []
    self.truncated = 0
    mixtures = [t for t in self.tasks if isinstance(t, t0.Mixture)]
    if mixtures and len(pairs) > 1:
      raise UserError(f'TASK: {mixtures[0].name} is a mixture; give it alone')
    if mixtures and self.split == 'train':
      return self._open_mixture(*pairs[0])
    self.records = [registry.read(t, f, self.split) for t, f in pairs]
    records = [record for part in self.records for record in part]
    for owner, record in enumerate(records):
      examples = self._encode(record)
      self._examples += examples
      self.owners += [owner] * len(examples)
    self.num_examples = len(self._examples)
    self._tell_cut(self.num_examples)
    return hashing.text_hash(repr([(r.source, r.target) for r in records]))

  def _open_mixture(self, task: t0.Mixture, folder: Any) -> str:
    self._stream = Stream(task, folder, self.seed)
    self.num_examples = self._stream.num_examples
    seen = range(0, self.num_examples, -(-self.num_examples // _LOOKED_AT))
    for number in seen:
      self._encode(self._stream.example(0, number))
    self._tell_cut(len(seen))
    return self._stream.fingerprint

  def _tell_cut(self, seen: int) -> None:
    if self.truncated:
      files.say(
        f'{"+".join(t.name for t in self.tasks)} {self.split}: {self.truncated}'
        f' of {2 * seen} inputs and targets were too long and were cut'
      )

  def _encode(self, record: TextPair) -> list[_Example]:
    """Its examples: one, or one for each choice."""
    texts = (record.target,)
    if record.choices and not self.shuffle:
      texts = record.choices
    source = self._cut(self.vocabulary.encode(record.source), self.length - 2)
    row = [vocabularies.CLS, *source, vocabularies.SEP]
    room = self.target_length - 1
    targets = [self._cut(self.vocabulary.encode(text), room) for text in texts]
    return [(row, [*target, self.end_id]) for target in targets]

  def _example(self, epoch: int, number: int) -> _Example:
    if self._stream is None:
      return self._examples[number]
    return self._encode(self._stream.example(epoch, number))[0]

  def _cut(self, ids: list[int], room: int) -> list[int]:
    self.truncated += len(ids) > room
    return ids[:room]

  @property
  def steps_per_epoch(self) -> int:
    """Batches that show every example once."""
    return -(-self.num_examples // self.batch_size)

  def position(self, step: int) -> dict[str, int]:
    """Where the stream is before `step`: epoch, and example within it."""
    if not self.shuffle:
      step %= self.steps_per_epoch
    epoch, example = divmod(step * self.batch_size, self.num_examples)
    return {'epoch': epoch, 'example': example}

  def batch(
    self, step: int, rows: slice | None = None
  ) -> dict[str, np.ndarray]:
    """The batch of a step, or some of its rows, for `TextToTextModel`."""
    index = epoch_order(self, step, rows)
    first = rows.indices(self.batch_size)[0] if rows else 0
    tokens = np.zeros((len(index), self.length), np.int32)
    targets = np.zeros((len(index), self.target_length), np.int32)
    for row in np.flatnonzero(index >= 0):
      epoch = (step * self.batch_size + first + int(row)) // self.num_examples
      source, target = self._example(epoch, int(index[row]))
      tokens[row, : len(source)] = source
      targets[row, : len(target)] = target
    return {
      'encoder_input_tokens': tokens,
      'encoder_segment_ids': (tokens > 0).astype(np.int32),
      'decoder_target_tokens': targets,
      'decoder_segment_ids': (targets > 0).astype(np.int32),
    }

  def predictions(self, outputs: Mapping[str, np.ndarray]) -> list[Any]:
    """A text for each record: written, or the likeliest choice."""
    (task,), (records,) = self.tasks, self.records
    if task.kind == 'generation':
      written = outputs['tokens'][: self.num_examples]
      return [self._text(row.tolist()) for row in written]
    scores = outputs['score'][: self.num_examples]
    best: dict[int, tuple[float, int]] = {}
    seen: dict[int, int] = {}
    for owner, score in zip(self.owners, scores.tolist(), strict=True):
      number = seen.get(owner, 0)
      seen[owner] = number + 1
      best[owner] = max(best.get(owner, (-np.inf, 0)), (score, -number))
    return [r.choices[-best[n][1]] for n, r in enumerate(records)]

  def _text(self, ids: list[int]) -> str:
    if self.end_id in ids:
      ids = ids[: ids.index(self.end_id)]
    return self.vocabulary.decode(ids)

  def score(self, outputs: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Metrics of a whole split, none of a test split."""
    if self.split.startswith('test'):
      return {}
    (task,), (records,) = self.tasks, self.records
    return task.score(records, self.predictions(outputs))

  def save_assets(self, model_dir: str | os.PathLike) -> None:
    """Copies vocabulary.model there, with a JSON of what it is."""
    self.vocabulary.save(model_dir)
