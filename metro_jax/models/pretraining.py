# SPDX-License-Identifier: Apache-2.0
"""A Pretrainer as a trainer and a user see it: functions of parameters."""

import dataclasses
import functools
import math
import sys
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from metro_jax import flops
from metro_jax.errors import UserError
from metro_jax.models import prediction
from metro_jax.models.base import Batch, Metrics, Params
from metro_jax.modules import EncoderDecoder, TransformerConfig
from metro_jax.pretrain import MLM, MaskedTokens, Pretrainer

_STREAMS = ('dropout', 'sample')

_MODES = {
  'detect': prediction.detect,
  'fill': prediction.fill,
  'encode': prediction.encode,
}


@dataclasses.dataclass(frozen=True)
class PretrainingModel:
  """`models.Model` for pretraining.

  Attributes:
    pretrainer: the recipe.
    curriculum_steps: training steps after which progress is 1; None if
      nothing in the recipe follows a schedule.
  """

  pretrainer: Pretrainer
  curriculum_steps: int | None = None

  @property
  def vocab_size(self) -> int:
    """Ids that the model can embed: 0..vocab_size - 1."""
    return min(config.vocab_size for config in self._configs())

  @property
  def max_length(self) -> int:
    """The longest sequence; sys.maxsize where positions are relative only."""
    tables = [config.positions for config in self._configs()]
    return min(
      (p.max_length for p in tables if p.absolute or p.untied),
      default=sys.maxsize,
    )

  def build_batch_spec(
    self, batch_size: int, length: int
  ) -> dict[str, np.ndarray]:
    """A batch of zeros, for `init` and for `jax.eval_shape`."""
    shape = (batch_size, length)
    ids = ('input_tokens', 'target_tokens', 'segment_ids', 'positions')
    batch = {f'encoder_{name}': np.zeros(shape, np.int32) for name in ids}
    return {**batch, 'encoder_loss_weights': np.zeros(shape, np.float32)}

  def init(self, rng: jax.Array, batch: Batch) -> Params:
    """Initial parameters, boxed with their logical axes."""
    rngs = _split(rng, ('params', *_STREAMS))
    return self.pretrainer.init(rngs, batch)['params']

  def normalizers(self, batch: Batch) -> dict[str, jax.Array]:
    """Each objective's count in a global batch."""
    masked = MaskedTokens.from_batch(batch, self.pretrainer.max_predictions)
    return {o.name: o.count(masked) for o in self.pretrainer.objectives}

  def loss_fn(
    self,
    params: Params,
    batch: Batch,
    rng: jax.Array,
    step: jax.Array | int,
    train: bool,
    normalizers: Mapping[str, jax.Array] | None = None,
  ) -> tuple[jax.Array, Metrics]:
    """See `models.Model`.

    Evaluation has a key of its own and ends all curricula, so that its
    numbers depend on the parameters and the batch alone.
    """
    if not train:
      rng = jax.random.key(0)
    progress = self._progress(step) if train else 1.0
    if 'auxiliary' in params and not self._trains_auxiliary:
      # No loss of its own: nothing of it is kept for a backward pass.
      frozen = jax.lax.stop_gradient(params['auxiliary'])
      params = {**params, 'auxiliary': frozen}
    return self.pretrainer.apply(
      {'params': params},
      batch,
      progress,
      train,
      normalizers,
      rngs=_split(rng, _STREAMS),
    )

  def predict_batch(
    self, params: Params, batch: Batch, mode: str, **options: Any
  ) -> jax.Array | prediction.Fill:
    """What the models make of a batch; deterministic, and fit for `jax.jit`.

    Args:
      params: parameters.
      batch: encoder_input_tokens [batch, length], and what goes with it.
      mode: 'detect', 'fill' or 'encode': a function of `models.prediction`.
      **options: of that function.

    Returns:
      detect: p(replaced), float32 [batch, length]; fill: `Fill`; encode: the
      main model's hidden states [batch, length, embed_dim].
    """
    if mode not in _MODES:
      raise UserError(f'mode: {mode!r} is not one of {tuple(_MODES)}')
    method = functools.partial(_MODES[mode], **options)
    return self.pretrainer.apply({'params': params}, batch, method=method)

  def flops_per_step(self, batch_shape: tuple[int, int]) -> float:
    """Model FLOPs of a training step on [batch, length]; heads where called.

    What an auxiliary computes only to be sampled from counts once.
    """
    rows, length = batch_shape
    pretrainer = self.pretrainer
    slots = min(pretrainer.max_predictions or length, length)
    trained = flops.main_model(pretrainer.main, length)
    calls: dict[str, int] = {}
    for objective in pretrainer.objectives:
      for head, n in objective.head_calls(length, slots).items():
        calls[head] = max(n, calls.get(head, 0))
    calls.pop('mlm', None)
    further = calls.pop('main', 0)
    trained += further * flops.encoder(pretrainer.main.config, length)
    auxiliary = self._auxiliary(length, slots)
    trained += sum(self._head(head, n) for head, n in calls.items())
    return rows * (flops.TRAINING * trained + auxiliary)

  def parameter_counts(self) -> dict[str, int]:
    """Parameters by part, without making them.

    Returns:
      main: embedder and main model, what is fine-tuned (METRO-LM Table 3);
      heads: the main model's, for pretraining; auxiliary: what it does not
      share; total.
    """
    batch = self.build_batch_spec(1, 8)
    boxed = jax.eval_shape(self.init, jax.random.key(0), batch)
    sizes = {
      part: sum(math.prod(x.shape) for x in jax.tree.leaves(tree))
      for part, tree in nn.unbox(boxed).items()
    }
    return {
      'main': sizes['embedder'] + sizes['main'],
      'heads': sum(n for part, n in sizes.items() if part.endswith('_head')),
      'auxiliary': sizes.get('auxiliary', 0),
      'total': sum(sizes.values()),
    }

  def _configs(self) -> list[TransformerConfig]:
    parts = (self.pretrainer, self.pretrainer.auxiliary)
    configs = [part.config for part in parts if hasattr(part, 'config')]
    main = self.pretrainer.main
    if isinstance(main, EncoderDecoder):
      configs.append(main.decoder_config)
    return configs

  def _progress(self, step: jax.Array | int) -> jax.Array | float:
    if self.curriculum_steps is None:
      return 1.0
    return jnp.clip(step / self.curriculum_steps, 0.0, 1.0)

  def _head(self, head: str, calls: int) -> float:
    """Forward FLOPs of a head."""
    pretrainer = self.pretrainer
    config = pretrainer.config
    if head == 'rtd':
      return flops.rtd_head(config, calls, self.pretrainer.rtd_head.hidden)
    if head == 'choice':
      return flops.rtd_head(config, calls)
    if head == 'sequence':
      return 2.0 * calls * config.embed_dim**2
    return flops.lm_head(config, calls, self.pretrainer.lm_head.projection)

  @property
  def _trains_auxiliary(self) -> bool:
    return any(isinstance(o, MLM) for o in self.pretrainer.objectives)

  def _auxiliary(self, length: int, slots: int) -> float:
    """FLOPs of the auxiliary for one row, all passes together."""
    work = getattr(self.pretrainer.auxiliary, 'work', None)
    if work is None:
      return 0.0
    once = sum(flops.encoder(config, length) for config in work.encoders)
    once += sum(flops.lm_head(config, slots) for config in work.heads)
    # Without a loss, a pass that is not sampled from is not computed.
    idle = 0 if work.second_pass else 1
    trained = flops.TRAINING if self._trains_auxiliary else idle
    passes = trained + work.second_pass
    # The sample's gradient: into the table's rows, and back into the mixture.
    crossing = self.pretrainer.sampler.carries_gradient
    product = sum(
      flops.lm_head(config, slots, projection=False)
      for config in work.heads[: work.mixtures]
    )
    return passes * once + (flops.TRAINING if crossing else 1) * product


def _split(rng: jax.Array, names: tuple[str, ...]) -> dict[str, jax.Array]:
  return dict(zip(names, jax.random.split(rng, len(names)), strict=True))
