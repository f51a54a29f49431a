# SPDX-License-Identifier: Apache-2.0
"""Scores minimal pairs: whether the good sentence is likelier than the bad one.

  python -m metro_jax.minimal_pairs --model_dir=runs/base \\
    --input='/data/blimp/*.jsonl' --head=auxiliary

Each line of a file is an object with `sentence_good` and `sentence_bad`, as in
BLiMP. `auxiliary` and `lm` sum the log-probability of each token, masked on its
own: by the auxiliary's masked language model, or by the corrective language
model of the main model, which reads the auxiliary's guess and corrects it.
`detector` sums the log-probability that each token is original. Ties are wrong.
"""

import argparse
import functools
import glob
import json
import pathlib
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np

from metro_jax import inference, inference_text
from metro_jax.data import vocabularies
from metro_jax.downstream import tables
from metro_jax.errors import UserError

HEADS = ('auxiliary', 'lm', 'detector')
_BUCKET = 16


def sentence_scores(
  model: inference.PretrainedModel, texts: Sequence[str], head: str
) -> np.ndarray:
  """How likely a model finds each text, float64 [texts].

  Args:
    model: of `inference.load`.
    texts: the texts; one that is longer than the model is an error.
    head: one of `HEADS`.
  """
  if head not in HEADS:
    raise UserError(f'--head={head}: give one of {", ".join(HEADS)}')
  if head == 'detector':
    found = model.detect(texts, long='error')
    return np.array(
      [np.sum(np.log1p(-d.p_replaced.astype(np.float64))) for d in found]
    )
  tokenize = inference_text.Tokenizer(model.vocabulary)
  ids = [[token.id for token in tokenize(text)] for text in texts]
  # Checks their lengths, and raises.
  inference_text.windows([len(i) for i in ids], model.max_length - 2, 'error')
  run = jax.jit(
    functools.partial(model.model.predict_batch, mode='score', head=head)
  )
  scores = np.zeros(len(texts), np.float64)
  for owners, batch in _batches(ids, model.batch_size, model.max_length):
    found = np.asarray(run(model.params, batch), np.float64)
    np.add.at(scores, owners, found[: len(owners)])
  return scores


def _batches(
  ids: Sequence[Sequence[int]], size: int, most: int
) -> Iterator[tuple[list[int], dict[str, np.ndarray]]]:
  """Owners and rows; each row has one token masked. Like lengths together."""
  order = sorted(range(len(ids)), key=lambda n: len(ids[n]))
  places = [(n, place) for n in order for place in range(len(ids[n]))]
  for start in range(0, len(places), size):
    chunk = places[start : start + size]
    longest = max(len(ids[n]) for n, _ in chunk) + 2
    length = min(-(-longest // _BUCKET) * _BUCKET, most)
    original = np.zeros((size, length), np.int32)
    weights = np.zeros((size, length), np.float32)
    for row, (n, place) in enumerate(chunk):
      tokens = [vocabularies.CLS, *ids[n], vocabularies.SEP]
      original[row, : len(tokens)] = tokens
      weights[row, place + 1] = 1.0
    masked = np.where(weights > 0, np.int32(vocabularies.MASK), original)
    yield (
      [n for n, _ in chunk],
      {
        'encoder_input_tokens': masked,
        'encoder_target_tokens': original,
        'encoder_loss_weights': weights,
      },
    )


def accuracy(
  model: inference.PretrainedModel,
  pairs: Sequence[tuple[str, str]],
  head: str,
) -> float:
  """Share of (good, bad) pairs in which the good one scores higher."""
  texts = [text for pair in pairs for text in pair]
  scores = sentence_scores(model, texts, head).reshape(-1, 2)
  return float(np.mean(scores[:, 0] > scores[:, 1]))


def read(path: pathlib.Path) -> list[tuple[str, str]]:
  """(good, bad) of each line of a file."""
  rows = tables.jsonl(path, ('sentence_good', 'sentence_bad'))
  pairs = [(r['sentence_good'], r['sentence_bad']) for _, r in rows]
  if not pairs:
    raise UserError(f'{path} is empty')
  if not all(isinstance(text, str) for pair in pairs for text in pair):
    raise UserError(f'{path}: sentence_good and sentence_bad must be texts')
  return pairs


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the command line and returns the exit code."""
  parser = argparse.ArgumentParser(
    prog='python -m metro_jax.minimal_pairs',
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  parser.add_argument('--model_dir', required=True, help='a pretraining run')
  parser.add_argument('--input', required=True, help='files, as a glob')
  parser.add_argument('--head', default='auxiliary', help=', '.join(HEADS))
  parser.add_argument('--step', type=int, help='an older checkpoint')
  parser.add_argument('--output', help='where to write the scores as JSON')
  flags = parser.parse_args(argv)
  try:
    paths = sorted(glob.glob(flags.input))
    if not paths:
      raise UserError(f'--input={flags.input}: no file has such a name')
    model = inference.load(flags.model_dir, flags.step)
    scores: dict[str, Any] = {}
    for path in map(pathlib.Path, paths):
      scores[path.stem] = accuracy(model, read(path), flags.head)
      print(f'{scores[path.stem]:7.1%}  {path.stem}', flush=True)
    mean = float(np.mean(list(scores.values())))
    print(f'{mean:7.1%}  mean of {len(scores)}, by {flags.head}')
    if flags.output:
      result = {'head': flags.head, 'mean': mean, 'accuracy': scores}
      pathlib.Path(flags.output).write_text(json.dumps(result, indent=2) + '\n')
    return 0
  except UserError as error:
    print(f'error: {error}', file=sys.stderr)
    return 2


if __name__ == '__main__':
  sys.exit(main())
