# SPDX-License-Identifier: Apache-2.0
"""ELECTRA (`transformers.ElectraForPreTraining`, `ElectraForMaskedLM`).

The main model is ELECTRA's discriminator, the auxiliary its generator, each in
a folder of its own. Their embeddings are shared, and stand in both files.
ELECTRA's detection logit says "replaced", ours "original": the output layer
changes its sign. Segments: see `bert`.
"""

from typing import Any

import numpy as np

from metro_jax.conversion import bert, rules
from metro_jax.conversion.rules import LINEAR, SAME, Rule, Tensors
from metro_jax.errors import UserError
from metro_jax.models import PretrainingModel
from metro_jax.modules import Encoder, RTDHead, TransformerConfig
from metro_jax.pretrain import MLM, RTD, Auxiliary, Pretrainer

NAME = 'electra'
MODEL_TYPE = 'electra'
AUXILIARY_FOLDER = 'generator'
_EMBEDDINGS = 'electra.embeddings'
_OF = {'token': 'token/', 'position': 'position/', 'norm': 'norm/'}


def encoder_rules(
  config: TransformerConfig, ours: str, theirs: str = MODEL_TYPE
) -> list[Rule]:
  """The rules of a stack, and of what widens the embeddings before it."""
  project = []
  if config.table_width != config.embed_dim:
    project = rules.dense(
      f'{ours}/embed_projection', f'{theirs}.embeddings_project'
    )
  layers = rules.layers(
    config.num_layers,
    f'{ours}/stack',
    f'{theirs}.encoder.layer.{{i}}',
    bert.LAYER,
  )
  return project + layers


def main_map(config: TransformerConfig) -> rules.NameMap:
  """The rules of the main model and its head."""
  head = 'discriminator_predictions'
  return rules.NameMap(
    (
      *bert.embedding_rules('embedder', _EMBEDDINGS),
      *encoder_rules(config, 'main'),
      *rules.dense('rtd_head/dense', f'{head}.dense'),
      Rule(
        'rtd_head/output/kernel',
        f'{head}.dense_prediction.weight',
        rules.scaled(LINEAR, -1),
      ),
      Rule(
        'rtd_head/output/bias',
        f'{head}.dense_prediction.bias',
        rules.scaled(SAME, -1),
      ),
    ),
    unread=bert.UNREAD,
  )


def auxiliary_map(config: TransformerConfig, share: Any) -> rules.NameMap:
  """The rules of the auxiliary; what it shares is the main model's."""

  def owner(rule: Rule) -> Rule:
    rest = rule.ours.removeprefix('embedder/')
    shared = any(rest.startswith(_OF[part]) for part in share if part in _OF)
    return rule if shared else Rule(f'auxiliary/{rule.ours}', rule.theirs)

  embedding = bert.embedding_rules('embedder', _EMBEDDINGS)
  head = 'generator_lm_head'
  return rules.NameMap(
    (
      *(owner(rule) for rule in embedding),
      *encoder_rules(config, 'auxiliary/encoder'),
      *rules.dense('auxiliary/mlm_head/dense', 'generator_predictions.dense'),
      *rules.norm('auxiliary/mlm_head/norm', 'generator_predictions.LayerNorm'),
      Rule('auxiliary/mlm_head/bias', f'{head}.bias'),
    ),
    {f'{head}.weight': f'{_EMBEDDINGS}.word_embeddings.weight'},
    bert.UNREAD,
  )


