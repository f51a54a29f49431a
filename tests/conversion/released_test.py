# SPDX-License-Identifier: Apache-2.0
"""COCO-LM, AMOS and METRO-T0: their names and shapes, and a NumPy forward.

No released file is at hand: state dicts are made up with the names and shapes
that the public code gives them.
"""

import re

import conversion_models as tiny
import numpy as np
import pytest
import released_models_numpy as oracle

from metro_jax import conversion, models
from metro_jax.conversion import fairseq, folders, metro_t0
from metro_jax.errors import UserError

torch = pytest.importorskip('torch')

# Float32 against float64, logits of order 10 after two layers.
TOLERANCE = 1e-4
WIDTH, HEADS, WIDE, BINS, POSITIONS = 16, 2, 24, 32, 20


def made_up(shapes, seed=0):
  rng = np.random.default_rng(seed)
  return {
    name: rng.normal(
      1.0 if 'norm' in name and name.endswith('weight') else 0.0, 0.3, shape
    ).astype(np.float32)
    for name, shape in shapes.items()
  }


def pair(name, out, inner=None):
  return {
    f'{name}.weight': (out,) if inner is None else (out, inner),
    f'{name}.bias': (out,),
  }


def coco_encoder(prefix, layers, embeddings):
  shapes = {f'{prefix}.relative_attention_bias.weight': (BINS, HEADS)}
  if embeddings:
    shapes[f'{prefix}.embed_tokens.weight'] = (tiny.VOCAB, WIDTH)
    shapes[f'{prefix}.embed_positions.weight'] = (POSITIONS, WIDTH)
    shapes |= pair(f'{prefix}.emb_layer_norm', WIDTH)
  for i in range(layers):
    layer = f'{prefix}.layers.{i}'
    shapes |= pair(f'{layer}.self_attn.in_proj', 3 * WIDTH, WIDTH)
    shapes |= pair(f'{layer}.self_attn.out_proj', WIDTH, WIDTH)
    shapes |= pair(f'{layer}.self_attn_layer_norm', WIDTH)
    shapes |= pair(f'{layer}.fc1', WIDE, WIDTH)
    shapes |= pair(f'{layer}.fc2', WIDTH, WIDE)
    shapes |= pair(f'{layer}.final_layer_norm', WIDTH)
  return shapes


MAIN, AUXILIARY = 'encoder.sentence_encoder', 'auxiliary.sentence_encoder'


def coco_state(shares_all=True):
  shapes = coco_encoder(MAIN, 2, True) | coco_encoder(AUXILIARY, 1, True)
  shapes |= pair('encoder.binary_head.out_proj', 1, WIDTH)
  shapes |= {'encoder.lm_head.bias': (tiny.VOCAB,)}
  shapes |= pair('encoder.seq_head.dense', WIDTH, WIDTH)
  shapes |= pair('encoder.seq_head.layer_norm', WIDTH)
  shapes |= pair('auxiliary.lm_head.dense', WIDTH, WIDTH)
  shapes |= pair('auxiliary.lm_head.layer_norm', WIDTH)
  shapes |= {'auxiliary.lm_head.bias': (tiny.VOCAB,)}
  state = made_up(shapes)
  tokens = state[f'{MAIN}.embed_tokens.weight']
  for name in ('encoder.lm_head.weight', 'auxiliary.lm_head.weight'):
    state[name] = tokens
  state[f'{AUXILIARY}.embed_tokens.weight'] = tokens
  if shares_all:
    for name in list(state):
      if name.startswith(f'{AUXILIARY}.emb'):
        state[name] = state[name.replace(AUXILIARY, MAIN)]
  return state


def amos_state(layers=8):
  shapes = coco_encoder(MAIN, 1, True) | coco_encoder(AUXILIARY, layers, True)
  shapes |= pair('encoder.binary_head.out_proj', 1, WIDTH)
  shapes |= pair('auxiliary.lm_head.dense', WIDTH, WIDTH)
  shapes |= pair('auxiliary.lm_head.layer_norm', WIDTH)
  shapes |= {
    'auxiliary.lm_head.bias': (tiny.VOCAB,),
    'auxiliary.lm_head.layer_mixture.weight': (1, WIDTH),
  }
  state = made_up(shapes)
  tokens = state[f'{MAIN}.embed_tokens.weight']
  state['auxiliary.lm_head.weight'] = tokens
  state[f'{AUXILIARY}.embed_tokens.weight'] = tokens
  return state


def save_fairseq(path, state):
  """As fairseq does: settings of a class of its own beside the weights."""
  import argparse

  tensors = {k: torch.from_numpy(x) for k, x in state.items()}
  args = argparse.Namespace(arch='any', task='any')
  torch.save({'args': args, 'model': tensors, 'extra_state': {}}, path)


