# SPDX-License-Identifier: Apache-2.0
"""Every kind of task by the real command, from a folder to predictions."""

import json
import random
import re
import subprocess
import sys

import pytest
import tiny_run
from finetune_runs import (
  ENVIRONMENT,
  finetune,
  history,
  lines,
  result,
  write_lines,
)

from metro_jax.downstream import t0

pytest_plugins = ('tiny_run',)
pytestmark = pytest.mark.slow

WORDS = tiny_run.WORDS
SMALL_T5 = {
  'VOCAB_SIZE': 256,
  'LENGTH': 32,
  'BATCH_SIZE': 8,
  'EXTRA_IDS': 8,
  'TRAIN_STEPS': 2,
  'WARMUP_STEPS': 1,
  'data.TextFiles.validation_fraction': 0.2,
  'modules.TransformerConfig.embed_dim': 16,
  'modules.TransformerConfig.mlp_dim': 32,
  'modules.TransformerConfig.num_heads': 2,
  'modules.TransformerConfig.num_layers': 1,
}


@pytest.fixture(scope='module')
def tiny_t5(tmp_path_factory):
  """The MODEL_DIR of an encoder-decoder that has hardly been trained."""
  root = tmp_path_factory.mktemp('t5')
  (root / 'text').mkdir()
  for index in range(20):
    (root / 'text' / f'{index}.txt').write_text(tiny_run.text(12, index))
  macros = SMALL_T5 | {
    'MODEL_DIR': root / 'run',
    'TEXT_FILES': f'{root}/text/*.txt',
    'DATA_DIR': root / 'data',
  }
  command = ['-m', 'metro_jax.train', '--gin_file=metro_t5/tiny.gin']
  command += [f'--gin.{name}={value}' for name, value in macros.items()]
  subprocess.run([sys.executable, *command], check=True, env=ENVIRONMENT)
  return root / 'run'


def write_squad(path, count: int) -> dict[str, str]:
  """A file of SQuAD 2.0; returns each question's passage."""
  draw, passages, articles = random.Random(path.name), {}, []
  for number in range(count):
    words = draw.sample(WORDS, 9)
    context = 'the ' + ' of the '.join(words)
    at = context.index(words[4])
    answers = [{'text': words[4], 'answer_start': at}]
    questions = [
      {
        'id': f'{number}{kind}',
        'question': f'which {words[5] if kind == "a" else "error"}',
        'is_impossible': kind == 'b',
        'answers': answers if kind == 'a' else [],
      }
      for kind in 'ab'
    ]
    passages |= {question['id']: context for question in questions}
    articles.append({'paragraphs': [{'context': context, 'qas': questions}]})
  path.write_text(json.dumps({'data': articles}))
  return passages


def test_spans_in_two_starts(tiny_run, tmp_path):
  """Passages are longer than a row, so that they are read in windows."""
  out, folder = tmp_path / 'run', tmp_path / 'squad'
  folder.mkdir()
  write_squad(folder / 'train-v2.0.json', 12)
  passages = write_squad(folder / 'dev-v2.0.json', 5)
  words = ['--gin_file=finetune/squad.gin', '--gin.STRIDE=8']
  words += ['--gin.BATCH_SIZE=8', '--gin.EVAL_PERIOD=2']
  for steps in (2, 4):
    last = f'--gin.TRAIN_STEPS={steps}'
    finetune(tiny_run, folder, out, *words, last, task='squad2')
  assert [line['step'] for line in history(out)] == [2, 4]
  assert [x['step'] for x in lines(out / 'train' / 'metrics.jsonl')][-1] == 4
  found = result(out)
  assert (found['metric'], found['last_step']) == ('validation/best_f1', 4)
  scores = found['scores']['validation']
  assert {'best_f1', 'best_exact', 'f1', 'exact'} <= set(scores)
  assert (
    0 <= scores['exact'] <= scores['best_exact'] <= scores['best_f1'] <= 100
  )
  said = json.loads((out / 'predictions' / 'predictions.json').read_text())
  assert set(said) == set(passages)
  assert all(text in passages[name] for name, text in said.items())
  rows = lines(out / 'predictions' / 'validation.jsonl')
  assert [row['id'] for row in rows] == list(passages)
  assert {key for row in rows for key in row['prediction']} == {
    'text',
    'null_odds',
  }


