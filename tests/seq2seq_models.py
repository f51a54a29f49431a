# SPDX-License-Identifier: Apache-2.0
"""Tiny encoder-decoders for the tests of METRO-T5 and T5."""

import pretrain_models

from metro_jax import models, modules, pretrain
from metro_jax.pretrain import MLM, RTD, CorrectiveLM

LENGTH = pretrain_models.LENGTH


def encoder_config(**changes) -> modules.TransformerConfig:
  positions = modules.PositionConfig(
    max_length=2 * LENGTH, num_buckets=8, max_distance=16, per_layer=True
  )
  defaults = {'positions': positions, 'activation': 'relu'}
  return pretrain_models.config(**(defaults | changes))


def decoder_config(**changes) -> modules.TransformerConfig:
  positions = modules.PositionConfig(max_length=2 * LENGTH, relative=None)
  return encoder_config(**({'positions': positions} | changes))


def main() -> modules.EncoderDecoder:
  return modules.EncoderDecoder(encoder_config(), decoder_config())


def metro_t5(**changes) -> models.PretrainingModel:
  config = encoder_config()
  defaults = {
    'config': config,
    'main': main(),
    'auxiliary': pretrain.Auxiliary(config),
    'objectives': (MLM(), RTD(source='encoder'), CorrectiveLM()),
    'max_predictions': pretrain_models.SLOTS,
    'rtd_head': modules.RTDHead(config, hidden=True, norm=True),
    'lm_head': modules.LMHead(config, projection=False, use_bias=False),
  }
  return models.PretrainingModel(pretrain.Pretrainer(**(defaults | changes)))
