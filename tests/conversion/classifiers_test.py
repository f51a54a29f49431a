# SPDX-License-Identifier: Apache-2.0
"""Fine-tuned classifiers: the same logits in transformers, both directions."""

import conversion_models as tiny
import numpy as np
import pytest

from metro_jax import conversion, models, modules, pretrain
from metro_jax.conversion import classifiers, description, folders, model_dirs

torch = pytest.importorskip('torch')
transformers = pytest.importorskip('transformers')

# Logits of order 1 to 10 in float32 through two layers, sums in other orders.
TOLERANCE = 1e-4
CLASSES = 3
SIZES = {
  'vocab_size': tiny.VOCAB,
  'hidden_size': 16,
  'num_hidden_layers': 2,
  'num_attention_heads': 2,
  'intermediate_size': 24,
  'max_position_embeddings': 20,
  'num_labels': CLASSES,
}
KINDS = {
  'electra': (
    classifiers.ELECTRA,
    transformers.ElectraForSequenceClassification,
    transformers.ElectraConfig(**SIZES, embedding_size=12),
  ),
  'bert': (
    classifiers.BERT,
    transformers.BertForSequenceClassification,
    transformers.BertConfig(**SIZES),
  ),
}


def theirs(network, ids):
  with torch.no_grad():
    rows = torch.from_numpy(ids).long()
    mask = (rows != 0).long()
    return network.eval()(input_ids=rows, attention_mask=mask).logits.numpy()


def ours(model, params, ids):
  batch = model.build_batch_spec(*ids.shape) | tiny.encoder_batch(ids)
  (logits,) = model.outputs(model_dirs.tree_of(params), batch).values()
  return np.asarray(logits)


@pytest.mark.parametrize('name', list(KINDS))
def test_logits_both_directions(tmp_path, name):
  kind, network, config = KINDS[name]
  ids = tiny.tokens()
  torch.manual_seed(0)
  there = network(config)
  with torch.no_grad():
    for key, x in there.named_parameters():
      x.normal_(1.0 if 'norm.weight' in key.lower() else 0.0, 0.3)
  there.save_pretrained(tmp_path / 'there')
  model, params, unread = conversion.read_model(tmp_path / 'there')
  assert not unread
  np.testing.assert_allclose(
    ours(model, params, ids), theirs(there, ids), TOLERANCE, TOLERANCE
  )

  random = tiny.random_params(model, seed=1)
  assert kind.misfit(model) is None
  folders.write(tmp_path / 'back', *kind.export(model, random)[''])
  back = network.from_pretrained(tmp_path / 'back')
  np.testing.assert_allclose(
    ours(model, random, ids), theirs(back, ids), TOLERANCE, TOLERANCE
  )
  _, again, _ = conversion.read_model(tmp_path / 'back')
  for key, x in random.items():
    np.testing.assert_array_equal(again[key], x, err_msg=key)


def test_a_classifier_goes_to_a_model_dir_and_out_again(tmp_path):
  _, network, config = KINDS['electra']
  network(config).save_pretrained(tmp_path / 'in')
  conversion.import_model(tmp_path / 'in', tmp_path / 'run')
  name = conversion.export_model(tmp_path / 'run', tmp_path / 'out')
  assert name == 'electra_classifier'
  before = folders.read_tensors(tmp_path / 'in')
  after = folders.read_tensors(tmp_path / 'out')
  np.testing.assert_array_equal(
    after['classifier.out_proj.weight'], before['classifier.out_proj.weight']
  )
  run = model_dirs.read(tmp_path / 'run')
  plain = description.describe(run.model)
  assert description.describe(description.build(plain, 'x')) == plain
  # To be fine-tuned further, on another task.
  more = models.with_heads(run.model, {'cola': ('classification', 2)})
  shapes = model_dirs.shapes(more)
  assert shapes['heads/cola/output/kernel'] == (16, 2)
  kept = {k for k in run.params if not k.startswith('heads/')}
  assert kept == {k for k in shapes if not k.startswith('heads/')}
  assert all(run.params[k].shape == shapes[k] for k in kept)


def test_what_is_no_classifier_is_told_why():
  def tuned(kind, **more):
    config = modules.TransformerConfig(
      **{'vocab_size': tiny.VOCAB, 'embed_dim': 16, 'mlp_dim': 24},
      **{'num_heads': 2, 'num_layers': 1},
      positions=modules.PositionConfig(max_length=16, relative=None),
    )
    pretrainer = pretrain.Pretrainer(
      config=config, main=modules.Encoder(config), objectives=(pretrain.RTD(),)
    )
    source = models.PretrainingModel(pretrainer)
    return models.with_heads(source, {'task': (kind, 2)}, **more)

  number, plain = tuned('regression'), tuned('classification')
  gelu = tuned('classification', head_activation='gelu')
  assert 'classification task' in classifiers.ELECTRA.misfit(number)
  assert "not 'gelu'" in classifiers.ELECTRA.misfit(plain)
  assert classifiers.BERT.misfit(plain) is None
  assert classifiers.ELECTRA.misfit(gelu) is None