def sentence(draw) -> str:
  return f'the {draw.choice(WORDS)} of the {draw.choice(WORDS)}'


def write_pairs(folder, fields, labels) -> None:
  """A task of SuperGLUE that has pairs; the test files have no labels."""
  draw = random.Random(folder.name)
  for split, count in (('train', 16), ('val', 6), ('test', 3)):
    rows = [
      {'idx': n} | {field: sentence(draw) for field in fields}
      for n in range(count)
    ]
    if split != 'test':
      rows = [row | {'label': labels[row['idx'] % len(labels)]} for row in rows]
    write_lines(folder / f'{split}.jsonl', rows)


def write_copa(folder) -> None:
  draw = random.Random(0)
  for split, count in (('train', 16), ('val', 6), ('test', 3)):
    rows = [
      {
        'idx': n,
        'premise': sentence(draw),
        'choice1': sentence(draw),
        'choice2': sentence(draw),
        'question': draw.choice(['cause', 'effect']),
        'label': draw.randrange(2),
      }
      for n in range(count)
    ]
    if split == 'test':
      rows = [
        {name: x for name, x in row.items() if name != 'label'} for row in rows
      ]
    write_lines(folder / f'{split}.jsonl', rows)


def test_several_tasks_and_on_from_there(tiny_run, tmp_path):
  """A head for each; then one of them alone, and a ranking, a new task."""
  glue, both = tmp_path / 'superglue', tmp_path / 'both'
  labels = ['entailment', 'neutral', 'contradiction']
  write_pairs(glue / 'CB', ('premise', 'hypothesis'), labels)
  write_pairs(glue / 'BoolQ', ('passage', 'question'), [True, False])
  write_copa(glue / 'COPA')
  words = ['--gin.BATCH_SIZE=8', '--gin.EPOCHS=1', '--gin.EVALUATIONS=1']
  words += ['--gin.PREDICT_WITH=last']
  finetune(tiny_run, glue, both, *words, task="('cb', 'boolq')")
  found = result(both)
  assert (found['metric'], found['last_step']) == ('cb/validation/accuracy', 4)
  assert set(found['scores']) == {'cb/validation', 'boolq/validation'}
  assert set(found['scores']['cb/validation']) == {'accuracy', 'macro_f1'}
  said = lines(both / 'predictions' / 'boolq' / 'BoolQ.jsonl')
  assert [row['idx'] for row in said] == [0, 1, 2]
  assert {row['label'] for row in said} <= {'true', 'false'}
  said = lines(both / 'predictions' / 'cb' / 'CB.jsonl')
  assert {row['label'] for row in said} <= set(labels)
  check_same_head(both, glue, tmp_path / 'boolq', words)
  check_ranking(both, glue, tmp_path / 'copa', words)


def check_same_head(both, glue, out, words):
  """With its head and a rate of zero it says what it said before."""
  words = [*words, '--gin.LEARNING_RATE=0.0']
  words += ["--gin.INITIAL_PARAMETERS=('(embedder|main|heads)/.*',)"]
  finetune(both, glue, out, *words, task='boolq')
  before = result(both)['scores']['boolq/validation']
  assert result(out)['scores']['validation'] == before
  for split in ('validation', 'test'):
    said = (out / 'predictions' / f'{split}.jsonl').read_text()
    other = both / 'predictions' / 'boolq' / f'{split}.jsonl'
    assert said == other.read_text()


def check_ranking(pretrained, glue, out, words):
  finetune(pretrained, glue, out, *words, task='copa')
  found = result(out)
  assert found['metric'] == 'validation/accuracy'
  assert [line['step'] for line in history(out)] == [2]
  said = lines(out / 'predictions' / 'COPA.jsonl')
  assert [row['idx'] for row in said] == [0, 1, 2]
  assert {row['label'] for row in said} <= {0, 1}
  gold = [row['label'] for row in lines(glue / 'COPA' / 'val.jsonl')]
  said = lines(out / 'predictions' / 'validation.jsonl')
  right = [a == b['prediction'] for a, b in zip(gold, said, strict=True)]
  assert found['score'] == pytest.approx(sum(right) / 6)


