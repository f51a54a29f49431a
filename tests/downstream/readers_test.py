# SPDX-License-Identifier: Apache-2.0
"""Readers against hand-written records in the benchmarks' own formats."""

import json

import pytest

from metro_jax.downstream import registry
from metro_jax.downstream.own import own_task
from metro_jax.downstream.records import Example, Passage, Question
from metro_jax.errors import UserError

TASKS = registry.TASKS
MNLI_HEADER = (
  'index\tpromptID\tpairID\tgenre\tsentence1_binary_parse\t'
  'sentence2_binary_parse\tsentence1_parse\tsentence2_parse\tsentence1\t'
  'sentence2\tlabel1\tgold_label'
)
# task, file of the distribution, its lines, split, (texts, label) of each.
GLUE = [
  (
    'cola',
    'train.tsv',
    ["gj04\t1\t\tOur friends won't buy this.", 'gj04\t0\t*\t"So" he said.'],
    'train',
    [(("Our friends won't buy this.",), '1'), (('"So" he said.',), '0')],
  ),
  (
    'cola',
    'test.tsv',
    ['index\tsentence', '0\tBill whistled.'],
    'test',
    [(('Bill whistled.',), None)],
  ),
  (
    'sst2',
    'dev.tsv',
    ['sentence\tlabel', 'a charming journey . \t1'],
    'validation',
    [(('a charming journey . ',), '1')],
  ),
  (
    'mrpc',
    'train.tsv',
    [
      '\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String',
      '0\t7\t8\tHe said "no.\tShe said yes.',
    ],
    'train',
    [(('He said "no.', 'She said yes.'), '0')],
  ),
  (
    'stsb',
    'dev.tsv',
    [
      'index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\t'
      'sentence2\tscore',
      '0\tmain\tMSR\t2012\t1\tnone\tnone\tA man.\tA boy.\t3.800',
    ],
    'validation',
    [(('A man.', 'A boy.'), 3.8)],
  ),
  (
    'qqp',
    'train.tsv',
    [
      'id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate',
      '9\t1\t2\tHow?\tWhy?\t0',
      '10\t3\t4\tbroken over',  # Rows like this are in the distribution.
      '11\t5\t6\tWho?\tWhom?\t1',
    ],
    'train',
    [(('How?', 'Why?'), '0'), (('Who?', 'Whom?'), '1')],
  ),
  (
    'mnli',
    'dev_mismatched.tsv',
    [MNLI_HEADER, '0\t1\t1e\tslate\t(\t(\t(\t(\tP.\tH.\tneutral\tneutral'],
    'validation_mismatched',
    [(('P.', 'H.'), 'neutral')],
  ),
  (
    'qnli',
    'dev.tsv',
    ['index\tquestion\tsentence\tlabel', '0\tWho?\tHe.\tnot_entailment'],
    'validation',
    [(('Who?', 'He.'), 'not_entailment')],
  ),
  (
    'rte',
    'dev.tsv',
    ['index\tsentence1\tsentence2\tlabel', '0\tA.\tB.\tentailment'],
    'validation',
    [(('A.', 'B.'), 'entailment')],
  ),
  (
    'wnli',
    'test.tsv',
    ['index\tsentence1\tsentence2', '0\tA.\tB.'],
    'test',
    [(('A.', 'B.'), None)],
  ),
]


def put(folder, name, lines):
  path = folder / name
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text('\n'.join(lines) + '\n', encoding='utf-8')
  return path


@pytest.mark.parametrize(
  'task, file, lines, split, wanted', GLUE, ids=[f'{g[0]}-{g[3]}' for g in GLUE]
)
def test_glue(tmp_path, task, file, lines, split, wanted):
  put(tmp_path / TASKS[task].folder, file, lines)
  for folder in (tmp_path, tmp_path / TASKS[task].folder):
    records = registry.read(TASKS[task], folder, split)
    assert [(r.texts, r.label) for r in records] == wanted


def test_a_test_file_names_its_examples(tmp_path):
  put(tmp_path, 'test.tsv', ['index\tsentence', '7\tBill.', '9\tAnn.'])
  records = registry.read(TASKS['sst2'], tmp_path, 'test')
  TASKS['sst2'].write(tmp_path / 'out', TASKS['sst2'], records, ['1', '0'])
  assert (tmp_path / 'out').read_text() == 'index\tprediction\n7\t1\n9\t0\n'
  lines = ['index\tsentence1\tsentence2', '0\tA.\tB.']
  put(tmp_path, 'test.tsv', lines)
  records = registry.read(TASKS['stsb'], tmp_path, 'test')
  TASKS['stsb'].write(tmp_path / 'out', TASKS['stsb'], records, [5.2])
  assert (tmp_path / 'out').read_text() == 'index\tprediction\n0\t5.000\n'


