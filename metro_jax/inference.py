# SPDX-License-Identifier: Apache-2.0
"""A pretrained model as a Python object: text in, answers per token out.

  from metro_jax import inference

  model = inference.load('runs/quickstart')
  model.detect(['The array is returned by the banana.'])[0].p_replaced
  model.fill(['Returns the [MASK] of the array.'])[0].filled
  model.encode(['Some text.'])[0].hidden    # [tokens, width]

Texts go through the model in batches of like length; a text longer than the
model is cut into overlapping windows. Answers come in the order of the texts,
one per text, with the place of every token in it.
"""

import functools
import os
import pathlib
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from flax import linen as nn

from metro_jax import data, inference_text
from metro_jax.errors import UserError
from metro_jax.inference_answers import Candidate as Candidate
from metro_jax.inference_answers import Detection as Detection
from metro_jax.inference_answers import Encoding as Encoding
from metro_jax.inference_answers import Filling as Filling
from metro_jax.inference_answers import Mask as Mask
from metro_jax.inference_text import Token, Window
from metro_jax.models import PretrainingModel
from metro_jax.training import restore

# Models without a position table have no longest sequence of their own.
_LONGEST = 512


class PretrainedModel:
  """A model with its parameters and its vocabulary.

  Attributes:
    model: the functions (`models.PretrainingModel`).
    params: its parameters.
    vocabulary: of its tokens.
    step: the training step of the parameters.
    max_length: the most tokens of a row, [CLS] and [SEP] included.
    batch_size: the most rows that go through the model at once.
  """

  def __init__(
    self,
    model: PretrainingModel,
    params: Any,
    vocabulary: data.Vocabulary,
    step: int = 0,
    batch_size: int = 32,
  ):
    """Puts a model together; `load` does it from a MODEL_DIR."""
    if not isinstance(model, PretrainingModel):
      raise UserError(
        'modes detect, fill and encode need a model that was pretrained with an'
        ' auxiliary, or by MLM; ask this one to generate or score'
      )
    if vocabulary.size > model.vocab_size:
      raise UserError(
        f'vocabulary {vocabulary.path}: its {vocabulary.size} ids are more than'
        f' the {model.vocab_size} of the model (VOCAB_SIZE); use the'
        ' vocabulary.model of the same MODEL_DIR'
      )
    if batch_size < 1:
      raise UserError(f'batch_size = {batch_size}: give 1 or more')
    self.model, self.params, self.step = model, params, step
    self.vocabulary, self.batch_size = vocabulary, batch_size
    has_table = model.max_length < sys.maxsize
    self.max_length = model.max_length if has_table else _LONGEST
    self._tokenize = inference_text.Tokenizer(vocabulary)
    self._compiled: dict[Any, Callable[..., Any]] = {}

  def detect(
    self, texts: Sequence[str], long: str = 'window'
  ) -> list[Detection]:
    """Says of every token how likely it was replaced.

    Args:
      texts: the texts; special tokens typed in them are text.
      long: what becomes of a text that is longer than the model: 'window',
        'truncate' or 'error'.

    Returns:
      One answer a text.
    """
    tokens = self._tokens(texts)
    answers = [np.zeros(len(t), np.float32) for t in tokens]
    chosen = self._windows(tokens, long)
    counts = _kept(chosen, len(texts))
    for window, p in self._run(tokens, chosen, 'detect'):
      answers[window.text][window.keep_start : window.keep_stop] = p[
        _rows(window)
      ]
    return [
      Detection(text, t[:n], p[:n])
      for text, t, p, n in zip(texts, tokens, answers, counts, strict=True)
    ]

  def fill(
    self,
    texts: Sequence[str],
    top_k: int = 5,
    head: str = 'auxiliary',
    long: str = 'window',
  ) -> list[Filling]:
    """Fills in [MASK].

    Args:
      texts: texts with [MASK] in them, as many as wanted; a mask stands for
        one token, which may be less than a word.
      top_k: candidates a mask.
      head: 'auxiliary' for the masked language model; 'lm' for the main
        model, which corrects the auxiliary's best guesses.
      long: as in `detect`.

    Returns:
      One answer a text; it has no masks where the text has none.
    """
    if not 1 <= top_k <= self.vocabulary.size:
      raise UserError(
        f'top_k = {top_k}: give a number from 1 to {self.vocabulary.size}'
      )
    tokens = self._tokens(texts, masks=True)
    answers: list[list[Mask]] = [[] for _ in texts]
    chosen = [
      w
      for w in self._windows(tokens, long)
      if _count_masks(tokens[w.text][w.keep_start : w.keep_stop])
    ]
    # Control symbols are no answer; there is room for the others without them.
    wide = min(top_k + 8, self.vocabulary.size)
    options = {'top_k': wide, 'head': head}
    for window, found in self._run(tokens, chosen, 'fill', options):
      for place, used, ids, p in zip(
        found.positions,
        found.weights,
        found.ids,
        found.probabilities,
        strict=True,
      ):
        index = window.start + int(place) - 1
        if used and window.keep_start <= index < window.keep_stop:
          _, start, end = tokens[window.text][index]
          candidates = self._candidates(ids, p)[:top_k]
          answers[window.text].append(Mask(start, end, candidates))
    for masks in answers:
      masks.sort(key=lambda mask: mask.start)
    return [Filling(t, m) for t, m in zip(texts, answers, strict=True)]

  def encode(
    self, texts: Sequence[str], long: str = 'window'
  ) -> list[Encoding]:
    """Hidden states of the main model.

    Args:
      texts: the texts.
      long: as in `detect`.

    Returns:
      One answer a text.
    """
    tokens = self._tokens(texts)
    width = self.model.pretrainer.main.config.embed_dim
    chosen = self._windows(tokens, long)
    counts = _kept(chosen, len(texts))
    hidden = [np.zeros((n, width), np.float32) for n in counts]
    cls = np.zeros((len(texts), width), np.float32)
    number = np.zeros(len(texts), np.float32)
    for window, h in self._run(tokens, chosen, 'encode'):
      h = np.asarray(h, np.float32)
      kept = slice(window.keep_start, window.keep_stop)
      hidden[window.text][kept] = h[_rows(window)]
      cls[window.text] += h[0]
      number[window.text] += 1
    cls /= np.maximum(number, 1)[:, None]
    return [
      Encoding(text, t[:n], h, c)
      for text, t, h, c, n in zip(
        texts, tokens, hidden, cls, counts, strict=True
      )
    ]

  def _tokens(
    self, texts: Sequence[str], masks: bool = False
  ) -> list[list[Token]]:
    if isinstance(texts, str):
      raise UserError('texts: give a list of texts, not one text')
    return [self._tokenize(text, masks) for text in texts]

  def _windows(self, tokens: list[list[Token]], long: str) -> list[Window]:
    room = self.max_length - 2
    return inference_text.windows([len(t) for t in tokens], room, long)

  def _run(
    self,
    tokens: list[list[Token]],
    chosen: list[Window],
    mode: str,
    options: dict[str, Any] | None = None,
  ) -> Iterator[tuple[Window, Any]]:
    """Each window with its row of the answer."""
    for members, length in inference_text.batches(
      chosen, self.batch_size, self.max_length
    ):
      ids = [
        [t.id for t in tokens[w.text][w.start : w.stop]]
        for w in (chosen[i] for i in members)
      ]
      # Few sizes, so that few programs are compiled.
      count = min(_power_of_two(len(ids)), self.batch_size)
      batch = inference_text.rows(ids, length, count)
      given = dict(options or {})
      if mode == 'fill':
        most = int(batch['encoder_loss_weights'].sum(axis=1).max())
        given['max_fills'] = min(_power_of_two(most), length)
      answer = jax.device_get(self._function(mode, given)(self.params, batch))
      for row, index in enumerate(members):
        yield chosen[index], jax.tree.map(lambda x, r=row: x[r], answer)

  def _function(self, mode: str, options: dict[str, Any]) -> Callable[..., Any]:
    key = (mode, *sorted(options.items()))
    if key not in self._compiled:
      predict = functools.partial(
        self.model.predict_batch, mode=mode, **options
      )
      self._compiled[key] = jax.jit(predict)
    return self._compiled[key]

  def _candidates(
    self, ids: np.ndarray, probabilities: np.ndarray
  ) -> list[Candidate]:
    out = []
    for id_, p in zip(ids.tolist(), probabilities.tolist(), strict=True):
      # Rows of the model's table over the vocabulary's size stand for nothing.
      if id_ < self.vocabulary.size and not self.vocabulary.is_special(id_):
        piece = self.vocabulary.piece(id_)
        starts_word = piece.startswith('\u2581')
        text = piece.replace('\u2581', ' ').strip()
        out.append(Candidate(text, starts_word, p, id_))
    return out


