# SPDX-License-Identifier: Apache-2.0
"""An encoder-decoder as a Python object: texts in, texts or scores out.

  from metro_jax import writing

  model = writing.load('runs/metro_t5')
  model.generate(['Returns the array.'], beams=4)[0].written
  model.score([('Returns the array.', 'Returns the list.')])[0].log_probability

A run of METRO-T5 or T5, pretrained or fine-tuned. In inputs and targets,
[MASK] and <extra_id_0>, <extra_id_1>, ... are those tokens.
"""

import dataclasses
import functools
import os
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from metro_jax import data, inference, inference_text
from metro_jax.errors import UserError
from metro_jax.models import PretrainingModel, TextTaskModel, TextToTextModel

_TYPED = re.compile(r'(\[MASK\]|<extra_id_\d+>)')


@dataclasses.dataclass(frozen=True)
class Written:
  """A text that was written.

  Attributes:
    text: the input.
    written: what the decoder wrote; sentinels are there, [CLS] is not.
    log_probability: of all its tokens; divided by the length penalty after a
      beam search.
  """

  text: str
  written: str
  log_probability: float


@dataclasses.dataclass(frozen=True)
class Scored:
  """A target that was given.

  Attributes:
    text: the input.
    target: as given.
    log_probability: log p(target | input), with the token that ends it.
    tokens: of the target, that one included.
  """

  text: str
  target: str
  log_probability: float
  tokens: int


class _Format(NamedTuple):
  """Whether inputs and targets begin with [CLS], as in training."""

  input_cls: bool
  target_cls: bool


