# SPDX-License-Identifier: Apache-2.0
"""COCO-LM and AMOS: fairseq checkpoints, and their folders.

Both are the encoder of this project with METRO's buckets, one relative bias
per stack. Their detection logit says "original", as ours. What a file has of
heads and auxiliary is imported; the released folders have the main model
alone.
"""

import dataclasses
import re
from typing import Any

import numpy as np

from metro_jax.conversion import fairseq, rules
from metro_jax.conversion.rules import Rule, Tensors
from metro_jax.models import PretrainingModel
from metro_jax.modules import Encoder, PositionConfig, TransformerConfig
from metro_jax.pretrain import (
  MLM,
  RTD,
  Auxiliary,
  CorrectiveLM,
  GumbelStraightThrough,
  LearnedMixture,
  Pretrainer,
  SequenceContrastive,
)

MODEL_TYPES = ('cocolm', 'amos')
_MAIN = 'encoder.sentence_encoder'
_AUXILIARY = 'auxiliary.sentence_encoder'
_TOKENS = f'{_MAIN}.embed_tokens.weight'
_MIXTURE = 'auxiliary.lm_head.layer_mixture.weight'
_ROW = rules.Form(lambda s: (1, *s), lambda x: x[None], lambda x, s: x[0])
# AMOS's heads by the depth of its auxiliary (its appendix B); a file has no
# trace of them.
_AMOS_DEPTHS = {8: (4, 6, 8)}
# Names in the folders -> names in fairseq.
_FOLDER_NAMES = (
  (r'embeddings\.word_embeddings\.', f'{_MAIN}.embed_tokens.'),
  (r'embeddings\.position_embeddings\.', f'{_MAIN}.embed_positions.'),
  (r'embeddings\.LayerNorm\.', f'{_MAIN}.emb_layer_norm.'),
  (r'relative_attention_bias\.', f'{_MAIN}.relative_attention_bias.'),
  (r'scl_head\.LayerNorm\.', 'encoder.seq_head.layer_norm.'),
  (r'scl_head\.', 'encoder.seq_head.'),
  (r'encoder\.layer\.', f'{_MAIN}.layers.'),
)
_LAYER_NAMES = (
  ('.attention.self_attn.', '.self_attn.'),
  ('.attention.LayerNorm.', '.self_attn_layer_norm.'),
  ('.intermediate.dense.', '.fc1.'),
  ('.output.dense.', '.fc2.'),
  ('.output.LayerNorm.', '.final_layer_norm.'),
)


def owns(tensors: Tensors) -> bool:
  """Whether a fairseq checkpoint is one of these."""
  return any('relative_attention_bias' in name for name in tensors)


def restore(
  source: str, config: dict[str, Any], tensors: Tensors, dtype: str
) -> tuple[PretrainingModel, rules.NameMap, Tensors]:
  """A model for the tensors of a file or folder, and how to read them."""
  tensors = fairseq.split_projections(
    {_fairseq_name(name): x for name, x in tensors.items()}
  )
  ours = _transformer_config(source, config, tensors, dtype)
  size = ours.vocab_size
  # A mask token is added to fairseq's dictionary, as its last.
  order = np.asarray(fairseq.order(size, 1))
  auxiliary = _auxiliary(source, tensors, ours)
  share = _shared(tensors) if auxiliary else ()
  objectives: list[Any] = [RTD()]
  if auxiliary:
    objectives = [MLM(), RTD()]
  if 'encoder.lm_head.bias' in tensors:
    objectives.append(CorrectiveLM(positions='masked', copy=True))
  if 'encoder.seq_head.dense.weight' in tensors:
    objectives.append(SequenceContrastive())
  mixes = _MIXTURE in tensors
  pretrainer = Pretrainer(
    config=ours,
    main=Encoder(ours, parent=None),
    auxiliary=auxiliary,
    objectives=tuple(objectives),
    share=share,
    parent=None,
    **({'sampler': GumbelStraightThrough()} if mixes else {}),
  )
  tensors = _with_detection(tensors)
  return (
    PretrainingModel(pretrainer),
    _name_map(pretrainer, tensors, rules.permuted(order)),
    tensors,
  )


def _name_map(
  pretrainer: Pretrainer, tensors: Tensors, vocabulary: rules.Form
) -> rules.NameMap:
  """Rules of what this file has."""
  layers = pretrainer.config.num_layers
  found = [
    Rule('embedder/token/embedding', _TOKENS, vocabulary),
    *_embedding('embedder', _MAIN, ('position', 'norm')),
    *_stack('main/stack', _MAIN, layers),
    *rules.dense('rtd_head/output', 'encoder.binary_head.out_proj'),
  ]
  if 'encoder.lm_head.bias' in tensors:
    found.append(Rule('lm_head/bias', 'encoder.lm_head.bias', vocabulary))
  if 'encoder.seq_head.dense.weight' in tensors:
    found += rules.dense('sequence_head/dense', 'encoder.seq_head.dense')
    found += rules.norm('sequence_head/norm', 'encoder.seq_head.layer_norm')
  tied = {'encoder.lm_head.weight': _TOKENS}
  auxiliary = pretrainer.auxiliary
  if auxiliary is not None:
    own = [p for p in ('position', 'norm') if p not in pretrainer.share]
    found += _embedding('auxiliary/embedder', _AUXILIARY, own)
    found += _stack(
      'auxiliary/encoder/stack', _AUXILIARY, auxiliary.config.num_layers
    )
    head = 'auxiliary.lm_head'
    found += fairseq.mlm_head('auxiliary/mlm_head', head, vocabulary)
    if auxiliary.mixture is not None:
      found.append(Rule('auxiliary/mixture/vector', _MIXTURE, _ROW))
    tied |= {
      f'{_AUXILIARY}.embed_tokens.weight': _TOKENS,
      'auxiliary.lm_head.weight': _TOKENS,
    }
    for part in pretrainer.share:
      for rule in _embedding('', _AUXILIARY, (part,)):
        tied[rule.theirs] = rule.theirs.replace(_AUXILIARY, _MAIN)
  return rules.NameMap(
    found, tied, ('classification_heads.*', '*.version', '*.rp_bucket')
  )