def load(
  model_dir: str | os.PathLike,
  step: int | None = None,
  batch_size: int = 32,
) -> PretrainedModel:
  """Loads a model from the folder that training wrote.

  Args:
    model_dir: MODEL_DIR: config.gin, vocabulary.model, checkpoint_<step>/.
    step: which checkpoint; None for the newest.
    batch_size: the most rows that go through the model at once.

  Returns:
    The model, its parameters on the first device.
  """
  return PretrainedModel(*restore_model(model_dir, step), batch_size)


def restore_model(
  model_dir: str | os.PathLike, step: int | None = None
) -> tuple[Any, Any, data.Vocabulary, int]:
  """Model, parameters, vocabulary and step of a MODEL_DIR."""
  from metro_jax import gin_loading  # The class above needs no gin.

  folder = pathlib.Path(model_dir).expanduser()
  if not folder.is_dir():
    raise UserError(
      f'model_dir {folder}: no such folder; give the MODEL_DIR of a training'
      ' run'
    )
  model = gin_loading.load_model(folder / 'config.gin')
  if not hasattr(model, 'predict_batch'):
    raise UserError(
      f'model_dir {folder}: was fine-tuned, and answers for the files of its'
      ' task only (docs/finetuning.md); give the MODEL_DIR of a pretraining run'
    )
  vocabulary = data.open_vocabulary(folder)
  checkpoint = restore.find_checkpoint(str(folder), step)
  found = int(checkpoint.name.removeprefix(f'{restore.PREFIX}_'))
  params = restore.restore_params(str(checkpoint), _params_like(model))
  return model, params, vocabulary, found


def _params_like(model: PretrainingModel) -> Any:
  """Shapes of the parameters, all of them on the first device."""
  batch = model.build_batch_spec(1, min(8, model.max_length))
  boxed = jax.eval_shape(model.init, jax.random.key(0), batch)
  here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  return jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here),
    nn.unbox(boxed),
  )


def _rows(window: Window) -> slice:
  """Where a window's kept tokens lie in its row, after [CLS]."""
  shift = 1 - window.start
  return slice(window.keep_start + shift, window.keep_stop + shift)


def _kept(chosen: list[Window], texts: int) -> list[int]:
  """How many tokens of each text have an answer."""
  counts = [0] * texts
  for window in chosen:
    counts[window.text] = max(counts[window.text], window.keep_stop)
  return counts


def _count_masks(tokens: list[Token]) -> int:
  return sum(t.id == data.Vocabulary.mask_id for t in tokens)


def _power_of_two(n: int) -> int:
  return 1 << (n - 1).bit_length()
