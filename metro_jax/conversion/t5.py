# SPDX-License-Identifier: Apache-2.0
"""T5 1.0 (`transformers.T5ForConditionalGeneration`).

That is: RMSNorm before each part, no biases, relative positions in both
stacks, ReLU, one table for input and output. Two of T5's conventions are
taken into weights, which changes no logit: it does not divide attention by
sqrt(head_dim), so our queries are larger by that; and it divides what goes to
the output table by sqrt(embed_dim), so our last norm's scale is smaller.
"""

from typing import Any

from metro_jax.conversion import rules
from metro_jax.conversion.rules import LINEAR, SAME, Rule, Tensors
from metro_jax.errors import UserError
from metro_jax.models import TextToText, TextToTextModel
from metro_jax.modules import (
  EncoderDecoder,
  LMHead,
  PositionConfig,
  TransformerConfig,
)

NAME = 't5'
MODEL_TYPE = 't5'


def _attention(ours: str, theirs: str, config: TransformerConfig) -> tuple:
  queries = rules.scaled(LINEAR, config.head_width**0.5)
  return (
    (f'{ours}/query/kernel', f'{theirs}.q.weight', queries),
    (f'{ours}/key/kernel', f'{theirs}.k.weight', LINEAR),
    (f'{ours}/value/kernel', f'{theirs}.v.weight', LINEAR),
    (f'{ours}/out/kernel', f'{theirs}.o.weight', rules.LINEAR_OF_HEADS),
  )


def _stack(config: TransformerConfig, name: str, parts: dict) -> list[Rule]:
  """Rules of a stack whose layers have these parts: ours -> theirs."""
  table = []
  for i, (ours, theirs) in enumerate(parts.items()):
    there = f'layer.{i}.{theirs}'
    table.append((f'{ours}_norm/scale', f'layer.{i}.layer_norm.weight', SAME))
    if ours != 'mlp':
      table += _attention(ours, there, config)
      continue
    for dense in ('wi', 'wo'):
      table.append((f'mlp/{dense}/kernel', f'{there}.{dense}.weight', LINEAR))
  ours, last = f'main/{name}/stack', SAME
  if name == 'decoder':
    last = rules.scaled(SAME, config.embed_dim**-0.5)
  return [
    *rules.layers(config.num_layers, ours, f'{name}.block.{{i}}', table),
    Rule(f'{ours}/final_norm/scale', f'{name}.final_layer_norm.weight', last),
    Rule(
      f'{ours}/relative_bias/embedding',
      f'{name}.block.0.layer.0.SelfAttention.relative_attention_bias.weight',
    ),
  ]


def name_map(
  config: TransformerConfig, decoder: TransformerConfig
) -> rules.NameMap:
  """The rules of an encoder-decoder."""
  own = {'attention': 'SelfAttention'}
  cross = {'cross_attention': 'EncDecAttention'}
  mlp = {'mlp': 'DenseReluDense'}
  return rules.NameMap(
    (
      Rule('embedder/token/embedding', 'shared.weight'),
      *_stack(config, 'encoder', own | mlp),
      *_stack(decoder, 'decoder', own | cross | mlp),
    ),
    {
      f'{name}.weight': 'shared.weight'
      for name in ('encoder.embed_tokens', 'decoder.embed_tokens', 'lm_head')
    },
    # Of old files; it was never used.
    ('decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.*',),
  )


def misfit(model: Any) -> str | None:
  """Why a model cannot be a T5; None if it can."""
  if not isinstance(model, TextToTextModel):
    return 'it is no text-to-text model'
  head, main = model.text_to_text.lm_head, model.text_to_text.main
  if head.projection or head.use_bias:
    return 'its LMHead has a projection or a bias'
  for config in (main.config, main.decoder_config):
    if (config.norm, config.norm_placement) != ('rms', 'pre'):
      return "its TransformerConfig has not norm = 'rms' before each part"
    if config.use_bias or config.embed_norm or config.activation != 'relu':
      return 'it has biases, a norm of the embeddings or another activation'
    positions = config.positions
    if positions.relative != 't5' or positions.per_layer:
      return "it has not one relative bias of kind 't5' in each stack"
    if positions.absolute or positions.untied or positions.reset_cls:
      return 'it has absolute positions, or a [CLS] reset'
  if main.config.table_width != main.config.embed_dim:
    return 'its table_dim is not its embed_dim'
  return None


def export(model: TextToTextModel, params: Tensors) -> dict[str, Any]:
  """Folders of a model: '' -> (config, tensors)."""
  main = model.text_to_text.main
  config, positions = main.config, main.config.positions
  about = {
    'architectures': ['T5ForConditionalGeneration'],
    'model_type': MODEL_TYPE,
    'vocab_size': config.vocab_size,
    'd_model': config.embed_dim,
    'd_kv': config.head_width,
    'd_ff': config.mlp_dim,
    'num_heads': config.num_heads,
    'num_layers': config.num_layers,
    'num_decoder_layers': main.decoder_config.num_layers,
    'relative_attention_num_buckets': positions.num_buckets,
    'relative_attention_max_distance': positions.max_distance,
    'layer_norm_epsilon': config.norm_epsilon,
    'feed_forward_proj': 'relu',
    'is_encoder_decoder': True,
    'tie_word_embeddings': True,
    'pad_token_id': 0,
    'eos_token_id': model.end_id,
    'decoder_start_token_id': model.text_to_text.start_id,
    'dtype': 'float32',
  }
  tensors = name_map(config, main.decoder_config).export(params)
  return {'': (about, tensors)}


def restore(
  source: str, config: dict[str, Any], tensors: Tensors, dtype: str
) -> tuple[TextToTextModel, rules.NameMap, Tensors]:
  """A model for the tensors of a folder, and how to read them."""
  kind = config.get('feed_forward_proj', 'relu')
  if kind != 'relu' or not config.get('tie_word_embeddings', True):
    raise UserError(
      f'{source}: feed_forward_proj {kind!r} or an output matrix of its own'
      ' (T5 1.1) has no place here; take a T5 1.0'
    )
  try:
    encoder, decoder = (
      TransformerConfig(
        vocab_size=int(config['vocab_size']),
        embed_dim=int(config['d_model']),
        num_heads=int(config['num_heads']),
        head_dim=int(config['d_kv']),
        mlp_dim=int(config['d_ff']),
        num_layers=int(layers),
        activation='relu',
        norm='rms',
        norm_placement='pre',
        norm_epsilon=float(config.get('layer_norm_epsilon', 1e-6)),
        use_bias=False,
        embed_norm=False,
        dtype=dtype,
        positions=PositionConfig(
          absolute=False,
          relative='t5',
          num_buckets=int(config['relative_attention_num_buckets']),
          max_distance=int(config.get('relative_attention_max_distance', 128)),
        ),
      )
      for layers in (
        config['num_layers'],
        config.get('num_decoder_layers') or config['num_layers'],
      )
    )
    text_to_text = TextToText(
      encoder,
      EncoderDecoder(encoder, decoder, parent=None),
      LMHead(encoder, projection=False, use_bias=False, parent=None),
      start_id=int(config.get('decoder_start_token_id', 0)),
      parent=None,
    )
    model = TextToTextModel(text_to_text, int(config.get('eos_token_id', 1)))
  except (KeyError, TypeError, ValueError) as error:
    said = error if isinstance(error, UserError) else repr(error)
    raise UserError(f'{source}/config.json: {said}') from error
  return model, name_map(encoder, decoder), tensors
