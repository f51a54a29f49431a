# SPDX-License-Identifier: Apache-2.0
"""From nothing to a pretrained encoder: what `make quickstart` runs.

Every step is a command or a call that a user could type; run again, it skips
what is done and goes on with what is not.
"""

import argparse
import contextlib
import itertools
import json
import logging
import os
import pathlib
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence

import numpy as np
from rich import box, console, padding, panel, table
from rich.markup import escape

ROOT = pathlib.Path(__file__).resolve().parents[2]
MODEL_DIR = 'runs/quickstart'
RECIPE = 'metro_lm/tiny.gin'
# Those of the recipe; training would make them itself, without being watched.
SOURCE = 'metro_docstrings'
VOCAB_SIZE = 4096
LENGTH = 64

_STOPPED = 130  # Exit code of a command that Ctrl-C ended.

# metric, words, what a guess by frequency of tokens gets, or None.
METRICS = (
  ('loss/mlm', 'auxiliary: MLM loss (nats)', 'unigram_loss'),
  ('auxiliary_accuracy', 'auxiliary: masked tokens right', 'unigram_accuracy'),
  ('replace_rate', 'tokens that it replaces', None),
  ('rtd_auc', 'main: RTD, area under ROC', 'half'),
  ('replace_accuracy', 'main: replaced tokens found', 'zero'),
  ('rtd_precision', 'main: marked tokens that were replaced', None),
  ('loss/clm', 'main: CLM loss (nats)', 'unigram_loss'),
  ('clm_accuracy', 'main: original tokens recovered', 'unigram_accuracy'),
)


