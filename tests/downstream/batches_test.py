# SPDX-License-Identifier: Apache-2.0
"""Rows as literal tokens, windows of passages, batches as a pure function."""

import json

import numpy as np
import pytest

from metro_jax import inference_text
from metro_jax.downstream import decode, encode, registry, windows
from metro_jax.downstream.dataset import TaskDataset
from metro_jax.downstream.own import own_task
from metro_jax.downstream.records import Example, Passage, Question
from metro_jax.errors import UserError

TASKS = registry.TASKS


def spell(vocabulary, row):
  return ' '.join(vocabulary.pieces([i for i in row if i]))


def encoded(vocabulary, task, records, length=16, train=True, **rest):
  return encode.encode(TASKS[task], records, vocabulary, length, train, **rest)


def test_pairs_as_tokens(vocabulary):
  records = [Example(0, ('the cat sat', 'a dog'), 'entailment')]
  out = encoded(vocabulary, 'rte', records)
  assert spell(vocabulary, out.rows[0]) == (
    '[CLS] ▁the ▁cat ▁sat [SEP] ▁a ▁dog [SEP]'
  )
  assert out.labels.tolist() == [1.0]
  assert out.truncated == 0


def test_the_longer_text_gives_first(vocabulary):
  pair = ('the cat sat on the mat', 'a dog')
  for length, wanted in (
    (9, '[CLS] ▁the ▁cat ▁sat ▁on [SEP] ▁a ▁dog [SEP]'),
    (8, '[CLS] ▁the ▁cat ▁sat [SEP] ▁a ▁dog [SEP]'),
    (6, '[CLS] ▁the ▁cat [SEP] ▁a [SEP]'),
  ):
    records = [Example(0, pair, 'entailment'), Example(1, pair[::-1])]
    out = encoded(vocabulary, 'rte', records, length)
    assert spell(vocabulary, out.rows[0]) == wanted
    assert len(out.rows[1]) == length
    assert out.truncated == 2
  single = encoded(vocabulary, 'sst2', [Example(0, (pair[0],), '1')], 4)
  assert spell(vocabulary, single.rows[0]) == '[CLS] ▁the ▁cat [SEP]'


def test_labels_of_regressions_are_fractions(vocabulary):
  out = encoded(vocabulary, 'stsb', [Example(0, ('a', 'a'), 4.0)])
  assert out.labels[0] == np.float32(0.8)


def test_rankings(vocabulary):
  copa = [
    Question(n, (('the cat', 'sat'), ('the cat', 'ran')), (0, 1), (n % 2,))
    for n in range(3)
  ]
  out = encoded(vocabulary, 'copa', copa)
  assert (out.choices, len(out), len(out.rows)) == (2, 3, 6)
  assert out.labels.tolist() == [0.0, 1.0, 0.0]
  alone = encoded(vocabulary, 'copa', copa, train=False)
  assert (alone.choices, len(alone)) == (1, 6)
  logits = np.array([1.0, 2.0, 4.0, 3.0, 0.0, 0.0])[:, None]
  assert decode.predictions(TASKS['copa'], copa, alone, logits) == [1, 0, 0]


def test_rankings_of_many_become_pairs(vocabulary):
  words = ('cat', 'dog', 'mat', 'park')
  texts = tuple((word,) for word in words)
  records = [
    Question(0, texts, words, (1, 2)),
    Question(1, texts[:3], words[:3], (0,)),
    Question(2, texts[:2], words[:2], ()),  # Nothing to learn from.
  ]
  out = encoded(vocabulary, 'record', records)
  rows = [spell(vocabulary, row).split()[1][1:] for row in out.rows]
  pairs = list(zip(rows[::2], rows[1::2], strict=True))
  assert [b for _, b in pairs] == ['cat', 'park', 'dog', 'mat']
  assert all(a in ('dog', 'mat') for a, _ in pairs[:2])
  assert [a for a, _ in pairs[2:]] == ['cat', 'cat']
  assert out.owners.tolist() == [0, 0, 1, 1]


def test_windows_of_a_passage(vocabulary):
  context = 'the cat sat on the mat and the dog ran in the park'
  start = context.index('dog')
  record = Passage('x', 'who ran', context, (('dog ran', start),))
  tokenize = inference_text.Tokenizer(vocabulary)
  rows = list(windows.windows_of(record, 0, tokenize, 11, 3))
  assert spell(vocabulary, rows[0].tokens) == (
    '[CLS] ▁who ▁ran [SEP] ▁the ▁cat ▁sat ▁on ▁the ▁mat [SEP]'
  )
  assert spell(vocabulary, rows[1].tokens) == (
    '[CLS] ▁who ▁ran [SEP] ▁on ▁the ▁mat ▁and ▁the ▁dog [SEP]'
  )
  # Only the third has the whole answer.
  assert [row.answer for row in rows] == [(0, 0), (0, 0), (6, 7), (0, 0)]
  for row in rows:
    first, last = row.answer
    if first:
      spans = row.spans
      piece = context[spans[first - 4][0] : spans[last - 4][1]]
      assert piece == 'dog ran'
  assert rows[0].candidates(11).tolist() == [1, 0, 0, 0, *[1] * 6, 0]
  # Each token has one window that shows it best.
  shown = np.zeros(13, int)
  for number, row in enumerate(rows):
    shown[3 * number : 3 * number + len(row.spans)] += row.widest
  assert (shown == 1).all()


