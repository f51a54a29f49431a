# SPDX-License-Identifier: Apache-2.0
"""METRO-T5 and METRO-T0: fairseq checkpoints, and their folders.

With a generator the file is a pretraining run, and becomes one; without, a
text-to-text model. fairseq's position tables begin with two rows of no use.
Its detection logit says "replaced", ours "original". The folders do not keep
the distance of the last bucket, so it comes from their number.
"""

import dataclasses
import re
from typing import Any

import numpy as np

from metro_jax.conversion import fairseq, rules
from metro_jax.conversion.rules import LINEAR, SAME, Rule, Tensors
from metro_jax.models import PretrainingModel, TextToText, TextToTextModel
from metro_jax.modules import (
  EncoderDecoder,
  LMHead,
  PositionConfig,
  RTDHead,
  TransformerConfig,
)
from metro_jax.pretrain import MLM, RTD, Auxiliary, CorrectiveLM, Pretrainer

MODEL_TYPE = 'fairseq_t5'
SENTINELS = 512
_SEP, _MASK = 3, 4
_TOKENS = 'encoder.embed_tokens.weight'
_GENERATOR = 'generator.sentence_encoder'
_UNUSED_ROWS = 2
_POSITIONS = rules.below(SAME, _UNUSED_ROWS)
_ENCODER_LAYER = (
  *fairseq.LAYER,
  (
    'relative_bias/embedding',
    'self_attn_rel_pos.rel_attn_bias.weight',
    SAME,
  ),
)
_DECODER_LAYER = (
  *fairseq.LAYER,
  *fairseq.attention('cross_attention', 'encoder_attn'),
)
# Names in the folders -> names in fairseq.
_FOLDER_NAMES = (
  (r'pos_embed\.', 'embed_positions.'),
  (r'first_layer_norm\.', 'layernorm_embedding.'),
  (
    r'block\.(\d+)\.layer\.0\.SelfAttention\.([qkv])\.',
    r'layers.\1.self_attn.\2_proj.',
  ),
  (
    r'block\.(\d+)\.layer\.0\.SelfAttention\.o\.',
    r'layers.\1.self_attn.out_proj.',
  ),
  (
    r'block\.(\d+)\.layer\.0\.SelfAttention\.relative_attention_bias\.',
    r'layers.\1.self_attn_rel_pos.rel_attn_bias.',
  ),
  (r'block\.(\d+)\.layer\.0\.layer_norm\.', r'layers.\1.self_attn_layer_norm.'),
  (
    r'block\.(\d+)\.layer\.1\.EncDecAttention\.([qkv])\.',
    r'layers.\1.encoder_attn.\2_proj.',
  ),
  (
    r'block\.(\d+)\.layer\.1\.EncDecAttention\.o\.',
    r'layers.\1.encoder_attn.out_proj.',
  ),
  (r'block\.(\d+)\.layer\.\d\.DenseReluDense\.wi\.', r'layers.\1.fc1.'),
  (r'block\.(\d+)\.layer\.\d\.DenseReluDense\.wo\.', r'layers.\1.fc2.'),
)


def owns(tensors: Tensors) -> bool:
  """Whether a fairseq checkpoint is one of these."""
  return 'decoder.embed_positions.weight' in tensors


def restore(
  source: str, config: dict[str, Any], tensors: Tensors, dtype: str
) -> tuple[Any, rules.NameMap, Tensors]:
  """A model for the tensors of a file or folder, and how to read them."""
  del config  # What it says of positions is not what was trained.
  tensors = {_fairseq_name(name): x for name, x in tensors.items()}
  encoder = _transformer_config(source, tensors, dtype)
  decoder = dataclasses.replace(
    encoder,
    num_layers=fairseq.count_layers(source, tensors, 'decoder.layers'),
    positions=dataclasses.replace(
      encoder.positions, relative=None, per_layer=False
    ),
  )
  main = EncoderDecoder(encoder, decoder, parent=None)
  head = LMHead(encoder, projection=False, use_bias=False, parent=None)
  order = fairseq.order(encoder.vocab_size, SENTINELS)
  vocabulary = rules.permuted(order)
  if not any(name.startswith('generator.') for name in tensors):
    module = TextToText(encoder, main, head, start_id=_SEP, parent=None)
    model = TextToTextModel(module, end_id=_SEP)
    return model, _name_map(main, None, (), vocabulary), tensors
  depth = fairseq.count_layers(source, tensors, f'{_GENERATOR}.layers')
  auxiliary = Auxiliary(
    dataclasses.replace(encoder, num_layers=depth), parent=None
  )
  share = _shared(tensors)
  pretrainer = Pretrainer(
    config=encoder,
    main=main,
    auxiliary=auxiliary,
    objectives=(
      MLM(),
      RTD(source='encoder'),
      CorrectiveLM(source='decoder', positions='masked', copy=False),
    ),
    share=share,
    rtd_head=RTDHead(
      encoder, hidden=True, norm=True, zero_init=True, parent=None
    ),
    lm_head=head,
    decoder_start_id=_MASK,
    parent=None,
  )
  name_map = _name_map(main, auxiliary, share, vocabulary)
  return PretrainingModel(pretrainer), name_map, tensors


