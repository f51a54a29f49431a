# SPDX-License-Identifier: Apache-2.0
"""ELECTRA, BERT and T5: the same logits in transformers, both directions."""

import json

import conversion_models as tiny
import numpy as np
import pytest

from metro_jax import conversion, models, modules, pretrain
from metro_jax.conversion import bert, electra, folders, model_dirs, t5
from metro_jax.errors import UserError

torch = pytest.importorskip('torch')
transformers = pytest.importorskip('transformers')

# Logits of order 1 to 10 in float32 through two layers, sums in other orders.
TOLERANCE = 1e-4
SIZES = {
  'vocab_size': tiny.VOCAB,
  'hidden_size': 16,
  'num_hidden_layers': 2,
  'num_attention_heads': 2,
  'intermediate_size': 24,
  'max_position_embeddings': 20,
}


def randomized(network):
  """With numbers as large as trained ones, the same every time."""
  torch.manual_seed(0)
  with torch.no_grad():
    for name, x in network.named_parameters():
      x.normal_(1.0 if 'norm.weight' in name.lower() else 0.0, 0.3)
  return network.eval()


def logits_of(network, ids, **more):
  with torch.no_grad():
    ids = torch.from_numpy(ids).long()
    return network(
      input_ids=ids, attention_mask=(ids != 0).long(), **more
    ).logits.numpy()


def close(ours, theirs, ids):
  """At tokens; what padding gives is nobody's business."""
  valid = ids != 0
  np.testing.assert_allclose(
    np.asarray(ours)[valid], theirs[valid], rtol=TOLERANCE, atol=TOLERANCE
  )


def save(folder, written):
  for name, (config, tensors) in written.items():
    folders.write(folder / name, config, tensors)


@pytest.fixture(scope='module')
def electra_folders(tmp_path_factory):
  """A discriminator, and a generator that shares its embeddings."""
  root = tmp_path_factory.mktemp('electra')
  main = transformers.ElectraForPreTraining(
    transformers.ElectraConfig(**SIZES, embedding_size=12)
  )
  generator = transformers.ElectraForMaskedLM(
    transformers.ElectraConfig(
      **SIZES | {'hidden_size': 8, 'intermediate_size': 12}, embedding_size=12
    )
  )
  main, generator = randomized(main), randomized(generator)
  shared = main.electra.embeddings.state_dict()
  generator.electra.embeddings.load_state_dict(shared)
  main.save_pretrained(root / 'main')
  generator.save_pretrained(root / 'generator')
  return root, main, generator


def test_electra_logits_both_directions(electra_folders, tmp_path):
  root, main, generator = electra_folders
  ids = tiny.tokens()
  model, params, unread = conversion.read_model(
    root / 'main', root / 'generator'
  )
  assert not unread
  assert model.pretrainer.share == ('token', 'position', 'norm')
  answers = tiny.pretrainer_answers(model, params, ids)
  # Theirs says "replaced", ours "original".
  close(-answers['rtd'], logits_of(main, ids), ids)
  close(answers['mlm'][0], logits_of(generator, ids), ids)

  assert electra.misfit(model) is None
  ours = tiny.random_params(model, seed=1)
  save(tmp_path, electra.export(model, ours))
  back = transformers.ElectraForPreTraining.from_pretrained(tmp_path)
  answers = tiny.pretrainer_answers(model, ours, ids)
  close(-answers['rtd'], logits_of(back.eval(), ids), ids)
  folder = tmp_path / electra.AUXILIARY_FOLDER
  back = transformers.ElectraForMaskedLM.from_pretrained(folder)
  close(answers['mlm'][0], logits_of(back.eval(), ids), ids)

  _, again, _ = conversion.read_model(tmp_path, folder)
  assert set(again) == set(ours)
  for name, x in ours.items():
    np.testing.assert_array_equal(again[name], x, err_msg=name)


def test_electra_without_generator_is_a_detector(electra_folders):
  root, main, _ = electra_folders
  model, params, _ = conversion.read_model(root / 'main')
  ids = tiny.tokens(3)
  answers = tiny.pretrainer_answers(model, params, ids)
  close(-answers['rtd'], logits_of(main, ids), ids)
  with pytest.raises(UserError, match='is the generator'):
    conversion.read_model(root / 'generator')