class Writer:
  """An encoder-decoder with its parameters and its vocabulary.

  Attributes:
    model: the functions.
    params: its parameters.
    vocabulary: of its tokens.
    step: the training step of the parameters.
    batch_size: the most rows that go through the model at once.
  """

  def __init__(
    self,
    model: PretrainingModel | TextToTextModel,
    params: Any,
    vocabulary: data.Vocabulary,
    step: int = 0,
    batch_size: int = 32,
  ):
    """Puts a model together; `load` does it from a MODEL_DIR."""
    self._format = _format_of(model)
    if isinstance(model, PretrainingModel):
      model = TextToTextModel.from_pretraining(model)
    if batch_size < 1:
      raise UserError(f'batch_size = {batch_size}: give 1 or more')
    self.model, self.params, self.step = model, params, step
    self.vocabulary, self.batch_size = vocabulary, batch_size
    self._compiled: dict[Any, Callable[..., Any]] = {}

  def generate(
    self,
    texts: Sequence[str],
    length: int | None = None,
    beams: int = 1,
    temperature: float = 0.0,
    top_k: int | None = None,
    seed: int = 0,
    long: str = 'error',
    first: int = 0,
  ) -> list[Written]:
    """Writes a text for each.

    Args:
      texts: the inputs.
      length: most tokens to write; None for as many as the decoder can, 64
        at the most.
      beams: see `TextToTextModel.generate`; likewise temperature, top_k.
      temperature: of sampling; 0 takes the likeliest token.
      top_k: sample among so many tokens.
      seed: of sampling.
      long: of an input that is longer than the model: 'truncate' or 'error'.
      first: number of the first text, so that parts of a list are drawn as
        the whole list would be.

    Returns:
      One answer a text.
    """
    options = {
      'length': length or min(64, self.model.max_target_length),
      'beams': beams,
      'temperature': temperature,
      'top_k': top_k,
    }
    rows = self._inputs(texts, long)
    answers: dict[int, Written] = {}
    for members, batch in self._batches(rows):
      batch['row_ids'] = np.asarray(members, np.int32) + first
      run = self._function('generate', options)
      found = jax.device_get(run(self.params, batch, jax.random.key(seed)))
      tokens, scores = found.tokens, found.scores
      if beams > 1:
        tokens, scores = tokens[:, 0], scores[:, 0]
      for index, ids, score in zip(members, tokens, scores, strict=True):
        written = self._text(ids.tolist())
        answers[index] = Written(texts[index], written, float(score))
    return [answers[index] for index in range(len(texts))]

  def score(
    self, pairs: Sequence[tuple[str, str]], long: str = 'error'
  ) -> list[Scored]:
    """Says how likely each target is, given its input.

    Args:
      pairs: input and target.
      long: as in `generate`; a target is never cut.

    Returns:
      One answer a pair.
    """
    rows = self._inputs([text for text, _ in pairs], long)
    targets = [self._target(n, target) for n, (_, target) in enumerate(pairs)]
    answers: dict[int, Scored] = {}
    for members, batch in self._batches(rows):
      given = [targets[index] for index in members]
      batch['decoder_target_tokens'] = _padded(
        given, self.model.max_target_length
      )
      run = self._function('score', {})
      scores = jax.device_get(run(self.params, batch))
      for index, score in zip(members, scores, strict=True):
        tokens = len(targets[index])
        answers[index] = Scored(*pairs[index], float(score), tokens)
    return [answers[index] for index in range(len(pairs))]

  def _ids(self, text: str) -> list[int]:
    """Tokens of a text, with what is typed as [MASK] or a sentinel."""
    ids: list[int] = []
    for part in _TYPED.split(text):
      if part == inference_text.MASK:
        ids.append(self.vocabulary.mask_id)
      elif _TYPED.fullmatch(part):
        number = int(part.removeprefix('<extra_id_').rstrip('>'))
        ids.append(self.vocabulary.sentinel_id(number))
      else:
        ids += self.vocabulary.encode(part)
    return ids

  def _inputs(self, texts: Sequence[str], long: str) -> list[list[int]]:
    if isinstance(texts, str):
      raise UserError('texts: give a list of texts, not one text')
    room = self.model.max_length - 1 - self._format.input_cls
    rows = []
    for number, text in enumerate(texts):
      ids = self._ids(text)
      if len(ids) > room and long != 'truncate':
        raise inference_text.TooLong(number, len(ids), room, 'truncate')
      cls = [self.vocabulary.cls_id] * self._format.input_cls
      rows.append([*cls, *ids[:room], self.vocabulary.sep_id])
    return rows

  def _target(self, number: int, text: str) -> list[int]:
    cls = [self.vocabulary.cls_id] * self._format.target_cls
    ids = [*cls, *self._ids(text), self.model.end_id]
    if len(ids) > self.model.max_target_length:
      raise inference_text.TooLong(
        number, len(ids), self.model.max_target_length, None
      )
    return ids

  def _batches(
    self, rows: list[list[int]]
  ) -> Iterator[tuple[list[int], dict[str, np.ndarray]]]:
    """Indices of rows of like length, and their batch."""
    order = sorted(range(len(rows)), key=lambda index: len(rows[index]))
    for start in range(0, len(order), self.batch_size):
      members = order[start : start + self.batch_size]
      tokens = _padded([rows[i] for i in members], self.model.max_length)
      yield members, {'encoder_input_tokens': tokens}

  def _function(self, mode: str, options: dict[str, Any]) -> Callable[..., Any]:
    key = (mode, *sorted(options.items(), key=lambda item: item[0]))
    if key not in self._compiled:
      method = {'generate': self._draw, 'score': self.model.score_batch}[mode]
      self._compiled[key] = jax.jit(functools.partial(method, **options))
    return self._compiled[key]

  def _draw(self, params: Any, batch: Any, rng: jax.Array, **options: Any):
    return self.model.generate(params, batch, rng=rng, **options)

  def _text(self, ids: list[int]) -> str:
    if self.model.end_id in ids:
      ids = ids[: ids.index(self.model.end_id)]
    ends = (self.vocabulary.cls_id, self.vocabulary.sep_id)
    return self.vocabulary.decode([i for i in ids if i not in ends])


def load(
  model_dir: str | os.PathLike, step: int | None = None, batch_size: int = 32
) -> Writer:
  """Loads a model from the folder that training wrote.

  Args:
    model_dir: MODEL_DIR of a run of an encoder-decoder.
    step: which checkpoint; None for the newest.
    batch_size: the most rows that go through the model at once.
  """
  return Writer(*inference.restore_model(model_dir, step), batch_size)


def _format_of(model: Any) -> _Format:
  """What rows look like in the training of a model."""
  if isinstance(model, PretrainingModel):
    return _Format(True, True)  # The decoder's target is the row itself.
  # T5's own span corruption, whose decoder starts with [PAD], has no [CLS].
  plain = isinstance(model, TextToTextModel) and (
    model.text_to_text.start_id == data.Vocabulary.pad_id
  )
  return _Format(isinstance(model, TextTaskModel) or not plain, False)


def _padded(rows: Sequence[Sequence[int]], longest: int) -> np.ndarray:
  """int32 [rows, length], in few lengths so that little is compiled."""
  length = inference_text.bucket(max(map(len, rows)), longest)
  out = np.zeros((len(rows), length), np.int32)
  for row, ids in zip(out, rows, strict=True):
    row[: len(ids)] = ids
  return out
