# SPDX-License-Identifier: Apache-2.0
"""What TFDS has prepared is read as the same records as a benchmark's files."""

import dataclasses
import json

import numpy as np
import pytest

from metro_jax import downstream
from metro_jax.downstream import registry
from metro_jax.errors import UserError

PASSAGE = 'Ann met Bob.\n@highlight\nThey talked.'
# Task: files of its own distribution, (split, name, text).
FILES = {
  'cola': [
    ('train', 'train.tsv', 'x\t0\t*\tThe cat sat on.\nx\t1\t\tA dog ran.\n'),
    ('test', 'test.tsv', 'index\tsentence\n0\tA cat ran.\n'),
  ],
  'copa': [
    (
      'train',
      'train.jsonl',
      '{"premise": "He ran.", "choice1": "a", "choice2": "b", "question":'
      ' "cause", "label": 1, "idx": 0}\n',
    ),
  ],
  'multirc': [
    (
      'train',
      'train.jsonl',
      json.dumps(
        {
          'idx': 3,
          'passage': {
            'text': 'A cat.',
            'questions': [
              {
                'idx': 5,
                'question': 'What?',
                'answers': [
                  {'idx': 7, 'text': 'A cat', 'label': 1},
                  {'idx': 8, 'text': 'A dog', 'label': 0},
                ],
              }
            ],
          },
        }
      )
      + '\n',
    ),
  ],
  'record': [
    (
      'train',
      'train.jsonl',
      json.dumps(
        {
          'idx': 0,
          'passage': {
            'text': PASSAGE,
            'entities': [{'start': 8, 'end': 10}, {'start': 0, 'end': 2}],
          },
          'qas': [
            {
              'idx': 4,
              'query': '@placeholder talked to Ann',
              'answers': [{'start': 8, 'end': 10, 'text': 'Bob'}],
            }
          ],
        }
      )
      + '\n',
    ),
  ],
  'squad2': [
    (
      'train',
      'train-v2.0.json',
      json.dumps(
        {
          'data': [
            {
              'paragraphs': [
                {
                  'context': 'The cat sat.',
                  'qas': [
                    {
                      'id': 'a',
                      'question': 'Who sat?',
                      'is_impossible': False,
                      'answers': [{'text': 'The cat', 'answer_start': 0}],
                    },
                    {
                      'id': 'b',
                      'question': 'Who ran?',
                      'is_impossible': True,
                      'answers': [],
                    },
                  ],
                }
              ]
            }
          ]
        }
      ),
    ),
  ],
  'cnn_dailymail': [
    (
      'train',
      'train.jsonl',
      '{"id": "7", "article": "A cat sat.", "highlights": "Cat."}\n',
    ),
  ],
}
NONE = {'text': [], 'answer_start': []}
# The same rows as TFDS's builders make them.
ROWS = {
  'glue/cola': {
    'train': [
      {'sentence': 'A dog ran.', 'label': 'acceptable', 'idx': 1},
      {'sentence': 'The cat sat on.', 'label': 'unacceptable', 'idx': 0},
    ],
    'test': [{'sentence': 'A cat ran.', 'label': -1, 'idx': 0}],
  },
  'super_glue/copa': {
    'train': [
      {
        'premise': 'He ran.',
        'choice1': 'a',
        'choice2': 'b',
        'question': 'cause',
        'label': 'choice2',
        'idx': 0,
      }
    ]
  },
  'super_glue/multirc': {
    'train': [
      {
        'paragraph': 'A cat.',
        'question': 'What?',
        'answer': answer,
        'label': label,
        'idx': {'paragraph': 3, 'question': 5, 'answer': number},
      }
      for answer, label, number in (('A cat', 'True', 7), ('A dog', 'False', 8))
    ]
  },
  'super_glue/record': {
    'train': [
      {
        'passage': PASSAGE,
        'query': '@placeholder talked to Ann',
        'entities': ['Ann', 'Bob'],
        'answers': ['Bob'],
        'idx': {'passage': 0, 'query': 4},
      }
    ]
  },
  'squad/v2.0': {
    'train': [
      {
        'id': 'a',
        'title': 't',
        'context': 'The cat sat.',
        'question': 'Who sat?',
        'is_impossible': False,
        'plausible_answers': NONE,
        'answers': {'text': ['The cat'], 'answer_start': [0]},
      },
      {
        'id': 'b',
        'title': 't',
        'context': 'The cat sat.',
        'question': 'Who ran?',
        'is_impossible': True,
        'plausible_answers': {'text': ['The cat'], 'answer_start': [0]},
        'answers': NONE,
      },
    ]
  },
  'cnn_dailymail': {
    'train': [{'id': '7', 'article': 'A cat sat.', 'highlights': 'Cat.'}]
  },
}
LABELS = {
  'glue/cola': ['unacceptable', 'acceptable'],
  'super_glue/copa': ['choice1', 'choice2'],
  'super_glue/multirc': ['False', 'True'],
}


