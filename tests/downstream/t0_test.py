# SPDX-License-Identifier: Apache-2.0
"""T0's mixtures: which datasets, how much of each, and the scores."""

import collections
import json

import numpy as np
import pytest

from metro_jax import downstream
from metro_jax.downstream import registry, t0
from metro_jax.downstream.dataset import epoch_order
from metro_jax.downstream.t0_stream import Stream
from metro_jax.errors import UserError


def write(root, name, split, targets, choices=None):
  path = root / name / f'{split}.jsonl'
  path.parent.mkdir(parents=True, exist_ok=True)
  rows = [
    {'inputs_pretokenized': f'the cat {n}\n', 'targets_pretokenized': f' {x}'}
    | ({'answer_choices': choices} if choices else {})
    for n, x in enumerate(targets)
  ]
  path.write_text('\n'.join(json.dumps(row) for row in rows))
  return path


@pytest.fixture
def folder(tmp_path):
  """Two datasets to train on, three templates; two to evaluate on."""
  write(tmp_path, 'quail_one', 'train', [f'q{n}' for n in range(9)])
  write(tmp_path, 'quail_two', 'train', ['r0', 'r1', 'r2'])
  write(tmp_path, 'trec_x', 'train', [f't{n}' for n in range(5)])
  yes = ['yes', 'no']
  write(tmp_path, 'super_glue_rte_a', 'validation', ['yes', 'no'], yes)
  write(tmp_path, 'super_glue_rte_b', 'validation', ['yes', 'yes'], yes)
  write(tmp_path, 'super_glue_rte_c', 'validation', ['no', 'yes'], yes)
  write(tmp_path, 'anli_a_r1', 'validation', ['no', 'yes'], yes)
  write(tmp_path, 'anli_a_r2', 'validation', ['no'], yes)
  return tmp_path


def mixture(**changes):
  datasets = {
    'train': ('quail', 'trec'),
    'validation': ('super_glue_rte', 'anli_r1'),
  }
  return downstream.t0_mixture(**(datasets | changes))


def test_datasets_of_the_paper():
  """Sanh et al., 2022: how many, and that nothing is trained and tested."""
  named = {name: registry.TASKS[name].datasets for name in (
    't0_train', 't0p_train', 't0pp_train', 't0_eval'
  )}  # fmt: skip
  counts = {name: len(d.get('train', ())) for name, d in named.items()}
  assert counts == {
    't0_train': 38,
    't0p_train': 48,
    't0pp_train': 54,
    't0_eval': 0,
  }
  assert len(named['t0_eval']['validation']) == 11
  for datasets in named.values():
    assert not {*datasets.get('train', ())} & {*datasets['validation']}
  assert len(named['t0_train']['validation']) == 11
  assert len(named['t0p_train']['validation']) == 10
  assert len(named['t0pp_train']['validation']) == 7


def test_a_dataset_is_capped_and_its_templates_share(folder):
  task = mixture(cap=8).in_folder(folder)
  stream = Stream(task, folder, seed=3)
  # quail: 4 of 9 and all 3; trec: all 5, as it has one template.
  assert stream.num_examples == 4 + 3 + 5
  epochs = [[stream.example(e, n) for n in range(12)] for e in range(9)]
  for epoch in epochs:
    parts = collections.Counter(pair.id.split('/')[0] for pair in epoch)
    assert parts == {'quail_one': 4, 'quail_two': 3, 'trec_x': 5}
    rest = sorted(pair.target for pair in epoch[4:])
    assert rest == ['r0', 'r1', 'r2', 't0', 't1', 't2', 't3', 't4']
  # Nine epochs of four are four passes over the nine.
  seen = [pair.target for epoch in epochs for pair in epoch[:4]]
  laps = [seen[n : n + 9] for n in range(0, 36, 9)]
  assert all(sorted(lap) == [f'q{n}' for n in range(9)] for lap in laps)
  assert len({tuple(lap) for lap in laps}) == 4
  assert epochs[0][0].source.startswith('the cat ')
  assert epochs[0][0].source == epochs[0][0].source.strip()