def test_nli(tmp_path):
  rows = [
    {'gold_label': '-', 'sentence1': 'A.', 'sentence2': 'B.', 'pairID': '1#r'},
    {
      'gold_label': 'entailment',
      'sentence1': 'A.',
      'sentence2': 'C.',
      'pairID': '2#r',
    },
  ]
  put(tmp_path / 'snli_1.0', 'snli_1.0_dev.jsonl', map(json.dumps, rows))
  assert registry.read(TASKS['snli'], tmp_path, 'validation') == [
    Example('2#r', ('A.', 'C.'), 'entailment')
  ]
  for number in '123':
    row = {'uid': number, 'context': 'C.', 'hypothesis': 'H.', 'label': 'n'}
    put(tmp_path, f'anli_v1.0/R{number}/dev.jsonl', [json.dumps(row)])
  found = registry.read(TASKS['anli'], tmp_path, 'validation')
  assert [(r.id, r.label) for r in found] == [(n, 'neutral') for n in '123']


SUPERGLUE = [
  (
    'boolq',
    {'passage': 'P.', 'question': 'is it', 'idx': 3, 'label': True},
    [Example(3, ('P.', 'is it'), 'true')],
  ),
  (
    'cb',
    {'premise': 'P.', 'hypothesis': 'H.', 'label': 'contradiction', 'idx': 0},
    [Example(0, ('P.', 'H.'), 'contradiction')],
  ),
  (
    'copa',
    {
      'premise': 'The lamp fell.',
      'choice1': 'It broke.',
      'choice2': 'It sang.',
      'question': 'effect',
      'label': 0,
      'idx': 4,
    },
    [
      Question(
        4,
        (('The lamp fell so', 'It broke.'), ('The lamp fell so', 'It sang.')),
        (0, 1),
        (0,),
      )
    ],
  ),
  (
    'multirc',
    {
      'idx': 6,
      'passage': {
        'text': 'P.',
        'questions': [
          {
            'question': 'Who?',
            'idx': 2,
            'answers': [
              {'text': 'he', 'idx': 0, 'label': 1},
              {'text': 'she', 'idx': 1, 'label': 0},
            ],
          }
        ],
      },
    },
    [
      Example((6, 2, 0), ('P.', 'Who? he'), '1'),
      Example((6, 2, 1), ('P.', 'Who? she'), '0'),
    ],
  ),
  (
    'record',
    {
      'passage': {
        'text': 'Ann met Bob.\n@highlight\nThey spoke',
        'entities': [{'start': 0, 'end': 2}, {'start': 8, 'end': 10}],
      },
      'qas': [
        {
          'idx': 9,
          'query': 'It was @placeholder who came',
          'answers': [{'text': 'Bob', 'start': 8, 'end': 10}],
        }
      ],
    },
    [
      Question(
        9,
        (
          ('Ann met Bob. They spoke', 'It was Ann who came'),
          ('Ann met Bob. They spoke', 'It was Bob who came'),
        ),
        ('Ann', 'Bob'),
        (1,),
        ('Bob',),
      )
    ],
  ),
  (
    'superglue_rte',
    {'premise': 'P.', 'hypothesis': 'H.', 'label': 'not_entailment', 'idx': 1},
    [Example(1, ('P.', 'H.'), 'not_entailment')],
  ),
  (
    'wic',
    {
      'word': 'feel',
      'sentence1': 'I feel.',
      'sentence2': 'She felt.',
      'idx': 5,
      'label': False,
    },
    [Example(5, ('feel I feel.', 'She felt.'), 'false')],
  ),
  (
    'wsc',
    {
      'text': 'Ann said that she ran',
      'target': {
        'span1_index': 0,
        'span2_index': 3,
        'span1_text': 'Ann',
        'span2_text': 'she',
      },
      'idx': 8,
      'label': True,
    },
    [Example(8, ('Ann said that *she* ran', 'Ann'), 'true')],
  ),
]


@pytest.mark.parametrize(
  'task, row, wanted', SUPERGLUE, ids=[s[0] for s in SUPERGLUE]
)
def test_superglue(tmp_path, task, row, wanted):
  put(tmp_path / TASKS[task].folder, 'val.jsonl', [json.dumps(row)])
  assert registry.read(TASKS[task], tmp_path, 'validation') == wanted


