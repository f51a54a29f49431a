# SPDX-License-Identifier: Apache-2.0
"""The released models in NumPy, from their description, tensor by tensor.

Nothing of metro_jax is used. All in float64 and row by row.
"""

import math

import numpy as np


def layer_norm(x, state, name, eps=1e-5):
  x = x - x.mean(-1, keepdims=True)
  x = x / np.sqrt((x * x).mean(-1, keepdims=True) + eps)
  return x * state[f'{name}.weight'] + state[f'{name}.bias']


def linear(x, state, name):
  return x @ state[f'{name}.weight'].T + state[f'{name}.bias']


def gelu(x):
  return x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def relu(x):
  return np.maximum(x, 0)


def softmax(x):
  x = np.exp(x - x.max(-1, keepdims=True))
  return x / x.sum(-1, keepdims=True)


def bucket(relative, bins, furthest):
  """Of key - query; an integer at a time, numbered from 0 as in the files."""
  half = bins // 2
  exact = half // 2
  n = abs(relative)
  if n >= exact:
    steps = math.log(n / exact) / math.log((furthest - 1) / exact)
    n = min(half - 1, exact + math.ceil(steps * (half - 1 - exact)))
  return (n if relative > 0 else -n) + half - 1


def relative_bias(table, queries, keys, furthest):
  """[heads, queries, keys]."""
  bins, heads = table.shape
  out = np.zeros((heads, queries, keys))
  for q in range(queries):
    for k in range(keys):
      out[:, q, k] = table[bucket(k - q, bins, furthest)]
  return out


def attention(q, k, v, heads, bias, visible):
  """[queries, width] and keys; `visible` bool [queries, keys]."""
  width = q.shape[-1] // heads
  out = []
  for h in range(heads):
    part = slice(h * width, (h + 1) * width)
    scores = (q[:, part] / math.sqrt(width)) @ k[:, part].T
    if bias is not None:
      scores = scores + bias[h]
    scores = np.where(visible, scores, -np.inf)
    out.append(softmax(scores) @ v[:, part])
  return np.concatenate(out, -1)


def coco_encoder(state, prefix, tokens, furthest, embeddings=None):
  """Outputs of all layers for one row of fairseq's ids; pads are 1."""
  own = embeddings or prefix
  valid = tokens != 1
  x = state[f'{own}.embed_tokens.weight'][tokens]
  places = state[f'{embeddings or prefix}.embed_positions.weight']
  x = layer_norm(x + places[: len(tokens)], state, f'{own}.emb_layer_norm')
  x = x * valid[:, None]
  table = state[f'{prefix}.relative_attention_bias.weight']
  bias = relative_bias(table, len(tokens), len(tokens), furthest)
  visible = np.broadcast_to(valid, (len(tokens), len(tokens)))
  outputs = []
  layer = 0
  while f'{prefix}.layers.{layer}.fc1.weight' in state:
    name = f'{prefix}.layers.{layer}'
    q, k, v = np.split(linear(x, state, f'{name}.self_attn.in_proj'), 3, -1)
    y = attention(q, k, v, table.shape[1], bias, visible)
    y = linear(y, state, f'{name}.self_attn.out_proj')
    x = layer_norm(x + y, state, f'{name}.self_attn_layer_norm')
    y = linear(gelu(linear(x, state, f'{name}.fc1')), state, f'{name}.fc2')
    x = layer_norm(x + y, state, f'{name}.final_layer_norm')
    outputs.append(x)
    layer += 1
  return outputs


def lm_head(h, state, name, activation):
  h = activation(linear(h, state, f'{name}.dense'))
  h = layer_norm(h, state, f'{name}.layer_norm')
  return h @ state[f'{name}.weight'].T + state[f'{name}.bias']


def t5_attention(state, name, x, source, bias, visible):
  """One part of a layer: attention, residual sum, norm."""
  q = linear(x, state, f'{name}.q_proj')
  k = linear(source, state, f'{name}.k_proj')
  v = linear(source, state, f'{name}.v_proj')
  y = linear(attention(q, k, v, 2, bias, visible), state, f'{name}.out_proj')
  return layer_norm(x + y, state, f'{name}_layer_norm')


def t5_stack(state, name, tokens, furthest, encoded=None):
  """Last output of an encoder or decoder of METRO-T5 for one row, 2 heads."""
  n = len(tokens)
  # Positions count from 2, and pads (1) stay at 1.
  places = np.where(tokens != 1, np.cumsum(tokens != 1) + 1, 1)
  x = state['encoder.embed_tokens.weight'][tokens]
  x = x + state[f'{name}.embed_positions.weight'][places]
  x = layer_norm(x, state, f'{name}.layernorm_embedding')
  visible = np.broadcast_to(tokens != 1, (n, n))
  if encoded is not None:
    visible = np.tril(np.ones((n, n), bool))
  layer = 0
  while f'{name}.layers.{layer}.fc1.weight' in state:
    here = f'{name}.layers.{layer}'
    table = state.get(f'{here}.self_attn_rel_pos.rel_attn_bias.weight')
    bias = None if table is None else relative_bias(table, n, n, furthest)
    x = t5_attention(state, f'{here}.self_attn', x, x, bias, visible)
    if encoded is not None:
      states, keys = encoded
      keys = np.broadcast_to(keys, (n, len(keys)))
      x = t5_attention(state, f'{here}.encoder_attn', x, states, None, keys)
    y = linear(relu(linear(x, state, f'{here}.fc1')), state, f'{here}.fc2')
    x = layer_norm(x + y, state, f'{here}.final_layer_norm')
    layer += 1
  return x
