# SPDX-License-Identifier: Apache-2.0
"""PyTorch's files without running them."""

import argparse
import collections
import os
import pickle
import zipfile

import numpy as np
import pytest

from metro_jax import conversion
from metro_jax.conversion import pickles
from metro_jax.errors import UserError

torch = pytest.importorskip('torch')

_DTYPES = (
  torch.float32,
  torch.float64,
  torch.float16,
  torch.bfloat16,
  torch.int64,
  torch.uint8,
  torch.bool,
)


@pytest.mark.parametrize('zipped', [True, False])
def test_tensors_are_those_of_torch(tmp_path, zipped):
  torch.manual_seed(0)
  whole = torch.randn(6, 5)
  saved = {
    'all': {str(t): (3 * torch.randn(4, 3)).to(t) for t in _DTYPES},
    'view': whole[1:4, ::2],
    'transposed': whole.T,
    'parameter': torch.nn.Parameter(torch.ones(2)),
    'scalar': torch.tensor(2.5),
    'none': torch.zeros(0, 3),
    'ordered': collections.OrderedDict(step=3, rate=0.1),
  }
  path = tmp_path / 'x.pt'
  torch.save(saved, path, _use_new_zipfile_serialization=zipped)
  found = pickles.load(path)
  assert found['ordered'] == {'step': 3, 'rate': 0.1}
  assert found['parameter'].tolist() == [1, 1]
  for name in ('view', 'transposed', 'scalar', 'none'):
    np.testing.assert_array_equal(found[name], saved[name].numpy())
  for name, x in saved['all'].items():
    np.testing.assert_array_equal(
      found['all'][name].astype(np.float64), x.double().numpy()
    )


class _Bomb:
  """Makes a file when it is unpickled by a reader that trusts."""

  def __init__(self, target):
    self.target = target

  def __reduce__(self):
    return os.mkdir, (str(self.target),)


@pytest.mark.parametrize('zipped', [True, False])
def test_a_pickle_that_would_run_code_is_refused_and_does_not(tmp_path, zipped):
  target = tmp_path / 'ran'
  path = tmp_path / 'bomb.pt'
  saved = {'model': {'x': torch.ones(2)}, 'args': _Bomb(target)}
  torch.save(saved, path, _use_new_zipfile_serialization=zipped)
  with pytest.raises(UserError, match=r'bomb.pt.*\(it names \w+.mkdir, which'):
    conversion.import_model(path, tmp_path / 'model_dir')
  assert not target.exists()
  assert not (tmp_path / 'model_dir').exists()
  # The same file does run where it is trusted: the test can fail.
  torch.load(path, weights_only=False)
  assert target.exists()


class _Called:
  """Reduces to a call of a function of this module, which nobody makes."""

  def __reduce__(self):
    return _touch, ()


def _touch():
  raise AssertionError('called')


def test_functions_of_other_packages_are_not_called(tmp_path):
  torch.save({'x': torch.ones(2), 'args': _Called()}, tmp_path / 'x.pt')
  found = pickles.load(tmp_path / 'x.pt')
  assert isinstance(found['args'], pickles.Opaque)
  assert found['x'].tolist() == [1, 1]


@pytest.mark.parametrize(
  ('name', 'refused'),
  [
    ('os.system', True),
    ('posix.system', True),
    ('builtins.eval', True),
    ('__builtin__.exec', True),
    ('subprocess.Popen', True),
    ('importlib.import_module', True),
    ('builtins.getattr', True),
    ('argparse.Namespace', False),
    ('builtins.set', False),
    ('fairseq.dataclass.configs.FairseqConfig', False),
    ('omegaconf.dictconfig.DictConfig', False),
  ],
)
def test_which_names_are_refused(tmp_path, name, refused):
  module, _, last = name.rpartition('.')
  torch.save({'x': torch.ones(1)}, tmp_path / 'x.pt')
  # Protocol 0: the name, called with no arguments.
  call = f'(dS"a"\nc{module}\n{last}\n(tRs.'.encode()
  _rewritten(
    tmp_path / 'x.pt',
    lambda file, data: call if file.endswith('data.pkl') else data,
  )
  if refused:
    with pytest.raises(UserError, match=f'it names {name}, which'):
      pickles.load(tmp_path / 'x.pt')
  else:
    assert isinstance(pickles.load(tmp_path / 'x.pt')['a'], pickles.Opaque)


def test_settings_of_unknown_classes_are_inert(tmp_path):
  path = tmp_path / 'x.pt'
  torch.save({'args': argparse.Namespace(layers=3)}, path)
  args = pickles.load(path)['args']
  assert isinstance(args, pickles.Opaque)
  assert args.state == {'layers': 3}


def _rewritten(path, change):
  """The zip archive with its pickle changed."""
  with zipfile.ZipFile(path) as archive:
    files = {n: archive.read(n) for n in archive.namelist()}
  with zipfile.ZipFile(path, 'w') as archive:
    for name, data in files.items():
      archive.writestr(name, change(name, data))


def test_a_tensor_beyond_its_storage_is_refused(tmp_path):
  path = tmp_path / 'x.pt'
  torch.save({'x': torch.ones(64)}, path)
  _rewritten(path, lambda name, data: data[:8] if '/data/' in name else data)
  with pytest.raises(UserError, match='beyond its storage'):
    pickles.load(path)


@pytest.mark.parametrize(
  'data', [b'', b'not a pickle', pickle.dumps(3), pickle.dumps({'a': 1})[:-3]]
)
def test_other_files_are_refused_in_one_line(tmp_path, data):
  path = tmp_path / 'x.pt'
  path.write_bytes(data)
  with pytest.raises(UserError, match='cannot be read as a PyTorch'):
    pickles.load(path)