def test_batches_are_a_function_of_the_step(folder, vocabulary):
  options = {'length': 12, 'target_length': 5, 'batch_size': 5, 'seed': 1}
  make = downstream.TextTaskDataset
  dataset = make(mixture(cap=8), folder, vocabulary=vocabulary, **options)
  assert (dataset.num_examples, dataset.position(5)) == (
    12,
    {'epoch': 2, 'example': 1},
  )
  steps = [dataset.batch(step) for step in range(13)]
  rows = np.concatenate([b['decoder_target_tokens'] for b in steps])[:60]
  spelt = [
    dataset.vocabulary.decode([int(i) for i in row if i > 4]) for row in rows
  ]
  wanted = [
    dataset._stream.example(n // 12, number).target
    for n, number in enumerate(_order(dataset, 60))
  ]
  assert spelt == wanted
  again = make(mixture(cap=8), folder, vocabulary=vocabulary, **options)
  assert again.fingerprint == dataset.fingerprint
  # A host's rows in the middle of a batch that crosses an epoch.
  part = again.batch(2, slice(1, 4))
  for name, x in steps[2].items():
    np.testing.assert_array_equal(part[name], x[1:4])
  other = make(mixture(cap=6), folder, vocabulary=vocabulary, **options)
  assert other.fingerprint != dataset.fingerprint


def _order(dataset, count):
  steps = range(count // dataset.batch_size)
  return np.concatenate([epoch_order(dataset, s, None) for s in steps])


def test_long_examples_are_counted_on_a_sample(folder, vocabulary, capsys):
  downstream.TextTaskDataset(
    mixture(),
    folder,
    vocabulary=vocabulary,
    length=8,
    target_length=2,
    batch_size=4,
  )
  said = capsys.readouterr()
  assert 't0 train: 17 of 34 inputs and targets' in said.out + said.err


def test_scores_by_template_and_dataset(folder, vocabulary):
  task = mixture()
  dataset = downstream.TextTaskDataset(
    task, folder, 'validation', vocabulary=vocabulary, shuffle=False
  )
  # Two choices each: rte a, b, c, then the first round of anli alone.
  likes_yes = np.tile([0.0, -1.0], dataset.num_examples // 2)
  assert dataset.num_examples == 2 * (2 + 2 + 2 + 2)
  assert dataset.score({'score': likes_yes}) == {
    'accuracy': pytest.approx((2 / 3 + 0.5) / 2),
    'median': 0.5,
    'super_glue_rte/accuracy': pytest.approx(2 / 3),
    'super_glue_rte/median': 0.5,
    'anli_r1/accuracy': 0.5,
    'anli_r1/median': 0.5,
    'template/super_glue_rte_a': 0.5,
    'template/super_glue_rte_b': 1.0,
    'template/super_glue_rte_c': 0.5,
    'template/anli_a_r1': 0.5,
  }
  assert downstream.best_metric(task, folder) == 'validation/accuracy'


def test_mistakes(folder, vocabulary):
  def read(task, split='train', where=folder):
    return downstream.TextTaskDataset(
      task, where, split, vocabulary=vocabulary, shuffle=split == 'train'
    )

  with pytest.raises(UserError, match='no train examples of wiki_qa, xsum;'):
    read(mixture(train=('trec', 'wiki_qa', 'xsum')))
  with pytest.raises(
    UserError, match='no validation examples of super_glue_cb'
  ):
    read('t0_eval', 'validation')
  with pytest.raises(UserError, match='/nowhere is not a folder'):
    read('t0_train', where='/nowhere')
  with pytest.raises(UserError, match='t0 is a mixture; give it alone'):
    downstream.TextTaskDataset(
      ['xsum', mixture()], folder, vocabulary=vocabulary
    )
  bad = write(folder, 'anli_a_r1', 'validation', ['perhaps'], ['yes', 'no'])
  with pytest.raises(UserError, match=r"a_r1/validation.jsonl, line 1: 'perh"):
    read(mixture(), 'validation')
  bad.write_text('{"inputs_pretokenized": 3, "targets_pretokenized": "x"}\n')
  with pytest.raises(UserError, match='line 1: not an object with the texts'):
    read(mixture(), 'validation')
  bad.write_text('')
  with pytest.raises(UserError, match=r'a_r1/validation.jsonl is empty'):
    read(mixture(), 'validation')
  write(folder, 'trec_x', 'train', [])
  with pytest.raises(UserError, match=r'trec_x/train.jsonl is empty'):
    read(mixture())


def test_folders_belong_to_one_dataset():
  names = {*t0.BASE, *t0.PLUS, *t0.SUPERGLUE, *t0.EVALUATION}
  for name in names - {'anli_r1', 'anli_r2', 'anli_r3'}:
    assert [d for d in names if t0.belongs(f'{name}_x', d)] == [name]
  assert t0.belongs('anli_GPT_3_style_r2', 'anli_r2')
  assert not t0.belongs('anli_GPT_3_style_r2', 'anli_r1')