class Quickstart:
  """The steps, one method each, in the order of `run`."""

  def __init__(
    self, model_dir: str, bindings: Sequence[str], out: console.Console
  ):
    """Takes where to train, what to bind besides, and where to write."""
    self.model_dir, self.bindings, self.out = model_dir, bindings, out
    self.folder = pathlib.Path(model_dir)
    self.times: list[tuple[str, float]] = []

  @contextlib.contextmanager
  def step(self, title: str, about: str) -> Iterator[None]:
    """Says what is done and how long it took."""
    number = len(self.times) + 1
    self.out.print()
    self.out.rule(f'[bold]{number}  {title}', align='left', style='blue')
    self.out.print(about, style='dim')
    self.out.print()
    start = time.monotonic()
    yield
    seconds = time.monotonic() - start
    self.times.append((title, seconds))
    self.out.print(f'done in {_duration(seconds)}', style='green')

  def run(self) -> None:
    """All steps."""
    self.greet()
    with self.step(
      'Text',
      'The embedded corpus: the English docstrings of the Python packages in'
      ' this environment. Nothing is downloaded.',
    ):
      self.text()
    with self.step(
      'Vocabulary',
      f'SentencePiece BPE, cased, {VOCAB_SIZE:,} tokens, trained on that text.'
      ' Then the text is tokenised, once.',
    ):
      self.vocabulary()
    with self.step(
      'Pretraining',
      'An auxiliary model fills masked tokens in; the main model learns to see'
      ' which ones it replaced, and to restore them.',
    ):
      self.train()
    with self.step(
      'Evaluation', 'On documents that were held out, against a plain guess.'
    ):
      self.evaluate()
    with self.step('Curves', 'Losses, replace rate and accuracy, speed.'):
      self.curves()
    with self.step(
      'What was learnt',
      'Held-out sentences again: the auxiliary replaces words, the main model'
      ' looks for them.',
    ):
      self.show()
    self.farewell()

  def greet(self) -> None:
    """What this is, in a few lines."""
    self.out.print(
      panel.Panel.fit(
        '[bold]METRO-LM quickstart[/]\n'
        'text -> vocabulary -> pretraining -> evaluation -> a model to ask\n'
        f'on {os.cpu_count()} CPU cores or whatever JAX finds; some minutes'
        ' on two cores.\n'
        'Ctrl-C stops; the same command goes on where it stopped.',
        box=box.ROUNDED,
        border_style='blue',
      )
    )

  def text(self) -> None:
    """The corpus, and a look at it."""
    from metro_jax import data

    source = data.resolve(SOURCE)
    count = characters = 0
    for document in source.documents():
      count, characters = count + 1, characters + len(document)
    self.out.print(
      f'{count:,} documents, {characters / 1e6:.1f} million characters.'
      ' One begins:'
    )
    sample = next(itertools.islice(source.documents('train'), 40, None))
    line = ' '.join(sample.split())[:150]
    self.indented(f'[italic]{escape(line)} ...')

  def vocabulary(self) -> None:
    """Vocabulary and token cache, as training will find them."""
    from metro_jax import data

    datasets = {
      split: data.TokenDataset(
        SOURCE, split, LENGTH, vocabulary_size=VOCAB_SIZE
      )
      for split in ('train', 'validation')
    }
    for split, dataset in datasets.items():
      about = dataset.describe()
      self.out.print(
        f'{split:<11}{about["tokens"]:>11,} tokens in {about["rows"]:>7,} rows'
        f' of {LENGTH}'
      )
    vocabulary = datasets['train'].vocabulary
    sentence = 'Returns the eigenvalues of a symmetric matrix.'
    pieces = vocabulary.pieces(vocabulary.encode(sentence))
    self.out.print(f'{sentence!r} is now:')
    self.indented(f'[italic]{escape(" ".join(pieces))}')

  def train(self) -> None:
    """The command that a user would type."""
    if self.finished():
      self.out.print(f'{self.model_dir} is trained already: nothing to do')
      return
    self.command(
      '-m',
      'metro_jax.train',
      f'--gin_file={RECIPE}',
      f'--gin.MODEL_DIR={self.model_dir}',
      *self.bindings,
    )
    if not self.finished():  # Ended by SIGTERM, with a checkpoint.
      raise KeyboardInterrupt

  def finished(self) -> bool:
    """Whether the last checkpoint of the run is there."""
    try:
      config = (self.folder / 'config.gin').read_text()
    except OSError:
      return False
    found = re.search(r'^TRAIN_STEPS = (\d+)', config, re.MULTILINE)
    last = f'checkpoint_{found.group(1)}' if found else ''
    return bool(last) and (self.folder / last).is_dir()

  def evaluate(self) -> None:
    """Numbers on held-out text, and what a guesser gets."""
    self.command(
      '-m',
      'metro_jax.evaluate',
      f'--gin.MODEL_DIR={self.model_dir}',
      '--gin.EVAL_STEPS=None',
      quiet=True,
    )
    path = self.folder / 'training_eval' / 'validation' / 'metrics.jsonl'
    metrics = json.loads(path.read_text().splitlines()[-1])
    guess = _guesser()
    grid = table.Table(box=box.SIMPLE_HEAD, pad_edge=False)
    grid.add_column('held-out text')
    grid.add_column('model', justify='right')
    grid.add_column('guess', justify='right', style='dim')
    for name, words, reference in METRICS:
      if name in metrics:
        theirs = '' if reference is None else _number(guess[reference], name)
        grid.add_row(words, _number(metrics[name], name), theirs)
    self.out.print(grid)
    self.out.print(
      'guess: for the losses and accuracies, tokens by their frequency; for'
      ' RTD, a coin.',
      style='dim',
    )

  def curves(self) -> None:
    """Draws curves.png."""
    from metro_jax import plot

    path = plot.draw([plot.load_run(self.folder)], self.folder / 'curves.png')
    self.out.print(f'drawn: [bold]{path}[/]')

  def show(self) -> None:
    """Replaced tokens found, masked words filled in."""
    from metro_jax import data, inference
    from metro_jax.scripts import demonstration

    demonstration.present(
      inference.load(self.folder),
      data.resolve(SOURCE).documents('validation'),
      self.out,
    )

  def farewell(self) -> None:
    """Times, where everything is, and what to type next."""
    python = _python()
    total = sum(seconds for _, seconds in self.times)
    self.out.print()
    self.out.rule('[bold]Done', align='left', style='blue')
    for title, seconds in self.times:
      self.out.print(f'{title:<18}{_duration(seconds):>9}', style='dim')
    self.out.print(f'{"All":<18}{_duration(total):>9}\n')
    grid = table.Table(box=None, show_header=False, pad_edge=False)
    for name, about in (
      ('curves.png', 'the curves'),
      ('checkpoint_*', 'parameters and optimizer state'),
      ('config.gin', 'the whole configuration'),
      ('vocabulary.model', 'the vocabulary'),
      ('model-info.txt', 'every parameter with its shape'),
      ('train, training_eval', 'metrics.jsonl, and TensorBoard events'),
    ):
      grid.add_row(f'{self.model_dir}/{name}', about)
    self.out.print(grid)
    self.say(
      'Your own text:',
      f'{python} -m metro_jax.train --gin_file={RECIPE} \\',
      "  --gin.TEXT_FILES='/path/to/*.txt' --gin.MODEL_DIR=runs/mine",
    )
    self.say(
      'Ask the model:',
      f'{python} -m metro_jax.infer --model_dir={self.model_dir} \\',
      '  --mode=detect \\',
      "  --text='Compute the eigenvalues of a square purple.'",
    )

  def indented(self, content: console.RenderableType) -> None:
    """A line or more, two columns to the right."""
    self.out.print(padding.Padding(content, (0, 0, 0, 2)))

  def say(self, title: str, *lines: str) -> None:
    """A command to copy: never wrapped, never coloured."""
    self.out.print(f'\n[bold]{title}')
    for line in lines:
      self.out.print(f'  {line}', markup=False, highlight=False, soft_wrap=True)

  def command(self, *arguments: str, quiet: bool = False) -> None:
    """Shows and runs a command of this project; its failure is ours."""
    shown = ' '.join([_python(), *arguments])
    self.out.print(
      f'$ {shown}', style='cyan', markup=False, highlight=False, soft_wrap=True
    )
    code, output = _run(arguments, quiet)
    if code:
      sys.stderr.write(output)
      if code == _STOPPED:
        raise KeyboardInterrupt
      sys.exit(code)


