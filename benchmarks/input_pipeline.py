# SPDX-License-Identifier: Apache-2.0
"""Tokens a second and core from text to training batches, three ways.

  python benchmarks/input_pipeline.py [--length 512] [--seconds 4]

  cached      TokenDataset.batch: memory map -> masked batches
  tokenise    text -> token cache, a batch of documents at a time
  seqio       the registered task, online, with SeqIO's stock converter

Ways are measured in turn (A B C A B C ...) in one run, on the embedded corpus;
the table has medians and spread. Tokens are those of the text: [CLS], [SEP]
and padding do not count. Seconds are those of the processor, over all
threads, so the rates are for one core whatever else the machine is doing.
"""

import argparse
import importlib
import json
import os
import pathlib
import platform
import statistics
import time
from collections.abc import Callable, Iterator

import numpy as np

from metro_jax import data
from metro_jax.data import files, sources, token_cache


def rate(steps: Iterator[int], seconds: float) -> float:
  """Tokens a second and core of token counts, after the first of them."""
  next(steps)
  start, tokens = time.process_time(), 0
  while time.process_time() - start < seconds:
    tokens += next(steps)
  return tokens / (time.process_time() - start)


def cached(dataset: data.TokenDataset) -> Iterator[int]:
  """Tokens of successive batches."""
  step = 0
  while True:
    batch = dataset.batch(step)
    # Counted from the index, so that counting takes no time from the batch.
    del batch
    _, index = dataset.examples(step)
    rows = dataset.rows
    if rows.bounds is None:
      yield int(rows.lengths[index].sum())
    else:
      spans = zip(rows.bounds[index], rows.bounds[index + 1], strict=True)
      yield sum(int(rows.lengths[a:b].sum()) for a, b in spans)
    step += 1


def tokenised(vocabulary: data.Vocabulary, texts: list[str]) -> Iterator[int]:
  """Tokens of successive groups of documents, as the cache is built."""
  while True:
    fresh = data.Vocabulary(vocabulary.path)  # No word is known yet.
    for group in token_cache.batched(texts):
      yield len(fresh.encode_batch(group)[0])


def seqio_online(length: int, batch_size: int) -> Iterator[int]:
  """Tokens of batches of the registered task."""
  import seqio

  importlib.import_module('tasks')
  lengths = {'inputs': length, 'targets': length}
  examples = seqio.get_dataset(
    sources.EMBEDDED,
    lengths,
    dataset_split='train',
    shuffle=False,
    feature_converter=seqio.EncoderFeatureConverter(mask_id=4, pack=False),
    seed=0,
  )
  for batch in examples.batch(batch_size).as_numpy_iterator():
    yield int(np.count_nonzero(batch['encoder_target_tokens'] > 4))


def main() -> None:
  """Measures and prints a table; --json keeps it."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--length', type=int, default=512)
  parser.add_argument('--batch_size', type=int, default=256)
  parser.add_argument('--seconds', type=float, default=4.0)
  parser.add_argument('--rounds', type=int, default=3)
  parser.add_argument('--json', type=pathlib.Path)
  flags = parser.parse_args()
  options = dict(length=flags.length, batch_size=flags.batch_size)
  plain = data.TokenDataset(sources.EMBEDDED, **options)
  packed = data.TokenDataset(sources.EMBEDDED, packing=True, **options)
  os.environ['METRO_VOCABULARY'] = str(plain.vocabulary.path)
  texts = list(data.Docstrings(files.data_dir()).documents('train'))
  ways: dict[str, Callable[[], Iterator[int]]] = {
    'cached': lambda: cached(plain),
    'cached, packed': lambda: cached(packed),
    'tokenise': lambda: tokenised(plain.vocabulary, texts),
    'seqio': lambda: seqio_online(flags.length, flags.batch_size),
  }
  found: dict[str, list[float]] = {name: [] for name in ways}
  for _ in range(flags.rounds):
    for name, way in ways.items():
      found[name].append(rate(way(), flags.seconds))
  print(
    f'{platform.machine()}, {os.cpu_count()} cores, L={flags.length},'
    f' B={flags.batch_size}, medians of {flags.rounds}'
  )
  for name, rates in found.items():
    low, middle, high = min(rates), statistics.median(rates), max(rates)
    print(
      f'{name:<16}{middle / 1e6:8.2f} M tokens/s a core'
      f'  ({low / 1e6:.2f} to {high / 1e6:.2f})'
    )
  if flags.json:
    flags.json.write_text(json.dumps(vars(flags) | found, default=str))


if __name__ == '__main__':
  main()