def theirs_and_ours(size, sentinels):
  """Rows of fairseq's ids, and of ours for the same tokens."""
  order = fairseq.order(size, sentinels)
  ours = tiny.tokens()
  ours[:, 1] = 4  # [MASK]
  return order[ours], ours


def wide(state):
  return {k: x.astype(np.float64) for k, x in state.items()}


def close(ours, theirs):
  np.testing.assert_allclose(ours, theirs, rtol=TOLERANCE, atol=TOLERANCE)


def test_order_of_a_dictionary():
  order = fairseq.order(12, 3)
  # [PAD] [UNK] [CLS] [SEP] [MASK], pieces, sentinels, <sen001> last.
  assert order.tolist() == [1, 3, 0, 2, 9, 4, 5, 6, 7, 8, 11, 10]
  assert fairseq.order(6, 1).tolist() == [1, 3, 0, 2, 5, 4]


def test_coco_lm_with_all_its_heads(tmp_path):
  state = coco_state()
  save_fairseq(tmp_path / 'cocolm.pt', state)
  model, params, unread = conversion.read_model(tmp_path / 'cocolm.pt')
  assert not unread
  assert model.pretrainer.share == ('token', 'position', 'norm')
  assert {o.name for o in model.pretrainer.objectives} == {
    'mlm',
    'rtd',
    'clm',
    'scl',
  }
  theirs, ours = theirs_and_ours(tiny.VOCAB, 1)
  answers = tiny.pretrainer_answers(model, params, ours)
  order, state = fairseq.order(tiny.VOCAB, 1), wide(state)
  for row, tokens in enumerate(theirs):
    n = int((tokens != 1).sum())
    h = oracle.coco_encoder(state, MAIN, tokens, 128)[-1]
    close(answers['encoded'][row, :n], h[:n])
    rtd = oracle.linear(h, state, 'encoder.binary_head.out_proj')[:, 0]
    close(answers['rtd'][row, :n], rtd[:n])
    clm = h @ state['encoder.lm_head.weight'].T + state['encoder.lm_head.bias']
    close(answers['clm'][row, :n], clm[:n, order])
    g = oracle.coco_encoder(state, AUXILIARY, tokens, 128)[-1]
    mlm = oracle.lm_head(g, state, 'auxiliary.lm_head', oracle.gelu)
    close(answers['mlm'][0, row, :n], mlm[:n, order])


def test_zero_dropout_coco_lm_shares_tokens_alone(tmp_path):
  save_fairseq(tmp_path / 'cocolm.pt', coco_state(shares_all=False))
  model, params, _ = conversion.read_model(tmp_path / 'cocolm.pt')
  assert model.pretrainer.share == ('token',)
  assert model.pretrainer.auxiliary.dropout_rate == 0
  assert 'auxiliary/embedder/norm/bias' in params


def test_amos_mixes_as_the_public_code(tmp_path):
  state = amos_state()
  save_fairseq(tmp_path / 'amos.pt', state)
  model, params, _ = conversion.read_model(tmp_path / 'amos.pt')
  theirs, ours = theirs_and_ours(tiny.VOCAB, 1)
  answers = tiny.pretrainer_answers(model, params, ours)
  order, state = fairseq.order(tiny.VOCAB, 1), wide(state)
  v = state['auxiliary.lm_head.layer_mixture.weight'][0]
  for row, tokens in enumerate(theirs):
    n = int((tokens != 1).sum())
    outputs = oracle.coco_encoder(state, AUXILIARY, tokens, 128)
    features = [outputs[depth - 1][:n] for depth in (4, 6, 8)]
    for head, f in enumerate(features):
      mlm = oracle.lm_head(f, state, 'auxiliary.lm_head', oracle.gelu)
      close(answers['mlm'][head, row, :n], mlm[:, order])
    gamma = oracle.softmax(np.stack([f @ v for f in features], -1))
    close(answers['mixture'][row, :n], gamma)


def folder_names(state, prefix):
  """COCO-LM's tensors by the names of its folders."""
  pairs = (
    (f'{MAIN}.layers.', 'encoder.layer.'),
    (f'{MAIN}.embed_tokens.', 'embeddings.word_embeddings.'),
    (f'{MAIN}.embed_positions.', 'embeddings.position_embeddings.'),
    (f'{MAIN}.emb_layer_norm.', 'embeddings.LayerNorm.'),
    (f'{MAIN}.', ''),
    ('.self_attn_layer_norm.', '.attention.LayerNorm.'),
    ('.self_attn.', '.attention.self_attn.'),
    ('.fc1.', '.intermediate.dense.'),
    ('.fc2.', '.output.dense.'),
    ('.final_layer_norm.', '.output.LayerNorm.'),
  )
  out = {}
  for name, x in state.items():
    if name.startswith(MAIN):
      for here, there in pairs:
        name = name.replace(here, there)
      out[f'{prefix}.{name}'] = x
  return out