def test_summaries_in_two_starts(tiny_t5, tmp_path):
  folder, out = tmp_path / 'xsum', tmp_path / 'run'
  draw = random.Random(0)
  for split, count in (('train', 16), ('validation', 5), ('test', 2)):
    rows = [
      {'id': f'{split}{n}', 'document': tiny_run.text(2, n)}
      for n in range(count)
    ]
    if split != 'test':
      rows = [row | {'summary': sentence(draw)} for row in rows]
    write_lines(folder / f'{split}.jsonl', rows)
  words = ['--gin_file=finetune/text_to_text.gin', '--gin.TARGET_LENGTH=8']
  words += ['--gin.BATCH_SIZE=4', '--gin.EVAL_PERIOD=2']
  for steps in (2, 4):
    last = f'--gin.TRAIN_STEPS={steps}'
    finetune(tiny_t5, folder, out, *words, last, task='xsum')
  assert [line['step'] for line in history(out)] == [2, 4]
  found = result(out)
  assert found['metric'] == 'validation/rouge2'
  scores = found['scores']['validation']
  assert set(scores) == {'rouge1', 'rouge2', 'rougeL'}
  assert all(0 <= score <= 100 for score in scores.values())
  for split, count in (('validation', 5), ('test', 2)):
    said = lines(out / 'predictions' / f'{split}.jsonl')
    assert [row['id'] for row in said] == [f'{split}{n}' for n in range(count)]
    assert all(isinstance(row['prediction'], str) for row in said)


def rendered(draw, choices: bool) -> dict:
  """An example of P3."""
  example = {
    'inputs_pretokenized': f'{sentence(draw)}, is it ?',
    'targets_pretokenized': ' ' + draw.choice(WORDS[:3]),
  }
  return example | ({'answer_choices': list(WORDS[:3])} if choices else {})


def test_mixture_with_its_own_evaluation(tiny_t5, tmp_path):
  """Trained on some datasets, it ranks the choices of others."""
  folder, out = tmp_path / 'p3', tmp_path / 'run'
  draw = random.Random(0)
  parts = [('xsum_summarise', 12), ('xsum_in_short', 4)]
  names = [f'{d}_a' for d in t0.EVALUATION if not d.startswith('anli')]
  names += [f'anli_a_{round_}' for round_ in ('r1', 'r2', 'r3')]
  parts += [(name, 3) for name in [*names, 'super_glue_rte_b']]
  for name, count in parts:
    split = 'train' if name.startswith('xsum') else 'validation'
    rows = [rendered(draw, split == 'validation') for _ in range(count)]
    write_lines(folder / name / f'{split}.jsonl', rows)
  words = ['--gin_file=finetune/text_to_text.gin', '--gin.TARGET_LENGTH=6']
  words += ["--gin.downstream.t0_mixture.train=('xsum',)"]
  words += ['--gin.downstream.t0_mixture.cap=16', '--gin.EVALUATIONS=1']
  words += ['--gin.BATCH_SIZE=4', '--gin.EPOCHS=1']
  finetune(tiny_t5, folder, out, *words, task='@downstream.t0_mixture()')
  found = result(out)
  # At most 16 / 2 of each template: 8 + 4 examples.
  assert (found['metric'], found['last_step']) == ('validation/accuracy', 3)
  scores = found['scores']['validation']
  rows = lines(out / 'predictions' / 'validation.jsonl')
  assert len(rows) == 12 * 3
  assert {row['prediction'] for row in rows} <= set(WORDS[:3])
  assert rows[0]['id'] == 'super_glue_rte_a/1'
  rte = [scores[f'template/super_glue_rte_{name}'] for name in 'ab']
  assert scores['super_glue_rte/median'] == pytest.approx(sum(rte) / 2)
  means = [scores[f'{dataset}/accuracy'] for dataset in t0.EVALUATION]
  assert scores['accuracy'] == pytest.approx(sum(means) / 11)
  done = subprocess.run(
    [
      sys.executable,
      '-m',
      'metro_jax.evaluate',
      f'--gin.MODEL_DIR={out}',
      '--gin.TASK=t0_eval',
    ],
    capture_output=True,
    text=True,
    check=True,
    env=ENVIRONMENT,
  )
  assert re.search(rf'accuracy +{scores["accuracy"]:.6g}\n', done.stdout)
