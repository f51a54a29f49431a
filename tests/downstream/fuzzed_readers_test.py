# SPDX-License-Identifier: Apache-2.0
"""Benchmarks' files that are not what they should be: records, or one line."""

import dataclasses
import json

import hypothesis
import pytest
from fuzzing import changed, changes, fuzz, or_one_line
from hypothesis import strategies
from readers_test import GLUE, SUPERGLUE

from metro_jax import downstream, minimal_pairs
from metro_jax.downstream import registry
from metro_jax.downstream.own import own_task
from metro_jax.downstream.records import Example

SQUAD = {
  'data': [
    {
      'paragraphs': [
        {
          'context': 'The cat sat.',
          'qas': [
            {
              'id': 'a',
              'question': 'Who?',
              'answers': [{'text': 'The cat', 'answer_start': 0}],
            }
          ],
        }
      ]
    }
  ]
}
SQUAD_TASK, SNLI_TASK = registry.TASKS['squad2'], registry.TASKS['snli']
SNLI = {'gold_label': 'entailment', 'sentence1': 'A.', 'sentence2': 'B.'}
OWN = own_task('train.tsv', 'dev.jsonl', labels=('yes', 'no'))
P3 = {
  'inputs_pretokenized': 'A?',
  'targets_pretokenized': ' yes',
  'answer_choices': ['yes', 'no'],
}
T0 = dataclasses.replace(
  downstream.t0_mixture((), ('quail',)), splits={'validation': ('t0.jsonl',)}
)
TEXTS = downstream.text_task('a.jsonl', 'b.jsonl', choices='answer_choices')
# (task, file, content, split).
FILES = [
  *(
    (registry.TASKS[task], name, '\n'.join(lines), split)
    for task, name, lines, split, _ in GLUE
  ),
  *(
    (registry.TASKS[task], 'val.jsonl', json.dumps(row), 'validation')
    for task, row, _ in SUPERGLUE
  ),
  (SQUAD_TASK, 'dev-v2.0.json', json.dumps(SQUAD), 'validation'),
  (
    registry.TASKS['snli'],
    'snli_1.0_dev.jsonl',
    json.dumps(SNLI),
    'validation',
  ),
  (OWN, 'train.tsv', 'text\tlabel\nA\tyes\nB\tno\n', 'train'),
  (OWN, 'dev.jsonl', '{"text": "A", "label": "no"}\n', 'validation'),
  (T0, 't0.jsonl', json.dumps(P3), 'validation'),
  (TEXTS, 'b.jsonl', json.dumps(P3), 'validation'),
]


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  return tmp_path_factory.mktemp('task')


@fuzz
@hypothesis.given(
  strategies.sampled_from(FILES), changes(b'\t', b'\xe2\x80\xa8', b'3', b'{}')
)
def test_any_file_is_records_or_one_line(folder, file, some):
  task, name, content, split = file
  (folder / name).write_bytes(changed(content.encode(), some))
  for record in or_one_line(registry.read, task, folder, split) or ():
    if isinstance(record, Example) and task.kind == 'classification':
      assert record.label is None or record.label in task.labels
    hash(str(record.id))


PAIRS = b'{"sentence_good": "He runs.", "sentence_bad": "He run."}\n' * 2


@fuzz
@hypothesis.given(changes(b'"sentence_good": 3,'))
def test_minimal_pairs(folder, some):
  path = folder / 'pairs.jsonl'
  path.write_bytes(changed(PAIRS, some))
  found = or_one_line(minimal_pairs.read, path)
  assert found is None or all(
    isinstance(text, str) for pair in found for text in pair
  )