@pytest.mark.parametrize('kind', ['cocolm', 'amos'])
def test_folders_of_coco_lm_and_amos(tmp_path, kind):
  state = coco_state()
  config = {'model_type': kind, 'rel_pos_bins': BINS, 'max_rel_pos': 128}
  folders.write(tmp_path, config, folder_names(state, kind))
  model, params, _ = conversion.read_model(tmp_path)
  assert model.pretrainer.auxiliary is None
  save_fairseq(tmp_path / 'same.pt', state)
  _, same, _ = conversion.read_model(tmp_path / 'same.pt')
  main = [k for k in params if k.startswith(('main/', 'embedder/'))]
  assert len(main) > 30
  for name in main:
    np.testing.assert_array_equal(params[name], same[name], err_msg=name)


# ----------------------------------------------------------------------
# METRO-T0.
# ----------------------------------------------------------------------

T0_VOCAB = 96 + metro_t0.SENTINELS


def t5_stack(name, layers, decoder):
  shapes = {f'{name}.embed_positions.weight': (POSITIONS + 2, WIDTH)}
  shapes |= pair(f'{name}.layernorm_embedding', WIDTH)
  for i in range(layers):
    layer = f'{name}.layers.{i}'
    kinds = ('self_attn', 'encoder_attn') if decoder else ('self_attn',)
    for kind in kinds:
      for part in ('q_proj', 'k_proj', 'v_proj', 'out_proj'):
        shapes |= pair(f'{layer}.{kind}.{part}', WIDTH, WIDTH)
      shapes |= pair(f'{layer}.{kind}_layer_norm', WIDTH)
    if not decoder:
      bias = f'{layer}.self_attn_rel_pos.rel_attn_bias.weight'
      shapes[bias] = (BINS, HEADS)
    shapes |= pair(f'{layer}.fc1', WIDE, WIDTH)
    shapes |= pair(f'{layer}.fc2', WIDTH, WIDE)
    shapes |= pair(f'{layer}.final_layer_norm', WIDTH)
  return shapes


def t0_state():
  shapes = {'encoder.embed_tokens.weight': (T0_VOCAB, WIDTH)}
  shapes |= t5_stack('encoder', 2, False) | t5_stack('decoder', 1, True)
  state = made_up(shapes)
  for name in ('decoder.embed_tokens', 'decoder.output_projection'):
    state[f'{name}.weight'] = state['encoder.embed_tokens.weight']
  return state


def t5_state():
  generator = 'generator.sentence_encoder'
  shapes = t5_stack(generator, 1, False)
  shapes |= pair('generator.lm_head.dense', WIDTH, WIDTH)
  shapes |= pair('generator.lm_head.layer_norm', WIDTH)
  shapes |= {'generator.lm_head.bias': (T0_VOCAB,)}
  shapes |= pair('rtd_head.dense', WIDTH, WIDTH)
  shapes |= pair('rtd_head.layer_norm', WIDTH)
  shapes |= {'rtd_head.weight': (1, WIDTH), 'rtd_head.bias': (1,)}
  state = t0_state() | made_up(shapes, seed=5)
  tokens = state['encoder.embed_tokens.weight']
  state[f'{generator}.embed_tokens.weight'] = tokens
  state['generator.lm_head.weight'] = tokens
  return state


def test_metro_t0_logits(tmp_path):
  state = t0_state()
  save_fairseq(tmp_path / 't0.pt', state)
  model, params, _ = conversion.read_model(tmp_path / 't0.pt')
  assert isinstance(model, models.TextToTextModel)
  theirs, ours = theirs_and_ours(T0_VOCAB, metro_t0.SENTINELS)
  targets = tiny.tokens(7)
  order = fairseq.order(T0_VOCAB, metro_t0.SENTINELS)
  logits = tiny.seq2seq_logits(model, params, ours, targets)
  state = wide(state)
  for row, tokens in enumerate(theirs):
    reads = order[targets[row][targets[row] != 0]]
    h = oracle.t5_stack(state, 'encoder', tokens, 128)
    h = oracle.t5_stack(state, 'decoder', reads, 128, (h, tokens != 1))
    full = h @ state['encoder.embed_tokens.weight'].T
    close(logits[row, : len(reads)], full[:, order])