def _run(arguments: Sequence[str], quiet: bool) -> tuple[int, str]:
  """Runs a command; its exit code, and what it printed if it is quiet.

  Ctrl-C is for the command: it saves, and ends with `_STOPPED`.
  """
  process = subprocess.Popen(
    [sys.executable, *arguments],
    stdout=subprocess.PIPE if quiet else None,
    stderr=subprocess.STDOUT if quiet else None,
    text=True,
  )
  while True:
    with contextlib.suppress(KeyboardInterrupt):
      output, _ = process.communicate()
      return process.returncode, output or ''


def _guesser() -> dict[str, float]:
  """What knowing only how frequent tokens are gives on held-out text."""
  from metro_jax import data

  seen, unseen = (
    _token_counts(
      data.TokenDataset(SOURCE, split, LENGTH, vocabulary_size=VOCAB_SIZE)
    )
    for split in ('train', 'validation')
  )
  p = (seen + 1) / (seen + 1).sum()
  return {
    'unigram_loss': float(-(unseen * np.log(p)).sum() / unseen.sum()),
    'unigram_accuracy': float(unseen[seen.argmax()] / unseen.sum()),
    'half': 0.5,
    'zero': 0.0,
  }


def _token_counts(dataset) -> np.ndarray:
  """How often each id occurs in rows of a split, specials left out."""
  counts = np.zeros(dataset.vocab_size, np.int64)
  steps = min(dataset.steps_per_epoch, 1000)
  for step in range(steps):
    ids = dataset.batch(step)['encoder_target_tokens']
    counts += np.bincount(ids.ravel(), minlength=dataset.vocab_size)
  specials = dataset.vocabulary.is_special(np.arange(dataset.vocab_size))
  return np.where(specials, 0, counts)


def _number(value: float, metric: str) -> str:
  if metric.startswith('loss') or metric == 'rtd_auc':
    return f'{value:.2f}'
  return f'{value:.1%}'


def _duration(seconds: float) -> str:
  minutes, rest = divmod(round(seconds, 1), 60)
  return f'{minutes:.0f} min {rest:02.0f} s' if minutes else f'{rest:.1f} s'


def _python() -> str:
  """The interpreter as a user in this folder would name it."""
  path = pathlib.Path(sys.prefix) / 'bin' / 'python'
  here = pathlib.Path.cwd()
  return str(path.relative_to(here) if path.is_relative_to(here) else path)


def main() -> None:
  """Entry point."""
  parser = argparse.ArgumentParser(
    prog='make quickstart',
    description=__doc__,
    epilog='Other flags go to metro_jax.train: --gin.TRAIN_STEPS=300',
  )
  parser.add_argument('--model_dir', default=MODEL_DIR)
  flags, bindings = parser.parse_known_args()
  os.chdir(ROOT)
  os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
  logging.getLogger('absl').setLevel(logging.ERROR)  # Orbax is talkative.
  out = console.Console(highlight=False)
  from metro_jax.errors import UserError

  try:
    Quickstart(flags.model_dir, bindings, out).run()
  except UserError as error:
    print(f'error: {error}', file=sys.stderr)
    sys.exit(2)
  except KeyboardInterrupt:
    print('\nstopped; make quickstart goes on from here', file=sys.stderr)
    sys.exit(130)


if __name__ == '__main__':
  main()
