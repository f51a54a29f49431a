# SPDX-License-Identifier: Apache-2.0
"""BERT as a masked language model (`transformers.BertForMaskedLM`).

BERT adds a segment embedding to every token, and this project has none. An
import adds the first segment's to each position, which is the same sum for
texts of one segment; an export writes zeros. BERT's pooler and next-sentence
head have no place here.
"""

from typing import Any

import numpy as np

from metro_jax.conversion import rules
from metro_jax.conversion.rules import LINEAR, SAME, VECTOR, Rule, Tensors
from metro_jax.errors import UserError
from metro_jax.models import PretrainingModel
from metro_jax.modules import (
  Encoder,
  LMHead,
  PositionConfig,
  TransformerConfig,
)
from metro_jax.pretrain import CorrectiveLM, Pretrainer

NAME = 'bert'
MODEL_TYPE = 'bert'
_HEADS = rules.LINEAR_OF_HEADS
# Of one layer, BERT's and ELECTRA's: here, there, form.
LAYER = (
  ('attention/query/kernel', 'attention.self.query.weight', LINEAR),
  ('attention/query/bias', 'attention.self.query.bias', VECTOR),
  ('attention/key/kernel', 'attention.self.key.weight', LINEAR),
  ('attention/key/bias', 'attention.self.key.bias', VECTOR),
  ('attention/value/kernel', 'attention.self.value.weight', LINEAR),
  ('attention/value/bias', 'attention.self.value.bias', VECTOR),
  ('attention/out/kernel', 'attention.output.dense.weight', _HEADS),
  ('attention/out/bias', 'attention.output.dense.bias', SAME),
  ('attention_norm/scale', 'attention.output.LayerNorm.weight', SAME),
  ('attention_norm/bias', 'attention.output.LayerNorm.bias', SAME),
  ('mlp/wi/kernel', 'intermediate.dense.weight', LINEAR),
  ('mlp/wi/bias', 'intermediate.dense.bias', SAME),
  ('mlp/wo/kernel', 'output.dense.weight', LINEAR),
  ('mlp/wo/bias', 'output.dense.bias', SAME),
  ('mlp_norm/scale', 'output.LayerNorm.weight', SAME),
  ('mlp_norm/bias', 'output.LayerNorm.bias', SAME),
)
# Buffers of some versions.
UNREAD = ('*.embeddings.position_ids', '*.embeddings.token_type_ids')


def embedding_rules(ours: str, theirs: str) -> list[Rule]:
  """Rules of the tables and the norm of an embedder."""
  return [
    Rule(f'{ours}/token/embedding', f'{theirs}.word_embeddings.weight'),
    Rule(f'{ours}/position/embedding', f'{theirs}.position_embeddings.weight'),
    *rules.norm(f'{ours}/norm', f'{theirs}.LayerNorm'),
  ]


def name_map(config: TransformerConfig) -> rules.NameMap:
  """The rules of a masked language model."""
  head = 'cls.predictions'
  return rules.NameMap(
    (
      *embedding_rules('embedder', 'bert.embeddings'),
      *rules.layers(
        config.num_layers, 'main/stack', 'bert.encoder.layer.{i}', LAYER
      ),
      *rules.dense('lm_head/dense', f'{head}.transform.dense'),
      *rules.norm('lm_head/norm', f'{head}.transform.LayerNorm'),
      Rule('lm_head/bias', f'{head}.bias'),
    ),
    {
      f'{head}.decoder.weight': 'bert.embeddings.word_embeddings.weight',
      f'{head}.decoder.bias': f'{head}.bias',
    },
    (*UNREAD, 'bert.pooler.*', 'cls.seq_relationship.*'),
  )


def misfit(model: Any) -> str | None:
  """Why a model cannot be a BERT; None if it can."""
  if not isinstance(model, PretrainingModel):
    return 'it is no encoder'
  pretrainer = model.pretrainer
  if pretrainer.auxiliary is not None:
    return 'it has an auxiliary'
  if [type(o) for o in pretrainer.objectives] != [CorrectiveLM]:
    return 'it is not trained as a masked language model alone'
  if not pretrainer.lm_head.projection or not pretrainer.lm_head.use_bias:
    return 'its LMHead has no projection or no bias'
  if pretrainer.config.table_width != pretrainer.config.embed_dim:
    return 'its table_dim is not its embed_dim'
  return plain_misfit(pretrainer.main)


def plain_misfit(main: Any) -> str | None:
  """Why a main model or auxiliary is no post-LN encoder as BERT is."""
  if not isinstance(main, Encoder):
    return 'it is no encoder'
  config, positions = main.config, main.config.positions
  if config.norm_placement != 'post':
    return "its TransformerConfig.norm_placement is not 'post'"
  if positions.relative is not None or positions.untied:
    return 'it has relative or untied positions'
  if not positions.absolute:
    return 'it has no absolute positions'
  if config.head_width * config.num_heads != config.embed_dim:
    return 'its heads together are not as wide as embed_dim'
  return None


