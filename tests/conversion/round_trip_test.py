# SPDX-License-Identifier: Apache-2.0
"""MODEL_DIR to a folder and back: the same model, the same next step."""

import json
import subprocess
import sys

import conversion_models as tiny
import jax
import numpy as np
import optax
import pretrain_models
import pytest

from metro_jax import conversion, convert, inference, models, modules, pretrain
from metro_jax.conversion import description, folders, model_dirs, native
from metro_jax.conversion.model_dirs import Trained
from metro_jax.errors import UserError
from metro_jax.training.state import named_leaves

pytest_plugins = ('tiny_run',)


def config(**changes):
  sizes = {'vocab_size': tiny.VOCAB, 'embed_dim': 16, 'mlp_dim': 24}
  sizes |= {'num_heads': 2, 'num_layers': 2, 'dtype': 'float32'}
  return modules.TransformerConfig(**(sizes | changes))


def electra_model():
  ours = config(
    positions=modules.PositionConfig(max_length=16, relative=None), table_dim=8
  )
  return models.PretrainingModel(
    pretrain.Pretrainer(
      config=ours,
      main=modules.Encoder(ours),
      auxiliary=pretrain.Auxiliary(ours, dropout_rate=0.1, second_pass=False),
      objectives=(pretrain.MLM(), pretrain.RTD()),
      share=('token', 'position', 'norm'),
      rtd_head=modules.RTDHead(ours, hidden=True),
    )
  )


def amos_model():
  ours = config(positions=modules.PositionConfig(max_length=16))
  return models.PretrainingModel(
    pretrain.Pretrainer(
      config=ours,
      main=modules.Encoder(ours),
      auxiliary=pretrain.Auxiliary(
        ours, mlm_layers=(1, 2), mixture=pretrain.LearnedMixture()
      ),
      sampler=pretrain.GumbelStraightThrough(),
      objectives=(pretrain.MLM(), pretrain.RTD()),
    ),
    curriculum_steps=100,
  )


def next_step(model):
  """Compiled: parameters by name -> those after one step of Adam."""
  batch = pretrain_models.numbered(tiny.encoder_batch(tiny.tokens()))
  optimizer = optax.adam(1e-3)

  @jax.jit
  def step(params):
    def loss(params):
      return model.loss_fn(params, batch, jax.random.key(1), 3, train=True)[0]

    gradient = jax.grad(loss)(params)
    updates, _ = optimizer.update(gradient, optimizer.init(params), params)
    return optax.apply_updates(params, updates)

  return lambda params: named_leaves(
    jax.device_get(step(model_dirs.tree_of(params)))
  )


@pytest.mark.parametrize(
  ('build', 'name'),
  [
    (electra_model, 'electra'),
    pytest.param(amos_model, 'native', marks=pytest.mark.slow),
  ],
)
def test_one_more_step_is_the_same_after_a_round_trip(tmp_path, build, name):
  model = build()
  trained = Trained(model, tiny.random_params(model), None, 7)
  model_dirs.write(tmp_path / 'run', trained)
  assert conversion.export_model(tmp_path / 'run', tmp_path / 'out') == name
  generator = tmp_path / 'out' / 'generator'
  conversion.import_model(
    tmp_path / 'out',
    tmp_path / 'again',
    generator if generator.exists() else None,
  )
  again = model_dirs.read(tmp_path / 'again')
  before = model_dirs.read(tmp_path / 'run')
  assert before.step == 7
  assert set(again.params) == set(trained.params)
  for key, x in trained.params.items():
    np.testing.assert_array_equal(again.params[key], x, err_msg=key)
  assert description.describe(again.model) == description.describe(model)
  step = next_step(model)
  one, other = (step(x.params) for x in (before, again))
  for key, x in one.items():
    np.testing.assert_array_equal(other[key], x, err_msg=key)


def test_scanned_layers_are_exported_one_by_one(tmp_path):
  model = amos_model()
  plain = description.describe(model)
  scanned = json.loads(
    json.dumps(plain).replace('"scan_layers": false', '"scan_layers": true')
  )
  # Taps need a loop: the auxiliary keeps it.
  scanned['pretrainer']['auxiliary'] = plain['pretrainer']['auxiliary']
  scanned = description.build(scanned, 'test')
  params = tiny.random_params(model)
  assert model_dirs.shapes(scanned) == {k: x.shape for k, x in params.items()}
  written = native.export(scanned, params)['']
  folders.write(tmp_path, *written)
  again, found, _ = conversion.read_model(tmp_path)
  assert description.describe(again) == plain
  assert set(found) == set(params)


