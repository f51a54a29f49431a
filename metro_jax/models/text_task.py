# SPDX-License-Identifier: Apache-2.0
"""An encoder-decoder on a task: what it predicts is written or ranked."""

import dataclasses

import jax

from metro_jax.errors import UserError
from metro_jax.models.base import Batch, Params
from metro_jax.models.pretraining import PretrainingModel
from metro_jax.models.text_to_text_model import TextToTextModel


@dataclasses.dataclass(frozen=True)
class TextTaskModel(TextToTextModel):
  """A `TextToTextModel` that tells an evaluation its predictions.

  Attributes:
    ranks: whether targets are choices to be scored, instead of examples of
      what to write.
    beams: sequences that a beam search keeps; 1 takes the likeliest token.
    alpha: length penalty of the beam search.
  """

  ranks: bool = False
  beams: int = 1
  alpha: float = 0.6

  def outputs(self, params: Params, batch: Batch) -> dict[str, jax.Array]:
    """`score` float32 [batch], or `tokens` int32 [batch, target length]."""
    if self.ranks:
      return {'score': self.score_batch(params, batch)}
    length = batch['decoder_target_tokens'].shape[1]
    written = self.generate(
      params, batch, length, beams=self.beams, alpha=self.alpha
    )
    tokens = written.tokens
    return {'tokens': tokens[:, 0] if self.beams > 1 else tokens}


def for_text(
  pretrained: PretrainingModel | TextToTextModel,
  tasks: dict[str, tuple[str, int]],
  target_length: int,
  beams: int = 1,
  alpha: float = 0.6,
  dropout_rate: float = 0.1,
) -> TextTaskModel:
  """The encoder-decoder of a pretraining run, for text-to-text tasks.

  Args:
    pretrained: the model of that run; its parameters load by name.
    tasks: name -> (kind, 0); kinds are 'generation' and 'rank'.
    target_length: tokens of a target.
    beams: see `TextTaskModel`; likewise alpha.
    alpha: length penalty.
    dropout_rate: of encoder and decoder.

  Returns:
    The model.
  """
  kinds = {kind for kind, _ in tasks.values()}
  if len(kinds) > 1:
    raise UserError(
      'TASK: tasks with answer choices and tasks without are evaluated'
      ' differently; train them in two runs'
    )
  if isinstance(pretrained, PretrainingModel):
    pretrained = TextToTextModel.from_pretraining(pretrained)
  module = pretrained.text_to_text.clone(dropout_rate=dropout_rate)
  return TextTaskModel(
    module,
    pretrained.end_id,
    target_length,
    ranks=kinds == {'rank'},
    beams=beams,
    alpha=alpha,
  )