def test_electra_that_shares_less(electra_folders, tmp_path):
  root, _, _ = electra_folders
  tensors = folders.read_tensors(root / 'generator')
  name = 'electra.embeddings.position_embeddings.weight'
  tensors[name] = tensors[name] + 1
  config = folders.read_config(root / 'generator')
  folders.write(tmp_path, config, tensors)
  model, params, _ = conversion.read_model(root / 'main', tmp_path)
  assert model.pretrainer.share == ('token', 'norm')
  assert 'auxiliary/embedder/position/embedding' in params


def test_bert_logits_both_directions(tmp_path):
  network = randomized(
    transformers.BertForMaskedLM(transformers.BertConfig(**SIZES))
  )
  network.save_pretrained(tmp_path / 'bert')
  model, params, unread = conversion.read_model(tmp_path / 'bert')
  assert not unread
  ids = tiny.tokens()
  answers = tiny.pretrainer_answers(model, params, ids)
  close(answers['clm'], logits_of(network, ids), ids)

  ours = tiny.random_params(model, seed=1)
  save(tmp_path / 'out', bert.export(model, ours))
  back = transformers.BertForMaskedLM.from_pretrained(tmp_path / 'out')
  answers = tiny.pretrainer_answers(model, ours, ids)
  close(answers['clm'], logits_of(back.eval(), ids), ids)


def test_bert_of_google_with_pooler_and_old_names(tmp_path):
  """As the first files were: gamma, beta, next-sentence head, a pickle."""
  network = randomized(
    transformers.BertForPreTraining(transformers.BertConfig(**SIZES))
  )
  state = {
    name.replace('LayerNorm.weight', 'LayerNorm.gamma').replace(
      'LayerNorm.bias', 'LayerNorm.beta'
    ): x
    for name, x in network.state_dict().items()
  }
  network.config.save_pretrained(tmp_path)
  torch.save(state, tmp_path / 'pytorch_model.bin')
  model, params, unread = conversion.read_model(tmp_path)
  assert {name.split('.')[1] for name in unread} == {
    'pooler',
    'seq_relationship',
  }
  ids = tiny.tokens()
  with torch.no_grad():
    there = torch.from_numpy(ids).long()
    out = network(input_ids=there, attention_mask=(there != 0).long())
  answers = tiny.pretrainer_answers(model, params, ids)
  close(answers['clm'], out.prediction_logits.numpy(), ids)


def t5_network():
  config = transformers.T5Config(
    vocab_size=tiny.VOCAB,
    d_model=16,
    d_kv=12,  # Not d_model / heads, as in T5's larger sizes.
    d_ff=24,
    num_layers=2,
    num_decoder_layers=1,
    num_heads=2,
    relative_attention_num_buckets=8,
    relative_attention_max_distance=9,
    decoder_start_token_id=0,
    tie_word_embeddings=True,
  )
  return randomized(transformers.T5ForConditionalGeneration(config))


def test_t5_logits_both_directions(tmp_path):
  network = t5_network()
  network.save_pretrained(tmp_path / 't5')
  model, params, unread = conversion.read_model(tmp_path / 't5')
  assert not unread
  ids, targets = tiny.tokens(), tiny.tokens(1)
  there = torch.from_numpy(targets).long()
  ours = tiny.seq2seq_logits(model, params, ids, targets)
  close(ours, logits_of(network, ids, decoder_input_ids=there), targets)

  assert t5.misfit(model) is None
  params = tiny.random_params(model, seed=1)
  save(tmp_path / 'out', t5.export(model, params))
  back = transformers.T5ForConditionalGeneration.from_pretrained(
    tmp_path / 'out'
  ).eval()
  ours = tiny.seq2seq_logits(model, params, ids, targets)
  close(ours, logits_of(back, ids, decoder_input_ids=there), targets)


def test_t5_of_another_kind_is_refused(tmp_path):
  network = t5_network()
  network.config.feed_forward_proj = 'gated-gelu'
  network.save_pretrained(tmp_path)
  with pytest.raises(UserError, match='gated-gelu'):
    conversion.read_model(tmp_path)


# ----------------------------------------------------------------------
# Files that do not fit.
# ----------------------------------------------------------------------


