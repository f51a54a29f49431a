# SPDX-License-Identifier: Apache-2.0
"""Rendering by promptsource's templates, on templates written here."""

import json
import pathlib

import pytest

from metro_jax import downstream, render
from metro_jax.downstream import registry
from metro_jax.errors import UserError

TEMPLATES = """
dataset: super_glue
subset: rte
templates:
  1: !Template
    answer_choices: Yes ||| No
    id: '1'
    jinja: '{{premise}} Does it follow that {{ hypothesis }} ? |||
      {{ answer_choices[label] }}'
    metadata: !TemplateMetadata
      choices_in_prompt: false
      metrics:
      - Accuracy
      original_task: true
    name: does it follow/that
    reference: ''
  2: !Template
    answer_choices: null
    id: '2'
    jinja: '{% if label == 0 %}Write: {{ [premise, hypothesis] | choice }}
      ||| {{hypothesis}}{% endif %}'
    metadata: !TemplateMetadata
      original_task: false
    name: GPT-3 style
    reference: ''
  3: !Template
    answer_choices: '{{premise}} ||| {{hypothesis}}'
    jinja: '{% if label %}Which? ||| {{ answer_choices[label] }}{% endif %}'
    metadata: !TemplateMetadata
      original_task: true
    name: half of them
"""
ROWS = [
  {'premise': 'A cat ||| sat.', 'hypothesis': 'It sat', 'label': 'entailment'},
  {'premise': 'A dog ran.', 'hypothesis': 'It sat', 'label': 'not'},
]


@pytest.fixture
def folder(tmp_path):
  (tmp_path / 'templates.yaml').write_text(TEMPLATES)
  lines = ''.join(json.dumps(row) + '\n' for row in ROWS)
  (tmp_path / 'rte.jsonl').write_text(lines)
  return tmp_path


def call(folder, *words):
  render.main(
    [
      f'--templates={folder}',
      f'--input={folder}/rte.jsonl',
      f'--output={folder}/t0',
      '--labels=entailment,not',
      *words,
    ]
  )


def written(folder, name, split='train'):
  path = folder / 't0' / name / f'{split}.jsonl'
  return [json.loads(line) for line in path.read_text().splitlines()]


def test_examples_as_literal_texts(folder, capsys):
  call(folder)
  assert written(folder, 'super_glue_rte_does_it_follow_that') == [
    {
      'inputs_pretokenized': 'A cat ||| sat. Does it follow that It sat ?',
      'targets_pretokenized': 'Yes',
      'answer_choices': ['Yes', 'No'],
    },
    {
      'inputs_pretokenized': 'A dog ran. Does it follow that It sat ?',
      'targets_pretokenized': 'No',
      'answer_choices': ['Yes', 'No'],
    },
  ]
  # What a template is not for makes no example; what it draws is the same
  # the next time.
  (one,) = written(folder, 'super_glue_rte_GPT_3_style')
  assert one['targets_pretokenized'] == 'It sat'
  assert 'answer_choices' not in one
  call(folder)
  assert written(folder, 'super_glue_rte_GPT_3_style') == [one]
  said = capsys.readouterr().out
  assert 'super_glue_rte_GPT_3_style: 1 of 2 records\n' in said


def test_what_the_evaluation_takes(folder, capsys):
  call(folder, '--ranked', '--split=validation', '--suffix=_r1')
  assert [p.name for p in (folder / 't0').iterdir()] == [
    'super_glue_rte_does_it_follow_that_r1'
  ]
  assert '_half_of_them_r1: 0 of 2 records; left out' in capsys.readouterr().out
  task = downstream.t0_mixture((), ('super_glue_rte',)).in_folder(folder / 't0')
  first, second = registry.read(task, folder / 't0', 'validation')
  assert first.id == 'super_glue_rte_does_it_follow_that_r1/1'
  assert (first.target, second.target) == ('Yes', 'No')


def entry(jinja, name='x'):
  return {'name': name, 'jinja': jinja, 'metadata': {}}


@pytest.mark.parametrize(
  'jinja, message',
  [
    ("{{ ''.__class__.__mro__ }} ||| x", "access to attribute '__class__'"),
    ('{% for a in %} ||| x', "'x': Expected an expression"),
    ('{{ a.b.c }} ||| x', 'record 7'),
    ("{{ 'x' | fetch }} ||| x", "No filter named 'fetch'"),
    ('{{ 1 // 0 }} ||| x', 'record 7: integer division or modulo by zero'),
    ('{% for i in range(10000000) %}{% endfor %} ||| x', 'Range too big'),
    ('{% include "/etc/passwd" %} ||| x', 'no loader'),
  ],
)
def test_templates_are_foreign_programs(jinja, message):
  with pytest.raises(UserError, match=message):
    render.Template(pathlib.Path('t.yaml'), 'd', entry(jinja)).render(
      {'a': {}}, 7
    )


def test_mistakes(folder):
  with pytest.raises(UserError, match="label 'not' is none of"):
    call(folder, '--labels=entailment,neutral')
  (folder / 'rte.jsonl').write_text('{"premise": "x", "label": "not"}\n')
  with pytest.raises(UserError, match=r"reads \['hypothesis'\], and records"):
    call(folder)
  # Nothing but promptsource's own two tags is made of a YAML file.
  for text in ('a: !!python/object/apply:os.getcwd []', 'a: [', 'a: 1'):
    (folder / 'templates.yaml').write_text(text)
    with pytest.raises(UserError, match='no templates of promptsource'):
      call(folder)
  with pytest.raises(UserError, match='No such file'):
    render.load(folder / 'nowhere.yaml')
  with pytest.raises(UserError, match=r'--input=none\.jsonl: no such file'):
    call(folder, '--input=none.jsonl')


def test_most_frequent_and_none():
  template = render.Template(
    pathlib.Path('t.yaml'),
    'd',
    entry('{{ a | most_frequent | join("+") }} ||| x'),
  )
  found = template.render({'a': ['p', 'q', 'q', 'p', 'r']}, 0)
  assert found['inputs_pretokenized'] == 'p+q'
  assert template.render({'a': []}, 0) is None
  drawn = render.Template(
    pathlib.Path('t.yaml'), 'd', entry('{{ a | choice }}')
  )
  assert drawn.render({'a': []}, 0) is None
