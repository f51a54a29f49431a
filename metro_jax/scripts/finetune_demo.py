# SPDX-License-Identifier: Apache-2.0
"""What pretraining is worth: `make finetune-demo`.

A task made of the embedded corpus: is a sentence as it was written, or were two
neighbouring words exchanged? The quickstart's model is fine-tuned on it, and so
is the same network without its pretraining. Sentences to test on come from
documents that pretraining held out.
"""

import argparse
import json
import os
import pathlib
import random
import subprocess
import sys
from collections.abc import Sequence

from metro_jax.errors import UserError

ROOT = pathlib.Path(__file__).resolve().parents[2]
SOURCE = 'metro_docstrings'
SIZES = {'train': 6000, 'validation': 1000}


def exchange(text: str, draw: random.Random) -> str:
  """The text with two neighbouring words exchanged, unless they are equal."""
  words = text.split(' ')
  # The first and the last word would tell by their capital and full stop.
  places = [n for n in range(1, len(words) - 2) if words[n] != words[n + 1]]
  if places:
    n = draw.choice(places)
    words[n], words[n + 1] = words[n + 1], words[n]
  return ' '.join(words)


def examples(texts: Sequence[str], seed: int = 0) -> list[tuple[str, str]]:
  """(text, label): half of the texts as they are, half changed."""
  draw = random.Random(seed)
  return [
    (exchange(text, draw), 'changed')
    if draw.random() < 0.5
    else (text, 'whole')
    for text in texts
  ]


def write_task(folder: pathlib.Path) -> None:
  """train.jsonl, validation.jsonl and the recipe of the task."""
  from metro_jax import data
  from metro_jax.scripts import showcase

  folder.mkdir(parents=True, exist_ok=True)
  source = data.resolve(SOURCE)
  for split, count in SIZES.items():
    texts = showcase.sentences(source.documents(split), count)
    rows = [{'text': t, 'label': label} for t, label in examples(texts)]
    lines = ''.join(json.dumps(row) + '\n' for row in rows)
    (folder / f'{split}.jsonl').write_text(lines)
  (folder / 'task.gin').write_text(
    'from __gin__ import dynamic_registration\n\n'
    'import metro_jax.gin_registration\n'
    'from metro_jax import downstream\n\n'
    'TASK = @downstream.own_task()\n'
    'downstream.own_task:\n'
    "  train_file = 'train.jsonl'\n"
    "  validation_file = 'validation.jsonl'\n"
    "  labels = ('changed', 'whole')\n"
    "  metrics = ('accuracy', 'mcc')\n"
  )


def finetune(
  folder: pathlib.Path, pretrained: str, name: str, words: Sequence[str]
) -> dict:
  """One run of `metro_jax.finetune`, and its result."""
  model_dir = folder / name
  command = [
    *('-m', 'metro_jax.finetune', '--gin_file=finetune/tiny.gin'),
    f'--gin_file={folder / "task.gin"}',
    f'--gin.TASK_DIR={folder}',
    f'--gin.INITIAL_CHECKPOINT_PATH={pretrained}',
    f'--gin.MODEL_DIR={model_dir}',
    *words,
  ]
  print('$', 'python', *command, flush=True)
  done = subprocess.run([sys.executable, *command], check=False)
  if done.returncode or not (model_dir / 'result.json').exists():
    sys.exit(done.returncode or 130)
  return json.loads((model_dir / 'result.json').read_text())


def main() -> None:
  """Entry point."""
  parser = argparse.ArgumentParser(
    prog='make finetune-demo',
    description=__doc__,
    epilog='Other flags go to metro_jax.finetune: --gin.EPOCHS=2',
  )
  parser.add_argument('--pretrained', default='runs/quickstart')
  parser.add_argument('--output', default='runs/finetune-demo')
  flags, rest = parser.parse_known_args()
  os.chdir(ROOT)
  folder = pathlib.Path(flags.output)
  try:
    if not (pathlib.Path(flags.pretrained) / 'config.gin').exists():
      raise UserError(
        f'{flags.pretrained} is no pretraining run; make quickstart first'
      )
    write_task(folder)
  except UserError as error:
    print(f'error: {error}', file=sys.stderr)
    sys.exit(2)
  scratch = ['--gin_file=finetune/from_scratch.gin', *rest]
  results = {
    'pretrained': finetune(folder, flags.pretrained, 'pretrained', rest),
    'from scratch': finetune(folder, flags.pretrained, 'from_scratch', scratch),
  }
  print(
    '\nAre two words exchanged? Held-out sentences, half of them changed.\n'
  )
  for name, result in results.items():
    scores = result['scores']['validation']
    print(
      f'{name:<14} accuracy {scores["accuracy"]:6.1%}   MCC {scores["mcc"]:.3f}'
    )
  print(f'{"guess":<14} accuracy {0.5:6.1%}   MCC {0:.3f}')


if __name__ == '__main__':
  main()