def misfit(model: Any) -> str | None:
  """Why a model cannot be an ELECTRA; None if it can."""
  if not isinstance(model, PretrainingModel):
    return 'it is no encoder'
  pretrainer, auxiliary = model.pretrainer, model.pretrainer.auxiliary
  if not {type(o) for o in pretrainer.objectives} <= {MLM, RTD}:
    return 'it has objectives besides MLM and RTD, and heads for them'
  if not pretrainer.rtd_head.hidden or pretrainer.rtd_head.norm:
    return 'its RTDHead is not a dense layer, an activation and an output'
  if auxiliary is None:
    return bert.plain_misfit(pretrainer.main)
  if not isinstance(auxiliary, Auxiliary) or len(auxiliary.depths) > 1:
    return 'its auxiliary is not one masked language model with one head'
  if auxiliary.mixture is not None or auxiliary.config.activation != 'gelu':
    return "its auxiliary has a mixture, or an activation besides 'gelu'"
  encoder = Encoder(auxiliary.config, parent=None)
  return bert.plain_misfit(pretrainer.main) or bert.plain_misfit(encoder)


def export(model: PretrainingModel, params: Tensors) -> dict[str, Any]:
  """Folders of a model: name -> (config, tensors)."""
  pretrainer, auxiliary = model.pretrainer, model.pretrainer.auxiliary
  config = pretrainer.main.config
  own = {k: x for k, x in params.items() if not k.startswith('auxiliary/')}
  folders = {
    '': _folder('ElectraForPreTraining', config, main_map(config), own)
  }
  if auxiliary is not None:
    name_map = auxiliary_map(auxiliary.config, pretrainer.share)
    read = {rule.ours for rule in name_map.rules}
    theirs = {
      k: x for k, x in params.items() if k.startswith('auxiliary/') or k in read
    }
    folders[AUXILIARY_FOLDER] = _folder(
      'ElectraForMaskedLM', auxiliary.config, name_map, theirs
    )
  return folders


def _folder(
  name: str, config: TransformerConfig, name_map: rules.NameMap, own: Tensors
) -> tuple[dict[str, Any], Tensors]:
  about = {'architectures': [name], 'model_type': MODEL_TYPE}
  width = {'embedding_size': config.table_width}
  tensors = bert.with_segments(name_map.export(own), _EMBEDDINGS)
  return about | bert.sizes(config) | width, tensors


def restore(
  source: str, config: dict[str, Any], tensors: Tensors, dtype: str
) -> tuple[PretrainingModel, rules.NameMap, Tensors]:
  """A main model without an auxiliary, and how to read its tensors."""
  if any(name.startswith('generator_') for name in tensors):
    raise UserError(
      f'{source}: is the generator; give the discriminator, and this one as'
      ' --auxiliary'
    )
  ours = bert.transformer_config(config, source, dtype)
  pretrainer = Pretrainer(
    config=ours,
    main=Encoder(ours, parent=None),
    objectives=(RTD(),),
    share=(),
    rtd_head=RTDHead(ours, hidden=True, parent=None),
    parent=None,
  )
  tensors = bert.without_segments(tensors, _EMBEDDINGS)
  return PretrainingModel(pretrainer), main_map(ours), tensors


def join(
  source: str,
  config: dict[str, Any],
  tensors: Tensors,
  model: PretrainingModel,
  params: Tensors,
) -> tuple[PretrainingModel, rules.NameMap, Tensors]:
  """A main model with an auxiliary, and how to read the latter's tensors.

  Args:
    source: the generator's folder.
    config: its config.json.
    tensors: its tensors.
    model: what `restore` has made of the discriminator.
    params: the discriminator's parameters.

  Returns:
    The joint model; it shares what is equal in both.
  """
  main = model.pretrainer
  ours = bert.transformer_config(config, source, main.config.dtype)
  tensors = bert.without_segments(tensors, _EMBEDDINGS)
  embedding = bert.embedding_rules('embedder', _EMBEDDINGS)
  share = tuple(
    part
    for part, start in _OF.items()
    if all(
      np.array_equal(tensors.get(rule.theirs), params[rule.ours])
      for rule in embedding
      if rule.ours.startswith(f'embedder/{start}')
    )
  )
  auxiliary = Auxiliary(ours, dropout_rate=0.1, second_pass=False, parent=None)
  pretrainer = main.clone(
    auxiliary=auxiliary, objectives=(MLM(), RTD()), share=share, parent=None
  )
  return PretrainingModel(pretrainer), auxiliary_map(ours, share), tensors
