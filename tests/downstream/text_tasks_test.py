# SPDX-License-Identifier: Apache-2.0
"""Text-to-text tasks: readers, batches, rank classification, ROUGE."""

import json

import numpy as np
import pytest

from metro_jax.downstream import registry, text
from metro_jax.downstream.text_dataset import TextTaskDataset
from metro_jax.errors import UserError

RENDERED = [
  {
    'inputs_pretokenized': 'the cat sat where',
    'targets_pretokenized': 'on the mat',
    'answer_choices': ['in the park', 'on the mat'],
  },
  {
    'inputs_pretokenized': 'who ran',
    'targets_pretokenized': 'a dog',
    'answer_choices': ['a dog', 'the cat', 'he'],
  },
]


@pytest.fixture
def folder(tmp_path):
  lines = ''.join(json.dumps(row) + '\n' for row in RENDERED)
  for name in ('train', 'dev'):
    (tmp_path / f'{name}.jsonl').write_text(lines)
  return tmp_path


def make(folder, vocabulary, split='train', choices='answer_choices', **rest):
  task = text.text_task('train.jsonl', 'dev.jsonl', choices=choices)
  options = {'length': 8, 'target_length': 5, 'batch_size': 4, **rest}
  return TextTaskDataset(task, folder, split, vocabulary=vocabulary, **options)


def spell(vocabulary, row):
  return ' '.join(vocabulary.pieces([i for i in row if i]))


def test_training_learns_the_target(folder, vocabulary):
  dataset = make(folder, vocabulary)
  batch = dataset.batch(0)
  assert dataset.num_examples == 2
  rows = {
    spell(vocabulary, source): spell(vocabulary, target)
    for source, target in zip(
      batch['encoder_input_tokens'], batch['decoder_target_tokens'], strict=True
    )
  }
  assert rows == {
    '[CLS] ▁the ▁cat ▁sat ▁where [SEP]': '▁on ▁the ▁mat [SEP]',
    '[CLS] ▁who ▁ran [SEP]': '▁a ▁dog [SEP]',
  }
  part = dataset.batch(0, slice(1, 3))
  for name, x in batch.items():
    np.testing.assert_array_equal(part[name], x[1:3])


def test_every_choice_is_scored(folder, vocabulary):
  dataset = make(folder, vocabulary, 'validation', shuffle=False)
  assert (dataset.num_examples, dataset.steps_per_epoch) == (5, 2)
  last = dataset.batch(1)['decoder_target_tokens']
  assert spell(vocabulary, last[0]) == '▁he [SEP]'
  assert not last[1:].any()
  scores = np.array([-3.0, -2.0, -9.0, -4.0, -5.0, 0.0, 0.0, 0.0])
  assert dataset.predictions({'score': scores}) == ['on the mat', 'the cat']
  assert dataset.score({'score': scores}) == {'accuracy': 0.5}
  scores[3] = -9.0  # Of equals, the first.
  scores[4] = -9.0
  assert dataset.score({'score': scores}) == {'accuracy': 1.0}


def test_written_texts_end_where_they_end(folder, vocabulary):
  dataset = make(folder, vocabulary, 'validation', None, shuffle=False)
  right = dataset.batch(0)['decoder_target_tokens'].copy()
  right[:, 4] = vocabulary.encode('dog')[0]  # After the end: not read.
  outputs = {'tokens': right}
  assert dataset.predictions(outputs) == ['on the mat', 'a dog']
  scores = dataset.score(outputs)
  assert scores == {'rouge1': 100.0, 'rouge2': 100.0, 'rougeL': 100.0}


def test_rouge_by_hand():
  record = text.TextPair(0, '', 'the cat sat on the mat', ('the cat sat',))
  found = text.score_rouge([record], ['the dog sat'])
  assert found['rouge1'] == pytest.approx(100 * 2 / 3)
  assert found['rouge2'] == 0.0
  assert found['rougeL'] == pytest.approx(100 * 2 / 3)


def test_summaries_and_mistakes(tmp_path, folder, vocabulary):
  rows = [{'document': 'A cat.', 'summary': 'Cat.', 'id': '7'}]
  (tmp_path / 'validation.jsonl').write_text(json.dumps(rows[0]) + '\n')
  (record,) = registry.read(registry.TASKS['xsum'], tmp_path, 'validation')
  assert (record.id, record.source, record.target) == ('7', 'A cat.', 'Cat.')
  parts = {'source': ['a', 'b'], 'target': ['x', 'y']}
  (tmp_path / 'train.jsonl').write_text(json.dumps(parts) + '\n')
  task = text.text_task(
    'train.jsonl', 'dev.jsonl', source='source', target='target', prefix='do: '
  )
  (record,) = registry.read(task, tmp_path, 'train')
  assert (record.source, record.references) == ('do: a b', ('x', 'y'))
  bad = RENDERED[0] | {'targets_pretokenized': 'nowhere'}
  (tmp_path / 'dev.jsonl').write_text(json.dumps(bad) + '\n')
  with pytest.raises(UserError, match=r"line 1: 'nowhere' is none of \['in"):
    make(folder, vocabulary, 'validation')
  with pytest.raises(UserError, match='cola is no text-to-text task'):
    TextTaskDataset('cola', folder, vocabulary=vocabulary)


def test_cut_texts_are_counted(folder, vocabulary):
  dataset = make(folder, vocabulary, length=8, target_length=3)
  assert dataset.truncated == 1
