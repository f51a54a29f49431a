# SPDX-License-Identifier: Apache-2.0
"""Linear probes on frozen layers: what a depth knows.

  python -m metro_jax.probe --model_dir=runs/base --train=pos/train.jsonl \\
    --test=pos/test.jsonl --part=auxiliary --layers=1,2,3,4

Data are in the edge-probing layout: each line an object with `text`, words
parted by spaces, and `targets`, each with `span1` (and `span2`) as [first word,
word after the last] and `label`. A span is the mean of its tokens' hidden
states; two spans are put side by side; a logistic regression (scikit-learn) on
standardised features tells the label. Reported are accuracy and macro F1.
"""

import argparse
import functools
import json
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from metro_jax import inference, inference_text
from metro_jax.data import vocabularies
from metro_jax.downstream import metrics, tables
from metro_jax.errors import UserError
from metro_jax.models import prediction
from metro_jax.pretrain import MaskedTokens

PARTS = ('main', 'auxiliary')
_BUCKET = 16


def hidden_states(
  model: inference.PretrainedModel,
  ids: Sequence[Sequence[int]],
  part: str,
  layer: int,
) -> list[np.ndarray]:
  """What a layer makes of each text, float32 [tokens, width].

  Args:
    model: of `inference.load`.
    ids: token ids of each text, specials left out.
    part: 'main' or 'auxiliary'.
    layer: 1 is the first above the embeddings.
  """
  pretrainer = model.model.pretrainer
  owner = pretrainer.main if part == 'main' else pretrainer.auxiliary
  config = getattr(owner, 'config', None)
  if part not in PARTS or config is None:
    raise UserError(f'--part={part}: the model has none; give one of {PARTS}')
  if not 1 <= layer <= config.num_layers:
    raise UserError(
      f'--layers: {layer} is not one of the {config.num_layers} layers of the'
      f' {part} model'
    )
  if config.scan_layers:
    raise UserError('SCAN_LAYERS: layers under scan cannot be told apart')
  run = jax.jit(
    functools.partial(_capture, pretrainer, part=part, layer=layer - 1)
  )
  out: list[np.ndarray] = []
  for start in range(0, len(ids), model.batch_size):
    chunk = ids[start : start + model.batch_size]
    longest = max(map(len, chunk)) + 2
    length = min(-(-longest // _BUCKET) * _BUCKET, model.max_length)
    rows = np.zeros((model.batch_size, length), np.int32)
    for row, tokens in zip(rows, chunk, strict=False):
      whole = [vocabularies.CLS, *tokens, vocabularies.SEP]
      row[: len(whole)] = whole
    found = np.asarray(run(model.params, rows), np.float32)
    out += [h[1 : 1 + len(t)] for h, t in zip(found, chunk, strict=False)]
  return out


def _capture(
  pretrainer: Any, params: Any, rows: jax.Array, *, part: str, layer: int
) -> jax.Array:
  """Output of one block; nothing in the models knows of it."""

  def auxiliary(pretrainer, batch):
    return pretrainer.propose(MaskedTokens.from_batch(batch))

  def wanted(module, method):
    path = module.path
    of_decoder = 'decoder' in path
    here = path[:1] == (part,) and path[-1:] == (f'layers_{layer}',)
    return method == '__call__' and here and not of_decoder

  _, state = pretrainer.apply(
    {'params': params},
    {'encoder_input_tokens': rows},
    method=prediction.encode if part == 'main' else auxiliary,
    capture_intermediates=wanted,
    mutable=['intermediates'],
  )
  (found,) = jax.tree.leaves(state['intermediates'])
  return found


def read(path: pathlib.Path) -> list[dict[str, Any]]:
  """Records of a file, checked."""
  records = []
  for line, row in tables.jsonl(path, ('text', 'targets')):
    words = row['text'].split(' ')
    for target in row['targets']:
      spans = [target[name] for name in ('span1', 'span2') if name in target]
      good = spans and all(0 <= a < b <= len(words) for a, b in spans)
      if not good or 'label' not in target:
        raise UserError(
          f'{path}, line {line}: {target} needs span1 within {len(words)}'
          ' words, and label'
        )
    records.append(row)
  if not any(record['targets'] for record in records):
    raise UserError(f'{path} has no targets')
  return records


def features(
  model: inference.PretrainedModel,
  records: Sequence[dict[str, Any]],
  part: str,
  layer: int,
) -> tuple[np.ndarray, list[str]]:
  """Features float32 [targets, width or 2 width], and labels."""
  tokenize = inference_text.Tokenizer(model.vocabulary)
  tokens = [tokenize(record['text']) for record in records]
  inference_text.windows(
    [len(t) for t in tokens], model.max_length - 2, 'error'
  )
  ids = [[token.id for token in each] for each in tokens]
  rows, labels = [], []
  for record, each, h in zip(
    records, tokens, hidden_states(model, ids, part, layer), strict=True
  ):
    ends = np.cumsum([len(word) + 1 for word in record['text'].split(' ')])
    starts = np.concatenate([[0], ends[:-1]])
    for target in record['targets']:
      spans = [target[name] for name in ('span1', 'span2') if name in target]
      parts = [
        _mean(h, each, starts[first], ends[after - 1] - 1)
        for first, after in spans
      ]
      rows.append(np.concatenate(parts))
      labels.append(str(target['label']))
  return np.stack(rows), labels


def _mean(h: np.ndarray, tokens, start: int, end: int) -> np.ndarray:
  """Mean of the tokens that touch the characters start..end."""
  inside = [n for n, t in enumerate(tokens) if t.start < end and t.end > start]
  return h[inside].mean(axis=0) if inside else np.zeros(h.shape[1], h.dtype)


def probe(
  train: tuple[np.ndarray, Sequence[str]],
  test: tuple[np.ndarray, Sequence[str]],
) -> dict[str, float]:
  """Accuracy and macro F1 of a linear probe on (features, labels)."""
  from sklearn import linear_model, pipeline, preprocessing

  if len(set(train[1])) < 2:
    raise UserError('--train: all labels are the same; a probe needs two')
  classifier = pipeline.make_pipeline(
    preprocessing.StandardScaler(),
    linear_model.LogisticRegression(max_iter=1000),
  )
  classifier.fit(*train)
  said = classifier.predict(test[0]).tolist()
  return metrics.compute(('accuracy', 'macro_f1'), test[1], said)


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the command line and returns the exit code."""
  parser = argparse.ArgumentParser(
    prog='python -m metro_jax.probe',
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  parser.add_argument('--model_dir', required=True, help='a pretraining run')
  parser.add_argument('--train', required=True, help='JSON lines')
  parser.add_argument('--test', required=True, help='JSON lines')
  parser.add_argument('--part', default='main', help=', '.join(PARTS))
  parser.add_argument('--layers', default='1', help='1,2,3: from the input')
  parser.add_argument('--step', type=int, help='an older checkpoint')
  parser.add_argument('--output', help='where to write the scores as JSON')
  flags = parser.parse_args(argv)
  try:
    data = [read(pathlib.Path(path)) for path in (flags.train, flags.test)]
    model = inference.load(flags.model_dir, flags.step)
    scores = {}
    for layer in map(int, flags.layers.split(',')):
      train, test = (features(model, x, flags.part, layer) for x in data)
      found = scores[layer] = probe(train, test)
      print(
        f'{flags.part} layer {layer}: accuracy {found["accuracy"]:.1%}, macro'
        f' F1 {found["macro_f1"]:.1%}',
        flush=True,
      )
    if flags.output:
      text = json.dumps({'part': flags.part, 'layers': scores}, indent=2)
      pathlib.Path(flags.output).write_text(text + '\n')
    return 0
  except UserError as error:
    print(f'error: {error}', file=sys.stderr)
    return 2


if __name__ == '__main__':
  sys.exit(main())
