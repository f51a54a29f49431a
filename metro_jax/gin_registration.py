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
    pretrain.Categorical,
    pretrain.CorrectiveLM,
    pretrain.Gumbel,
    pretrain.MLM,
    pretrain.Pretrainer,
    pretrain.RTD,
  ),
  'models': (
    models.PretrainingModel,
    models.TextToText,
    models.TextToTextModel,
    models.for_text,
    models.with_heads,
  ),
  'data': (
    data.SpanCorruption,
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
    downstream.test_datasets,
    downstream.text_task,
    downstream.train_steps,
    downstream.warmup_steps,
  ),
  'predictions': (predictions.columns, predictions.predict),
  'training': (
    training.CheckpointConfig,
    training.Partitioner,
    training.adamax,
    training.adamw,
    training.constant,
    training.evaluate,
    training.linear_warmup_decay,
    training.muon,
    training.rsqrt,
    training.train,
  ),
}

for _module, _configurables in _PARTS.items():
  for _configurable in _configurables:
    gin.register(_configurable, module=_module)
