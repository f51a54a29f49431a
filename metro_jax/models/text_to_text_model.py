# SPDX-License-Identifier: Apache-2.0
"""Training, scoring and writing with an encoder-decoder on pairs of texts.

T5's pretraining (span corruption) and any task that is cast as text.
"""

import dataclasses
import sys
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from metro_jax import decoding, flops, losses
from metro_jax.errors import UserError
from metro_jax.metrics import Mean
from metro_jax.models.base import Batch, Metrics, Params
from metro_jax.models.pretraining import PretrainingModel
from metro_jax.models.text_to_text import TextToText, segments_of
from metro_jax.modules import DecodeStep, TransformerConfig

_NAME = 'lm'  # Of the one loss term.


@dataclasses.dataclass(frozen=True)
class TextToTextModel:
  """`models.Model` for text to text, with scoring and generation.

  A batch has encoder_input_tokens [batch, length] and decoder_target_tokens
  [batch, target length]; optionally, for either stream, segment_ids and
  positions, then decoder_input_tokens (else the targets, one late) and
  decoder_loss_weights (else 1 where there is a token).

  Attributes:
    text_to_text: the module.
    end_id: token that ends a text; targets hold it.
    target_length: tokens of a target, for `init` and FLOPs; None for as many
      as the input has.
    z_loss: weight of (log of the softmax's sum)^2, which keeps it near 0.
  """

  text_to_text: TextToText
  end_id: int = 3
  target_length: int | None = None
  z_loss: float = 0.0

  @classmethod
  def from_pretraining(cls, model: PretrainingModel) -> 'TextToTextModel':
    """The main model of a METRO-T5 run; takes the run's parameters as is."""
    pretrainer = model.pretrainer
    if 'lm_bias' in pretrainer.share and pretrainer.lm_head.use_bias:
      raise UserError(
        "Pretrainer.share: with 'lm_bias' the auxiliary holds the bias of the"
        ' main model, which cannot write text without it; leave it out'
      )
    module = TextToText(
      pretrainer.config,
      pretrainer.main,
      pretrainer.lm_head,
      pretrainer.dropout_rate,
      pretrainer.decoder_start_id,
    )
    return cls(module)

  @property
  def vocab_size(self) -> int:
    """Ids that the model can embed: 0..vocab_size - 1."""
    return self.text_to_text.config.vocab_size

  @property
  def max_length(self) -> int:
    """The longest input; sys.maxsize where positions are relative only."""
    return _rows_of_positions(self.text_to_text.config)

  @property
  def max_target_length(self) -> int:
    """The longest target; sys.maxsize where positions are relative only."""
    return _rows_of_positions(self.text_to_text.main.decoder_config)

  def build_batch_spec(
    self, batch_size: int, length: int
  ) -> dict[str, np.ndarray]:
    """A batch of zeros, for `init` and for `jax.eval_shape`."""
    sizes = {'encoder': length, 'decoder': self.target_length or length}
    batch = {
      f'{stream}_{name}': np.zeros((batch_size, size), np.int32)
      for stream, size in sizes.items()
      for name in ('segment_ids', 'positions')
    }
    tokens = {'encoder': 'input_tokens', 'decoder': 'target_tokens'}
    for stream, name in tokens.items():
      shape = (batch_size, sizes[stream])
      batch[f'{stream}_{name}'] = np.zeros(shape, np.int32)
    shape = (batch_size, sizes['decoder'])
    return {**batch, 'decoder_loss_weights': np.zeros(shape, np.float32)}

  def init(self, rng: jax.Array, batch: Batch) -> Params:
    """Initial parameters, boxed with their logical axes."""
    return self.text_to_text.init(rng, batch)['params']

  def normalizers(self, batch: Batch) -> dict[str, jax.Array]:
    """How many target tokens count, in a global batch."""
    return {_NAME: jnp.sum(_loss_weights(batch))}

  def loss_fn(
    self,
    params: Params,
    batch: Batch,
    rng: jax.Array,
    step: jax.Array | int,
    train: bool,
    normalizers: Mapping[str, jax.Array] | None = None,
  ) -> tuple[jax.Array, Metrics]:
    """Mean cross entropy of the target tokens; see `models.Model`."""
    del step
    token_logits = self.text_to_text.apply(
      {'params': params}, batch, train, rngs={'dropout': rng}
    )
    targets, weights = batch['decoder_target_tokens'], _loss_weights(batch)
    one = losses.token_cross_entropy(token_logits, targets)
    count = jnp.sum(weights)
    divisor = jnp.maximum((normalizers or {_NAME: count})[_NAME], 1.0)
    total = jnp.sum(one.loss * weights)
    loss = total / divisor
    if self.z_loss:
      z_total = jnp.sum(one.log_normalizer**2 * weights)
      loss += self.z_loss * z_total / divisor
    metrics = {
      'loss': Mean(loss * divisor, count),
      f'loss/{_NAME}': Mean(total, count),
      'lm_accuracy': Mean.of(one.predicted == targets, weights),
    }
    return loss, jax.lax.stop_gradient(metrics)

  def score_batch(
    self, params: Params, batch: Batch, mean: bool = False
  ) -> jax.Array:
    """The log-probability of each target given its input, float32 [batch].

    Args:
      params: parameters.
      batch: with the targets to score; the end token counts where it is there.
      mean: per token, instead of the sum.
    """
    token_logits = self.text_to_text.apply({'params': params}, batch)
    weights = _loss_weights(batch)
    targets = batch['decoder_target_tokens']
    loss = losses.token_cross_entropy(token_logits, targets).loss
    total = -jnp.sum(loss * weights, axis=1)
    return total / jnp.maximum(jnp.sum(weights, axis=1), 1) if mean else total

  def generate(
    self,
    params: Params,
    batch: Batch,
    length: int,
    *,
    beams: int = 1,
    temperature: float = 0.0,
    top_k: int | None = None,
    alpha: float = 0.6,
    rng: jax.Array | None = None,
  ) -> decoding.Decoded:
    """Writes a text for each input; fit for `jax.jit`.

    Args:
      params: parameters.
      batch: encoder_input_tokens [batch, length], one text per row, and
        row_ids where rows of a larger batch are to be drawn as there.
      length: most tokens to write, the end token included.
      beams: sequences that a beam search keeps; 1 searches none.
      temperature: of sampling; 0 takes the most likely token.
      top_k: sample among the so many most likely tokens only.
      alpha: length penalty of the beam search.
      rng: key, for sampling.

    Returns:
      Tokens [batch, length], or [batch, beams, length] with more than one
      beam, and scores; see `decoding.Decoded`.
    """
    self._check_generation(length, beams, temperature)
    variables = {'params': params}
    encoded, segments = self.text_to_text.apply(
      variables, batch, method='encode'
    )
    rows = encoded.shape[0]
    encoded, segments = (
      jnp.repeat(x, beams, axis=0) for x in (encoded, segments)
    )

    def step(tokens, index, cache):
      return self.text_to_text.apply(
        variables | (cache or {}),
        tokens,
        encoded,
        segments,
        DecodeStep(index, length),
        mutable=['cache'],
        method='step',
      )

    start = jnp.full(rows, self.text_to_text.start_id, jnp.int32)
    if beams > 1:
      return decoding.beam_search(
        step,
        start,
        length,
        self.end_id,
        beams=beams,
        reorder=_reorder,
        alpha=alpha,
      )
    seed = None if rng is None else jax.random.bits(rng, (), jnp.uint32)
    return decoding.sample(
      step,
      start,
      length,
      self.end_id,
      temperature=temperature,
      top_k=top_k,
      seed=seed,
      rows=batch.get('row_ids'),
    )

  def predict_batch(
    self, params: Params, batch: Batch, mode: str, **options: Any
  ) -> jax.Array | decoding.Decoded:
    """Mode 'generate' or 'score': those methods, with their options."""
    modes = {'generate': self.generate, 'score': self.score_batch}
    if mode not in modes:
      raise UserError(
        f'mode: {mode!r} is not one of {tuple(modes)}, which is what a'
        ' text-to-text model can do'
      )
    return modes[mode](params, batch, **options)

  def flops_per_step(self, batch_shape: tuple[int, int]) -> float:
    """Model FLOPs of a training step on inputs [batch, length]."""
    rows, length = batch_shape
    targets, module = self.target_length or length, self.text_to_text
    config, main = module.config, module.main
    row = flops.encoder(main.config, length)
    width = main.config.embed_dim
    row += flops.decoder(main.decoder_config, targets, length, width)
    row += flops.lm_head(config, targets, module.lm_head.projection)
    return flops.TRAINING * rows * row

  def _check_generation(self, length, beams, temperature) -> None:
    if length > self.max_target_length:
      raise UserError(
        f'length: {length} tokens to generate, and the decoder has'
        f' {self.max_target_length} positions; ask for fewer, or raise'
        ' decoder/PositionConfig.max_length'
      )
    if beams > 1 and temperature > 0:
      raise UserError(
        f'beams, temperature: {beams} beams and temperature {temperature} do'
        ' not go together; choose one'
      )


def _loss_weights(batch: Batch) -> jax.Array:
  """float32 [batch, target length]."""
  given = batch.get('decoder_loss_weights')
  if given is not None:
    return given.astype(jnp.float32)
  targets = batch['decoder_target_tokens']
  return (segments_of(batch, 'decoder', targets) > 0).astype(jnp.float32)


def _reorder(cache: decoding.Cache, rows: jax.Array) -> decoding.Cache:
  """Rows of keys and values [..., batch, length, heads, head_dim]."""
  return jax.tree.map(lambda x: jnp.take(x, rows, axis=x.ndim - 4), cache)


def _rows_of_positions(config: TransformerConfig) -> int:
  positions = config.positions
  has_table = positions.absolute or positions.untied
  return positions.max_length if has_table else sys.maxsize