def features_of(name, row):
  """Feature connectors, of which TFDS writes features.json."""
  import tensorflow_datasets as tfds

  def of(key, value):
    if key == 'label':
      return tfds.features.ClassLabel(names=LABELS[name])
    if isinstance(value, dict) and 'text' in value:
      return tfds.features.Sequence(
        {'text': tfds.features.Text(), 'answer_start': np.int32}
      )
    if isinstance(value, dict):
      return {inner: of(inner, x) for inner, x in value.items()}
    if isinstance(value, list):
      return tfds.features.Sequence(tfds.features.Text())
    kinds = {str: tfds.features.Text(), bool: np.bool_, int: np.int32}
    return kinds[type(value)]

  return tfds.features.FeaturesDict({k: of(k, x) for k, x in row.items()})


@pytest.fixture(scope='module')
def prepared(tmp_path_factory):
  """A TFDS_DATA_DIR, made with TFDS's own builder."""
  from tensorflow_datasets.core.dataset_builders import adhoc_builder

  class Made(adhoc_builder.AdhocBuilder, skip_registration=True):
    code_path = None  # There is no module of its own to look for.

  root = tmp_path_factory.mktemp('tfds')
  for name, splits in ROWS.items():
    dataset, _, config = name.partition('/')
    Made(
      name=dataset,
      version='1.0.0',
      features=features_of(name, splits['train'][0]),
      split_datasets={s: list(enumerate(rows)) for s, rows in splits.items()},
      config=config or None,
      data_dir=root,
      disable_shuffling=name in ('super_glue/multirc', 'squad/v2.0'),
    ).download_and_prepare()
  return root


@pytest.fixture
def tfds_dir(prepared, monkeypatch):
  monkeypatch.setenv('TFDS_DATA_DIR', str(prepared))
  return prepared


@pytest.mark.parametrize('name', FILES)
def test_records_are_those_of_the_files(name, tfds_dir, tmp_path):
  task = registry.TASKS[name]
  for split, file, text in FILES[name]:
    (tmp_path / file).write_text(text)
    assert registry.has(task, 'tfds', split)
    found, expected = (
      # Test files of GLUE have numbers that are read as text.
      [dataclasses.replace(r, id=str(r.id)) for r in registry.read(*which)]
      for which in ((task, 'tfds', split), (task, tmp_path, split))
    )
    assert found == expected


def test_batches_of_tfds(tfds_dir, tmp_path, vocabulary):
  _, file, text = FILES['cola'][0]
  (tmp_path / file).write_text(text)
  made = [
    downstream.TaskDataset(
      'cola', where, vocabulary=vocabulary, length=16, batch_size=2
    )
    for where in ('tfds', tmp_path)
  ]
  assert made[0].fingerprint == made[1].fingerprint
  found = downstream.test_datasets(
    'cola',
    'tfds',
    lambda *args, **words: (args[1], words['split']),
  )
  assert found == {'test': ('tfds', 'test')}


def test_every_benchmark_is_there():
  """But for those that TFDS does not have in the form of the files."""
  from metro_jax.downstream import tfds_tasks

  left = set(registry.TASKS) - set(tfds_tasks._DATASETS)
  assert left == {
    *('snli', 'anli'),
    *('t0_train', 't0p_train', 't0pp_train', 't0_eval'),
  }


def test_mistakes(tfds_dir):
  with pytest.raises(UserError, match='TFDS glue/rte: not prepared in'):
    registry.read(registry.TASKS['rte'], 'tfds', 'train')
  assert not registry.has(registry.TASKS['rte'], 'tfds', 'train')
  with pytest.raises(UserError, match="TFDS glue/cola: no split 'validation'"):
    registry.read(registry.TASKS['cola'], 'tfds', 'validation')
  with pytest.raises(UserError, match='snli is read from files only'):
    registry.read(registry.TASKS['snli'], 'tfds', 'train')