@pytest.fixture
def bert_folder(tmp_path):
  """A BERT's config and tensors, to be spoilt."""
  network = transformers.BertForMaskedLM(transformers.BertConfig(**SIZES))
  network.save_pretrained(tmp_path)
  return (
    tmp_path,
    folders.read_config(tmp_path),
    folders.read_tensors(tmp_path),
  )


@pytest.mark.parametrize(
  ('spoil', 'message'),
  [
    (lambda t, n: t.pop(n), 'lacks .*intermediate.dense.weight'),
    (lambda t, n: t.update(extra=t[n]), 'has extra, which'),
    (
      lambda t, n: t.update({n: t[n][:, :3]}),
      r'\(24, 3\) instead of \(24, 16\)',
    ),
    (lambda t, n: t.update({n: t[n] * np.nan}), 'values that are no numbers'),
  ],
  ids=['missing', 'surplus', 'shape', 'nan'],
)
def test_what_does_not_fit_is_named_and_nothing_written(
  bert_folder, tmp_path, spoil, message
):
  folder, config, tensors = bert_folder
  spoil(tensors, 'bert.encoder.layer.1.intermediate.dense.weight')
  folders.write(folder, config, tensors)
  with pytest.raises(UserError, match=message):
    conversion.import_model(folder, tmp_path / 'model_dir')
  assert not (tmp_path / 'model_dir').exists()


@pytest.mark.parametrize('name', ['../evil.safetensors', '/etc/passwd', 'link'])
def test_an_index_stays_in_its_folder(bert_folder, tmp_path_factory, name):
  folder, _, tensors = bert_folder
  outside = tmp_path_factory.mktemp('outside') / 'evil.safetensors'
  (folder / folders.SAFETENSORS).rename(outside)
  (folder.parent / 'evil.safetensors').write_bytes(outside.read_bytes())
  (folder / 'link').symlink_to(outside)
  index = folder / f'{folders.SAFETENSORS}.index.json'
  index.write_text(json.dumps({'weight_map': dict.fromkeys(tensors, name)}))
  with pytest.raises(UserError, match='outside of its folder'):
    conversion.read_model(folder)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_half_precision(bert_folder, dtype):
  from safetensors.torch import save_file

  folder, _, tensors = bert_folder
  there = {k: torch.from_numpy(x.copy()).to(dtype) for k, x in tensors.items()}
  save_file(there, folder / folders.SAFETENSORS)
  _, params, _ = conversion.read_model(folder)
  table = there['bert.embeddings.word_embeddings.weight'].float().numpy()
  np.testing.assert_array_equal(params['embedder/token/embedding'], table)
  assert params['embedder/token/embedding'].dtype == np.float32


def test_a_broken_file_is_refused_in_one_line(bert_folder):
  folder, _, _ = bert_folder
  path = folder / folders.SAFETENSORS
  path.write_bytes(path.read_bytes()[:-5])
  with pytest.raises(UserError, match='broken safetensors'):
    conversion.read_model(folder)


def test_shards(bert_folder):
  folder, _, tensors = bert_folder
  (folder / folders.SAFETENSORS).unlink()
  from safetensors.numpy import save_file

  names = sorted(tensors)
  where = {}
  for i, part in enumerate((names[:5], names[5:])):
    save_file({n: tensors[n] for n in part}, folder / f'part-{i}.safetensors')
    where |= dict.fromkeys(part, f'part-{i}.safetensors')
  index = folder / f'{folders.SAFETENSORS}.index.json'
  index.write_text(json.dumps({'weight_map': where}))
  assert set(conversion.read_model(folder)[1]) > {'lm_head/bias'}


def test_models_that_no_class_fits():
  config = modules.TransformerConfig(
    vocab_size=tiny.VOCAB, embed_dim=16, num_heads=2, mlp_dim=24, num_layers=1
  )
  metro = models.PretrainingModel(
    pretrain.Pretrainer(
      config=config,
      main=modules.Encoder(config),
      auxiliary=pretrain.Auxiliary(config),
    )
  )
  assert 'objectives besides' in electra.misfit(metro)
  assert 'auxiliary' in bert.misfit(metro)
  assert 'text-to-text' in t5.misfit(metro)
  assert model_dirs.shapes(metro)
