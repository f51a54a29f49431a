# SPDX-License-Identifier: Apache-2.0
"""The page about a run: whole, self-contained, and truthful."""

import html.parser
import json
import re

import pytest

from metro_jax import report
from metro_jax.errors import UserError

NAMES = (
  'loss',
  'loss/mlm',
  'loss/rtd',
  'rtd_auc',
  'grad_norm',
  'grad_norm/main',
  'grad_norm/auxiliary',
  'update_ratio/rtd_head',
  'refused_steps',
)


def write(folder, steps=40, **values):
  """The logs of a run, as the trainer writes them."""
  (folder / 'train').mkdir(parents=True)
  (folder / 'training_eval/validation').mkdir(parents=True)
  lines = [
    {
      'step': 10 * i,
      **{name: 1.0 + i / 100 for name in NAMES},
      'loss/mlm': 4.0 - i / 20,
      'rtd_auc': 0.6,
      **values,
    }
    for i in range(1, steps + 1)
  ]
  text = ''.join(json.dumps(line) + '\n' for line in lines)
  (folder / 'train/metrics.jsonl').write_text(text + '{"step": 410, "lo')
  held_out = json.dumps({'step': 200, 'loss': 1.5}) + '\n'
  (folder / 'training_eval/validation/metrics.jsonl').write_text(held_out)
  (folder / 'config.gin').write_text("TRAIN_STEPS = 1000\nX = '<script>'\n")
  events = [
    {
      'step': 31,
      'event': 'refused',
      'reason': 'the loss spiked',
      'loss': 99.0,
      'grad_norm': float('nan'),
    },
    {
      'step': 33,
      'event': 'rollback',
      'to': 30,
      'next_batch': 3,
    },
  ]
  (folder / 'train/events.jsonl').write_text(
    ''.join(json.dumps(e) + '\n' for e in events)
  )
  return folder


class Checker(html.parser.HTMLParser):
  """Notes what a page would load, and which tags are left open."""

  def __init__(self):
    super().__init__()
    self.loads, self.open, self.tags = [], [], []

  def handle_starttag(self, tag, attrs):
    self.tags.append(tag)
    self.loads += [v for k, v in attrs if k == 'src']
    self.loads += [v for k, v in attrs if k == 'href' and tag in ('a', 'link')]
    if tag not in ('meta', 'br', 'path', 'use', 'rect', 'image', 'circle'):
      self.open.append(tag)

  def handle_endtag(self, tag):
    if tag in self.open:
      assert self.open.pop() == tag


def check(text):
  checker = Checker()
  checker.feed(text)
  assert checker.open == [] and checker.loads == []
  assert 'script' not in checker.tags
  return checker


def test_page(tmp_path):
  folder = write(tmp_path / 'a<b', refused_steps=0.3)
  report.main([str(folder)])
  text = (folder / 'report.html').read_text()
  checker = check(text)
  assert checker.tags.count('svg') == 8
  assert 'a&lt;b' in text and '&lt;script&gt;' in text
  assert 'The guard refuses 30% of the steps.' in text
  assert 'step 400 of 1,000' in text
  assert 'refused: the loss spiked (loss 99, gradient norm nan)' in text
  assert 'went back to checkpoint_30, reading on at batch 3' in text
  assert '1 steps refused, 1 rollbacks' in text
  assert re.search(r'<td>loss</td><td>1\.4</td><td>1\.5</td>', text)
  assert re.search(r'main_over_auxiliary/rtd</td><td>0.7</td>', text)
  # Each drawing has ids of its own.
  ids = re.findall(r' id="([^"]+)"', text)
  clips = [i for i in ids if re.fullmatch('p[0-9a-f]{10}', i)]
  assert clips and len(set(clips)) == len(clips)


def test_a_calm_run_has_no_alarms(tmp_path):
  folder = write(tmp_path / 'calm', refused_steps=0.0)
  (folder / 'train/events.jsonl').unlink()
  (folder / 'config.gin').unlink()
  text = report.page(folder)
  check(text)
  assert 'No alarms.' in text and 'guard did' not in text


def test_mistakes(tmp_path, capsys):
  with pytest.raises(UserError, match='not found'):
    report.page(tmp_path)
  folder = write(tmp_path / 'run')
  with pytest.raises(UserError, match='--output='):
    report.main([str(folder), f'--output={tmp_path}/no/such/folder.html'])
  png = report.draw(
    report.SECTIONS['Losses'][0], report.plot.load_run(folder), kind='png'
  )
  assert png.startswith(b'\x89PNG')