def _name_map(
  main: EncoderDecoder,
  auxiliary: Auxiliary | None,
  share: tuple[str, ...],
  vocabulary: rules.Form,
) -> rules.NameMap:
  tied = dict.fromkeys(
    (
      'shared.weight',
      'lm_head.weight',
      'decoder.embed_tokens.weight',
      'decoder.output_projection.weight',
    ),
    _TOKENS,
  )
  found = [
    Rule('embedder/token/embedding', _TOKENS, vocabulary),
    *_embedding('embedder', 'encoder'),
    *_embedding('main/decoder_embedder', 'decoder'),
    *rules.layers(
      main.config.num_layers,
      'main/encoder/stack',
      'encoder.layers.{i}',
      _ENCODER_LAYER,
    ),
    *rules.layers(
      main.decoder_config.num_layers,
      'main/decoder/stack',
      'decoder.layers.{i}',
      _DECODER_LAYER,
    ),
  ]
  if auxiliary is not None:
    found += _pretraining_rules(auxiliary, share, vocabulary)
    tied[f'{_GENERATOR}.embed_tokens.weight'] = _TOKENS
    tied['generator.lm_head.weight'] = _TOKENS
    for rule in _embedding('', _GENERATOR):
      if rule.ours.split('/')[1] in share:
        tied[rule.theirs] = rule.theirs.replace(_GENERATOR, 'encoder')
  return rules.NameMap(found, tied, ('*.version', '*._float_tensor'))


def _pretraining_rules(
  auxiliary: Auxiliary, share: tuple[str, ...], vocabulary: rules.Form
) -> list[Rule]:
  """Rules of the auxiliary and of the detection head."""
  own = [
    rule
    for rule in _embedding('auxiliary/embedder', _GENERATOR)
    if rule.ours.split('/')[2] not in share
  ]
  replaced = rules.scaled(LINEAR, -1), rules.scaled(SAME, -1)
  return [
    *own,
    *rules.layers(
      auxiliary.config.num_layers,
      'auxiliary/encoder/stack',
      f'{_GENERATOR}.layers.{{i}}',
      _ENCODER_LAYER,
    ),
    *fairseq.mlm_head('auxiliary/mlm_head', 'generator.lm_head', vocabulary),
    *rules.dense('rtd_head/dense', 'rtd_head.dense'),
    *rules.norm('rtd_head/norm', 'rtd_head.layer_norm'),
    Rule('rtd_head/output/kernel', 'rtd_head.weight', replaced[0]),
    Rule('rtd_head/output/bias', 'rtd_head.bias', replaced[1]),
  ]


def _embedding(ours: str, theirs: str) -> list[Rule]:
  positions = f'{theirs}.embed_positions.weight'
  return [
    Rule(f'{ours}/position/embedding', positions, _POSITIONS),
    *rules.norm(f'{ours}/norm', f'{theirs}.layernorm_embedding'),
  ]


def _shared(tensors: Tensors) -> tuple[str, ...]:
  """Parts of the embedding that encoder and generator have in common."""
  found = ['token']
  for part in ('position', 'norm'):
    names = [
      r.theirs for r in _embedding('', _GENERATOR) if f'/{part}/' in r.ours
    ]
    pairs = [
      (tensors.get(n), tensors.get(n.replace(_GENERATOR, 'encoder')))
      for n in names
    ]
    if all(a is None or np.array_equal(a, b) for a, b in pairs):
      found.append(part)
  return tuple(found)


def _transformer_config(
  source: str, tensors: Tensors, dtype: str
) -> TransformerConfig:
  """Of the encoder, from the shapes."""
  layer = 'encoder.layers.0'
  bias = f'{layer}.self_attn_rel_pos.rel_attn_bias.weight'
  size, width = fairseq.shape(source, tensors, _TOKENS)
  buckets, heads = fairseq.shape(source, tensors, bias)
  rows = fairseq.shape(source, tensors, 'encoder.embed_positions.weight')[0]
  return TransformerConfig(
    vocab_size=size,
    embed_dim=width,
    num_heads=heads,
    mlp_dim=fairseq.shape(source, tensors, f'{layer}.fc1.weight')[0],
    num_layers=fairseq.count_layers(source, tensors, 'encoder.layers'),
    activation='relu',
    norm_epsilon=fairseq.EPSILON,
    dtype=dtype,
    positions=PositionConfig(
      max_length=rows - _UNUSED_ROWS,
      relative='metro',
      num_buckets=buckets,
      max_distance=fairseq.distance(source, buckets),
      per_layer=True,
    ),
  )


def _fairseq_name(name: str) -> str:
  """A name of a folder's tensor, as fairseq has it; others stay."""
  stack, _, rest = name.partition('.')
  if stack not in ('encoder', 'decoder'):
    return name
  for pattern, there in _FOLDER_NAMES:
    renamed, count = re.subn(f'^{pattern}', there, rest)
    if count:
      return f'{stack}.{renamed}'
  norm = re.fullmatch(r'block\.(\d+)\.layer\.(\d)\.layer_norm\.(\w+)', rest)
  if norm is None:
    return name
  layer, part, last = norm.groups()
  cross = stack == 'decoder' and part == '1'
  own = 'encoder_attn_layer_norm' if cross else 'final_layer_norm'
  return f'{stack}.layers.{layer}.{own}.{last}'