def test_answers_come_from_the_surest_window(vocabulary):
  context = 'the cat sat on the mat and the dog ran in the park'
  records = [Passage('x', 'who ran', context, (('dog', 31),))]
  out = encoded(vocabulary, 'squad2', records, 11, stride=3)
  logits = np.full((len(out), 2, 11), -5.0, np.float32)
  logits[:, :, 0] = 1.0
  # Windows 1 and 2 show it; window 2 with more around it.
  assert [w.answer for w in out.windows] == [(0, 0), (9, 9), (6, 6), (0, 0)]
  logits[1, :, 9] = 9.0
  logits[2, :, 6] = 4.0
  (answer,) = decode.predictions(TASKS['squad2'], records, out, logits)
  assert answer.text == 'dog'
  assert answer.null_odds == pytest.approx(2.0 - 8.0)
  logits[0, :, 0] = -3.0  # The lowest null score counts.
  (lower,) = decode.predictions(TASKS['squad2'], records, out, logits)
  assert lower.null_odds == pytest.approx(answer.null_odds - 8.0)


@pytest.fixture
def folder(tmp_path):
  for name, count in (('train', 20), ('dev', 10)):
    rows = ['sentence\tlabel']
    rows += [f'the cat {"sat " * (n % 5)}\t{n % 2}' for n in range(count)]
    (tmp_path / f'{name}.tsv').write_text('\n'.join(rows) + '\n')
  return tmp_path


def make(folder, vocabulary, split='train', **rest):
  options = {'length': 12, 'batch_size': 8, 'vocabulary': vocabulary}
  return TaskDataset('sst2', folder, split, **(options | rest))


def test_an_epoch_shows_every_example_once(folder, vocabulary):
  dataset = make(folder, vocabulary, seed=3)
  seen = np.concatenate([dataset.examples(step) for step in range(5)])
  assert sorted(seen[:20]) == sorted(seen[20:]) == list(range(20))
  assert seen[:20].tolist() != seen[20:].tolist()
  assert dataset.position(3) == {'epoch': 1, 'example': 4}
  again, other = make(folder, vocabulary, seed=3), make(folder, vocabulary)
  assert (again.examples(2) == dataset.examples(2)).all()
  assert (other.examples(2) != dataset.examples(2)).any()
  assert again.fingerprint == dataset.fingerprint != other.fingerprint


def test_rows_of_a_batch(folder, vocabulary):
  dataset = make(folder, vocabulary)
  batch, part = dataset.batch(1), dataset.batch(1, slice(2, 5))
  for name, x in batch.items():
    np.testing.assert_array_equal(part[name], x[2:5])
  index = dataset.examples(1)
  assert batch['labels'].tolist() == [n % 2 for n in index]
  used = batch['encoder_input_tokens'] > 0
  assert (batch['encoder_segment_ids'] == used).all()
  assert (used.sum(1) == index % 5 + 4).all()
  assert (batch['encoder_positions'].max(1) == index % 5 + 3).all()


def test_evaluation_pads_the_last_batch(folder, vocabulary):
  dataset = make(folder, vocabulary, 'validation', shuffle=False)
  assert dataset.steps_per_epoch == 2
  assert dataset.batch(1)['weights'].tolist() == [1, 1, *[0] * 6]
  logits = np.zeros((16, 2), np.float32)
  logits[1:10:2, 1] = 1.0
  logits[3] = 1.0, 0.0
  assert dataset.score({'sst2': logits}) == {'accuracy': 0.9}


def test_several_tasks_are_one_stream(folder, vocabulary):
  rows = [{'text': 'a dog', 'label': 'x'}, {'text': 'he', 'label': 'y'}]
  text = '\n'.join(map(json.dumps, rows)) + '\n'
  (folder / 'own.jsonl').write_text(text)
  own = own_task('own.jsonl', 'own.jsonl')
  dataset = TaskDataset(
    ('sst2', own), folder, length=12, batch_size=11, vocabulary=vocabulary
  )
  assert dataset.num_examples == 22
  ids = np.concatenate([dataset.batch(s)['task_ids'] for s in range(2)])
  assert np.bincount(ids).tolist() == [20, 2]
  with pytest.raises(UserError, match='cannot be trained together'):
    copa = {'premise': 'a', 'choice1': 'b', 'choice2': 'c', 'question': 'cause'}
    line = json.dumps(copa | {'label': 0})
    (folder / 'train.jsonl').write_text(f'{line}\n')
    TaskDataset(('sst2', 'copa'), folder, vocabulary=vocabulary)