def _embedding(ours: str, theirs: str, parts: Any) -> list[Rule]:
  out = []
  if 'position' in parts:
    name = f'{ours}/position/embedding'
    out.append(Rule(name, f'{theirs}.embed_positions.weight'))
  if 'norm' in parts:
    out += rules.norm(f'{ours}/norm', f'{theirs}.emb_layer_norm')
  return out


def _stack(ours: str, theirs: str, layers: int) -> list[Rule]:
  return [
    *rules.layers(layers, ours, f'{theirs}.layers.{{i}}', fairseq.LAYER),
    Rule(
      f'{ours}/relative_bias/embedding',
      f'{theirs}.relative_attention_bias.weight',
    ),
  ]


def _transformer_config(
  source: str, config: dict[str, Any], tensors: Tensors, dtype: str
) -> TransformerConfig:
  """Sizes, from the shapes."""
  bias = f'{_MAIN}.relative_attention_bias.weight'
  size, width = fairseq.shape(source, tensors, _TOKENS)
  buckets, heads = fairseq.shape(source, tensors, bias)
  layers = f'{_MAIN}.layers'
  fc1 = fairseq.shape(source, tensors, f'{layers}.0.fc1.weight')
  rows = fairseq.shape(source, tensors, f'{_MAIN}.embed_positions.weight')[0]
  furthest = config.get('max_rel_pos') or fairseq.distance(source, buckets)
  return TransformerConfig(
    vocab_size=size,
    embed_dim=width,
    num_heads=heads,
    mlp_dim=fc1[0],
    num_layers=fairseq.count_layers(source, tensors, layers),
    norm_epsilon=fairseq.EPSILON,
    dtype=dtype,
    positions=PositionConfig(
      max_length=rows,
      relative='metro',
      num_buckets=buckets,
      max_distance=int(furthest),
    ),
  )


def _auxiliary(
  source: str, tensors: Tensors, main: TransformerConfig
) -> Auxiliary | None:
  """The auxiliary, if the file has one."""
  if not any(name.startswith('auxiliary.') for name in tensors):
    return None
  depth = fairseq.count_layers(source, tensors, f'{_AUXILIARY}.layers')
  config = dataclasses.replace(main, num_layers=depth)
  if _MIXTURE not in tensors:
    own = 'position' not in _shared(tensors)
    rate = 0.0 if own else 0.1  # COCO-LM's "zero-dropout" shares tokens alone.
    return Auxiliary(config, dropout_rate=rate, parent=None)
  depths = _AMOS_DEPTHS.get(depth, (depth,))
  return Auxiliary(
    config,
    mlm_layers=depths,
    mixture=LearnedMixture(parent=None),
    parent=None,
  )


def _shared(tensors: Tensors) -> tuple[str, ...]:
  """Parts of the embedding that main model and auxiliary have in common."""
  found = ['token']
  for part in ('position', 'norm'):
    pairs = [
      (tensors.get(rule.theirs), tensors.get(main.theirs))
      for rule, main in zip(
        _embedding('', _AUXILIARY, (part,)),
        _embedding('', _MAIN, (part,)),
        strict=True,
      )
    ]
    if all(a is None or np.array_equal(a, b) for a, b in pairs):
      found.append(part)
  return tuple(found)


def _with_detection(tensors: Tensors) -> Tensors:
  """The same, with a detection head that always says 0.5 if there is none."""
  name = 'encoder.binary_head.out_proj'
  if f'{name}.weight' in tensors or _TOKENS not in tensors:
    return tensors
  width = tensors[_TOKENS].shape[1]
  return {
    **tensors,
    f'{name}.weight': np.zeros((1, width), np.float32),
    f'{name}.bias': np.zeros(1, np.float32),
  }


def _fairseq_name(name: str) -> str:
  """A name of a folder's tensor, as fairseq has it; others stay."""
  own = re.sub(rf'^({"|".join(MODEL_TYPES)})\.', '', name)
  if own == name and not name.startswith('embeddings.'):
    return name
  for pattern, there in _FOLDER_NAMES:
    own, count = re.subn(f'^{pattern}', there, own)
    if count:
      break
  for here, there in _LAYER_NAMES:
    own = own.replace(here, there)
  return own