def sizes(config: TransformerConfig) -> dict[str, Any]:
  """The keys of config.json that BERT and ELECTRA have in common."""
  return {
    'vocab_size': config.vocab_size,
    'hidden_size': config.embed_dim,
    'num_hidden_layers': config.num_layers,
    'num_attention_heads': config.num_heads,
    'intermediate_size': config.mlp_dim,
    'hidden_act': config.activation,
    'max_position_embeddings': config.positions.max_length,
    'type_vocab_size': 2,
    'layer_norm_eps': config.norm_epsilon,
    'initializer_range': config.init_stddev,
    'pad_token_id': 0,
    'position_embedding_type': 'absolute',
    'tie_word_embeddings': True,
    'dtype': 'float32',
  }


def transformer_config(
  config: dict[str, Any], source: str, dtype: str
) -> TransformerConfig:
  """The inverse of `sizes`.

  Raises:
    UserError: if a size is missing or is none, or for a model of another kind.
  """
  kind = config.get('position_embedding_type', 'absolute')
  if kind != 'absolute':
    raise UserError(f'{source}: position_embedding_type {kind!r} is not known')
  try:
    hidden = int(config['hidden_size'])
    table = int(config.get('embedding_size', hidden))
    return TransformerConfig(
      vocab_size=int(config['vocab_size']),
      embed_dim=hidden,
      num_heads=int(config['num_attention_heads']),
      mlp_dim=int(config['intermediate_size']),
      num_layers=int(config['num_hidden_layers']),
      activation=str(config.get('hidden_act', 'gelu')),
      norm_epsilon=float(config.get('layer_norm_eps', 1e-12)),
      init_stddev=float(config.get('initializer_range', 0.02)),
      positions=PositionConfig(
        max_length=int(config['max_position_embeddings']), relative=None
      ),
      dtype=dtype,
      table_dim=None if table == hidden else table,
    )
  except (KeyError, TypeError, ValueError) as error:
    said = error if isinstance(error, UserError) else repr(error)
    raise UserError(f'{source}/config.json: {said}') from error


def with_segments(tensors: Tensors, embeddings: str) -> Tensors:
  """The same with segment embeddings of zeros."""
  width = tensors[f'{embeddings}.position_embeddings.weight'].shape[1]
  zeros = np.zeros((2, width), np.float32)
  return {**tensors, f'{embeddings}.token_type_embeddings.weight': zeros}


def without_segments(tensors: Tensors, embeddings: str) -> Tensors:
  """The same with the first segment's embedding added to the positions.

  LayerNorm's old names, gamma and beta, become the new ones.
  """
  out = {_modern(name): x for name, x in tensors.items()}
  segments = out.pop(f'{embeddings}.token_type_embeddings.weight', None)
  positions = f'{embeddings}.position_embeddings.weight'
  fits = (
    segments is not None
    and positions in out
    and segments.ndim == out[positions].ndim == 2
    and segments.shape[1:] == out[positions].shape[1:]
    and len(segments) > 0
  )
  if fits:
    first = np.asarray(segments[0], np.float32)
    out[positions] = np.asarray(out[positions], np.float32) + first
  return out


def export(model: PretrainingModel, params: Tensors) -> dict[str, Any]:
  """Folders of a model: '' -> (config, tensors)."""
  config = model.pretrainer.main.config
  tensors = name_map(config).export(params)
  about = {'architectures': ['BertForMaskedLM'], 'model_type': MODEL_TYPE}
  tensors = with_segments(tensors, 'bert.embeddings')
  return {'': (about | sizes(config), tensors)}


def restore(
  source: str, config: dict[str, Any], tensors: Tensors, dtype: str
) -> tuple[PretrainingModel, rules.NameMap, Tensors]:
  """A model for the tensors of a folder, and how to read them."""
  ours = transformer_config(config, source, dtype)
  pretrainer = Pretrainer(
    config=ours,
    main=Encoder(ours, parent=None),
    objectives=(CorrectiveLM(),),
    share=(),
    lm_head=LMHead(ours, projection=True, parent=None),
    parent=None,
  )
  tensors = without_segments(tensors, 'bert.embeddings')
  return PretrainingModel(pretrainer), name_map(ours), tensors


def _modern(name: str) -> str:
  for old, new in (('.gamma', '.weight'), ('.beta', '.bias')):
    if name.endswith(f'LayerNorm{old}'):
      return name.removesuffix(old) + new
  return name