def test_superglue_submissions(tmp_path):
  records = SUPERGLUE[3][2]
  task, path = TASKS['multirc'], tmp_path / 'MultiRC.jsonl'
  task.write(path, task, records, ['0', '1'])
  answers = [{'idx': 0, 'label': 0}, {'idx': 1, 'label': 1}]
  assert json.loads(path.read_text()) == {
    'idx': 6,
    'passage': {'questions': [{'idx': 2, 'answers': answers}]},
  }
  for name, said, label in (
    ('wsc', 'true', 'True'),
    ('wic', 'true', 'true'),
    ('copa', 1, 1),
    ('record', 'Bob', 'Bob'),
  ):
    TASKS[name].write(path, TASKS[name], [Example(3, ('a',))], [said])
    assert json.loads(path.read_text()) == {'idx': 3, 'label': label}


def test_squad(tmp_path):
  questions = [
    {
      'id': 'a',
      'question': 'Who sat?',
      'answers': [{'text': 'The cat', 'answer_start': 0}],
    },
    {
      'id': 'b',
      'question': 'Why?',
      'answers': [],
      'is_impossible': True,
      'plausible_answers': [{'text': 'sat', 'answer_start': 8}],
    },
  ]
  paragraph = {'context': 'The cat sat.', 'qas': questions}
  data = {
    'version': 'v2.0',
    'data': [{'title': 't', 'paragraphs': [paragraph]}],
  }
  put(tmp_path, 'dev-v2.0.json', [json.dumps(data)])
  assert registry.read(TASKS['squad2'], tmp_path, 'validation') == [
    Passage('a', 'Who sat?', 'The cat sat.', (('The cat', 0),)),
    Passage('b', 'Why?', 'The cat sat.', ()),
  ]
  put(tmp_path, 'dev-v2.0.json', ['{"data": [{}]}'])
  with pytest.raises(UserError, match=r"not in SQuAD's layout.*paragraphs"):
    registry.read(TASKS['squad2'], tmp_path, 'validation')


def test_own_tables(tmp_path):
  put(tmp_path, 'train.tsv', ['label\ttext\tmore', 'yes\tA\tB', 'no\tC\tD'])
  rows = [{'label': 'yes', 'text': 'E', 'more': 'F', 'id': 'x'}]
  put(tmp_path, 'dev.jsonl', map(json.dumps, rows))
  task = own_task('train.tsv', 'dev.jsonl', second_text='more')
  task = registry.resolve(task, tmp_path)
  assert task.labels == ('no', 'yes')
  assert registry.read(task, tmp_path, 'validation') == [
    Example('x', ('E', 'F'), 'yes')
  ]
  put(tmp_path, 'dev.jsonl', ['{"label": "maybe", "text": "E", "more": "F"}'])
  with pytest.raises(UserError, match=r"line 1: label 'maybe' is none of"):
    registry.read(task, tmp_path, 'validation')
  number = own_task('n.tsv', 'n.tsv', upper=5.0)
  put(tmp_path, 'n.tsv', ['text\tlabel', 'A\t2.5', 'B\t7'])
  with pytest.raises(UserError, match=r'line 3: label 7.0 is not in 0..5'):
    registry.read(number, tmp_path, 'train')


def test_mistakes_are_told_in_a_line(tmp_path):
  with pytest.raises(UserError, match="no task 'colla'; did you mean cola"):
    registry.resolve('colla', tmp_path)
  with pytest.raises(UserError, match=r'TASK_DIR: .*missing is not a folder'):
    registry.read(TASKS['sst2'], tmp_path / 'missing', 'train')
  with pytest.raises(UserError, match=r'train.tsv does not exist; TASK_DIR'):
    registry.read(TASKS['sst2'], tmp_path, 'train')
  put(tmp_path, 'train.tsv', ['text\tlabel', 'good\t1'])
  with pytest.raises(UserError, match=r"no column 'sentence'; it has \['text"):
    registry.read(TASKS['sst2'], tmp_path, 'train')
  put(tmp_path, 'train.tsv', ['sentence\tlabel', 'good\t2'])
  with pytest.raises(UserError, match=r"line 2: label '2' is none of \['0'"):
    registry.read(TASKS['sst2'], tmp_path, 'train')
  put(tmp_path, 'train.tsv', ['sentence\tlabel', 'good'])
  with pytest.raises(UserError, match="line 2: 1 cells, and column 'label'"):
    registry.read(TASKS['sst2'], tmp_path, 'train')
  put(tmp_path, 'train.tsv', ['sentence\tlabel'])
  with pytest.raises(UserError, match="split 'train' is empty"):
    registry.read(TASKS['sst2'], tmp_path, 'train')