def test_metro_t5_with_generator_and_detection(tmp_path):
  state = t5_state()
  save_fairseq(tmp_path / 't5.pt', state)
  model, params, _ = conversion.read_model(tmp_path / 't5.pt')
  assert model.pretrainer.share == ('token',)
  theirs, ours = theirs_and_ours(T0_VOCAB, metro_t0.SENTINELS)
  answers = tiny.pretrainer_answers(model, params, ours)
  order = fairseq.order(T0_VOCAB, metro_t0.SENTINELS)
  state = wide(state)
  for row, tokens in enumerate(theirs):
    n = int((tokens != 1).sum())
    h = oracle.t5_stack(state, 'encoder', tokens, 128)[:n]
    r = oracle.relu(oracle.linear(h, state, 'rtd_head.dense'))
    r = oracle.layer_norm(r, state, 'rtd_head.layer_norm')
    replaced = oracle.linear(r, state, 'rtd_head')[:, 0]
    close(-answers['rtd'][row, :n], replaced)
    g = oracle.t5_stack(state, 'generator.sentence_encoder', tokens, 128)[:n]
    mlm = oracle.lm_head(g, state, 'generator.lm_head', oracle.relu)
    close(answers['mlm'][0, row, :n], mlm[:, order])


def t0_folder_names(state):
  out = {'shared.weight': state['encoder.embed_tokens.weight']}
  pairs = (
    ('layers.', 'block.'),
    ('embed_positions', 'pos_embed'),
    ('layernorm_embedding', 'first_layer_norm'),
    (
      '.self_attn_rel_pos.rel_attn_bias',
      '.layer.0.SelfAttention.relative_attention_bias',
    ),
    ('.self_attn_layer_norm', '.layer.0.layer_norm'),
    ('.encoder_attn_layer_norm', '.layer.1.layer_norm'),
    ('.self_attn.', '.layer.0.SelfAttention.'),
    ('.encoder_attn.', '.layer.1.EncDecAttention.'),
    ('out_proj', 'o'),
    ('q_proj', 'q'),
    ('k_proj', 'k'),
    ('v_proj', 'v'),
    ('decoder.output_projection', 'lm_head'),
  )
  for name, x in state.items():
    last = '2' if name.startswith('decoder') else '1'
    for here, there in pairs:
      name = name.replace(here, there)
    dense = f'.layer.{last}.DenseReluDense'
    name = name.replace('.fc1', f'{dense}.wi').replace('.fc2', f'{dense}.wo')
    name = name.replace('.final_layer_norm', f'.layer.{last}.layer_norm')
    out[name] = x
  return out


def test_folder_of_metro_t0(tmp_path):
  state = t0_state()
  config = {
    'model_type': 'fairseq_t5',
    'relative_attention_num_buckets': BINS,
    'relative_attention_max_distance': 77,  # Not what was trained.
  }
  folders.write(tmp_path, config, t0_folder_names(state))
  model, params, _ = conversion.read_model(tmp_path)
  assert model.text_to_text.config.positions.max_distance == 128
  save_fairseq(tmp_path / 'same.pt', state)
  _, same, _ = conversion.read_model(tmp_path / 'same.pt')
  assert set(params) == set(same)
  for name, x in params.items():
    np.testing.assert_array_equal(x, same[name], err_msg=name)


def test_another_fairseq_model_is_refused(tmp_path):
  save_fairseq(tmp_path / 'other.pt', {'encoder.something': np.ones(3)})
  with pytest.raises(UserError, match='neither COCO-LM'):
    conversion.read_model(tmp_path / 'other.pt')


def t0_spoilt():
  return t0_state(), 'decoder.layers.0.fc1.weight'


def coco_spoilt():
  return coco_state(), f'{MAIN}.layers.1.fc1.weight'


@pytest.mark.parametrize('build', [coco_spoilt, t0_spoilt])
@pytest.mark.parametrize(
  ('spoil', 'message'),
  [
    (lambda t, n: t.pop(n), 'lacks {}'),
    (lambda t, n: t.update({f'{n}_v2': t[n]}), 'has {}_v2, which'),
    (lambda t, n: t.update({n: t[n][:, :3]}), r'{} .*instead of'),
    (
      lambda t, n: t.update({n: t[n] * np.nan}),
      '{} .*values that are no numbers',
    ),
  ],
  ids=['missing', 'surplus', 'shape', 'nan'],
)
def test_what_does_not_fit_is_named_and_nothing_written(
  tmp_path, build, spoil, message
):
  state, name = build()
  spoil(state, name)
  save_fairseq(tmp_path / 'x.pt', state)
  with pytest.raises(UserError, match=message.format(re.escape(name))):
    conversion.import_model(tmp_path / 'x.pt', tmp_path / 'model_dir')
  assert not (tmp_path / 'model_dir').exists()
