# SPDX-License-Identifier: Apache-2.0
"""What gin files and command lines may bind, by name.

Library code is gin-free: this is the only place where gin meets it. Recipes
import this module, so that a command line can also name parts that no file
mentions (`--gin.OBJECTIVES="(@pretrain.MLM(), @pretrain.RTD())"`).
`gin.register` leaves the classes as they are: constructed directly, they are
not configured.
"""

import gin

from metro_jax import (
  data,
  downstream,
  finetune,
  models,
  modules,
  offline,
  predictions,
  pretrain,
  training,
)

_PARTS = {
  'modules': (
    modules.Encoder,
    modules.EncoderDecoder,
    modules.LMHead,
    modules.PositionConfig,
    modules.RTDHead,
    modules.TransformerConfig,
  ),
  'pretrain': (
    pretrain.Auxiliary,
    pretrain.AuxiliaryDropout,
    pretrain.AuxiliaryEnsemble,
    pretrain.Categorical,
    pretrain.Constant,
    pretrain.CorrectiveLM,
    pretrain.DropToken,
    pretrain.ExponentialDecay,
    pretrain.FixedMixture,
    pretrain.Gumbel,
    pretrain.GumbelStraightThrough,
    pretrain.Interpolate,
    pretrain.Interpolated,
    pretrain.LayerSwitch,
    pretrain.LearnedMixture,
    pretrain.MLM,
    pretrain.OneChoiceCloze,
    pretrain.PolynomialDecay,
    pretrain.Pretrainer,
    pretrain.RTD,
    pretrain.RandomLayer,
    pretrain.SequenceContrastive,
    pretrain.SmoothedOneHot,
    pretrain.StepwiseDecay,
    pretrain.Temperature,
    pretrain.TermFrequency,
    pretrain.Uniform,
    pretrain.UniformMixture,
    pretrain.auxiliary_source,
  ),
  'models': (
    models.PretrainingModel,
    models.TextToText,
    models.TextToTextModel,
    models.for_text,
    models.with_heads,
  ),
  'data': (
    data.CorruptedStream,
    data.SpanCorruption,
    data.TermCounts,
    data.TextFiles,
    data.TokenDataset,
    data.corpus,
    data.end_id,
    data.max_predictions,
    data.row_length,
    data.target_length,
  ),
  'finetune': (finetune.PosteriorDifferential,),
  'downstream': (
    downstream.TaskDataset,
    downstream.TextTaskDataset,
    downstream.best_metric,
    downstream.eval_datasets,
    downstream.heads,
    downstream.own_task,
    downstream.period,
    downstream.t0_mixture,
    downstream.test_datasets,
    downstream.text_task,
    downstream.train_steps,
    downstream.warmup_steps,
  ),
  'offline': (offline.corrupt,),
  'predictions': (predictions.columns, predictions.predict),
  'training': (
    training.CheckpointConfig,
    training.Guard,
    training.PartialCheckpoint,
    training.Partitioner,
    training.Plan,
    training.adamax,
    training.adamw,
    training.constant,
    training.evaluate,
    training.linear_warmup_decay,
    training.muon,
    training.rsqrt,
    training.train,
    training.width_factors,
  ),
}

for _module, _configurables in _PARTS.items():
  for _configurable in _configurables:
    gin.register(_configurable, module=_module)