def test_a_description_names_only_parts_of_models(tmp_path):
  good = description.describe(amos_model())
  assert description.describe(description.build(good, 'x')) == good
  for bad in (
    {'class': 'os.system', 'command': 'true'},
    {'class': 'models.Model'},
    {'class': 'data.Vocabulary', 'path': '/etc/passwd'},
    {**good, 'parent': None},
    {**good, 'pretrainer': {'class': 'modules.Encoder', 'confg': 1}},
  ):
    with pytest.raises(UserError):
      description.build(bad, 'x')


def test_native_folder_answers_as_its_model_dir(tiny_run, tmp_path):
  """The command line, a real run, and the tokenizer."""
  out = tmp_path / 'out'
  convert.main(['export', f'--model_dir={tiny_run}', f'--output={out}'])
  card = (out / 'README.md').read_text()
  assert 'native.load' in card and 'parameters' in card
  texts = ['Returns the array of the file.', 'Returns the sum.']
  here = inference.load(tiny_run).detect(texts)
  there = native.load(out).detect(texts)
  for a, b in zip(here, there, strict=True):
    np.testing.assert_array_equal(a.p_replaced, b.p_replaced)


def test_mistakes_end_in_one_line(tmp_path):
  (tmp_path / 'there').mkdir()
  command = [sys.executable, '-m', 'metro_jax.convert', 'import']
  command += [f'--source={tmp_path}', f'--model_dir={tmp_path}/there']
  done = subprocess.run(command, capture_output=True, text=True, check=False)
  assert done.returncode == 2
  assert done.stderr.startswith('error: --model_dir=')
  assert len(done.stderr.splitlines()) == 1
  with pytest.raises(UserError, match='model_type None'):
    (tmp_path / 'config.json').write_text('{}')
    convert.main(
      ['import', f'--source={tmp_path}', f'--model_dir={tmp_path}/new']
    )


def test_rows_follow_the_tokens_of_a_foreign_vocabulary(tmp_path):
  tokenizers = pytest.importorskip('tokenizers')
  words = ['x', '[PAD]', 'y', '[UNK]', '[MASK]', '[SEP]', '[CLS]', 'z']
  level = tokenizers.models.WordLevel(
    {w: i for i, w in enumerate(words)}, unk_token='[UNK]'
  )
  model = electra_model()
  params = tiny.random_params(model)
  model_dirs.write(tmp_path / 'run', Trained(model, params))
  conversion.export_model(tmp_path / 'run', tmp_path / 'out')
  tokenizers.Tokenizer(level).save(str(tmp_path / 'out' / 'tokenizer.json'))
  conversion.import_model(
    tmp_path / 'out', tmp_path / 'new', tmp_path / 'out' / 'generator'
  )
  found = model_dirs.read(tmp_path / 'new').params
  order = [1, 3, 6, 5, 4, 0, 2, 7, *range(8, tiny.VOCAB)]
  for name in ('embedder/token/embedding', 'auxiliary/mlm_head/bias'):
    np.testing.assert_array_equal(found[name], params[name][order])
  conversion.export_model(tmp_path / 'new', tmp_path / 'back')
  for part in ('.', 'generator'):
    one, other = (
      folders.read_tensors(tmp_path / f / part) for f in ('out', 'back')
    )
    for name, x in one.items():
      np.testing.assert_array_equal(other[name], x, err_msg=name)


@pytest.mark.parametrize(
  ('spoil', 'message'),
  [
    (lambda t, n: t.pop(n), 'lacks {}'),
    (lambda t, n: t.update(extra=t[n]), 'has extra, which'),
    (lambda t, n: t.update({n: t[n][:3]}), '{} .*instead of'),
    (lambda t, n: t.update({n: t[n] * np.nan}), '{} .*values that are no'),
  ],
  ids=['missing', 'surplus', 'shape', 'nan'],
)
def test_a_spoilt_native_folder_is_refused(tmp_path, spoil, message):
  model = amos_model()
  name = 'embedder.token.embedding'
  config, tensors = native.export(model, tiny.random_params(model))['']
  spoil(tensors, name)
  folders.write(tmp_path / 'in', config, tensors)
  with pytest.raises(UserError, match=message.format(name)):
    conversion.import_model(tmp_path / 'in', tmp_path / 'model_dir')
  assert not (tmp_path / 'model_dir').exists()
