# SPDX-License-Identifier: Apache-2.0
"""Tokens a second and core from text to training batches, several ways.

  python -m benchmarks.input_pipeline [--length 512] [--seconds 4]

  cached      TokenDataset.batch: memory map -> masked batches
  raw         a text file -> token cache -> an epoch of masked batches
  tokenise    of that, only text -> tokens
  seqio       the registered task, online, with SeqIO's stock converter
  peer        Hugging Face: a text file -> tokenizers -> chunks -> transformers'
              DataCollatorForLanguageModeling; the same vocabulary

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
import tempfile
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


def raw(
  vocabulary: data.Vocabulary, path: pathlib.Path, length: int, batch_size: int
) -> Iterator[int]:
  """Tokens of whole passes: nothing but the vocabulary is there before."""
  while True:
    fresh = data.Vocabulary(vocabulary.path)  # No word is known yet.
    with tempfile.TemporaryDirectory() as folder:
      dataset = data.TokenDataset(
        data.TextFiles(str(path), document='json', validation_fraction=0.0),
        length=length,
        batch_size=batch_size,
        vocabulary=fresh,
        data_dir=folder,
      )
      for step in range(dataset.steps_per_epoch):
        dataset.batch(step)
      yield len(dataset.cache.tokens)


def peer(
  vocabulary: data.Vocabulary, path: pathlib.Path, length: int, batch_size: int
) -> Iterator[int]:
  """Tokens of whole passes of `tokenizers` and a collator of `transformers`."""
  import transformers

  from metro_jax.conversion import tokenizer_files

  with tempfile.TemporaryDirectory() as folder:
    tokenizer_files.write(pathlib.Path(folder), vocabulary, None)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
  collate = transformers.DataCollatorForLanguageModeling(
    tokenizer, mlm_probability=0.15, return_tensors='np'
  )
  inner = length - 2
  while True:
    count, rows = 0, []
    with path.open() as lines:
      for texts in token_cache.batched(json.loads(x)['text'] for x in lines):
        coded = tokenizer(texts, add_special_tokens=False)['input_ids']
        count += sum(map(len, coded))
        for ids in coded:
          for start in range(0, len(ids), inner):
            row = [2, *ids[start : start + inner], 3]
            rows.append({'input_ids': row})
        while len(rows) >= batch_size:
          collate(rows[:batch_size])
          del rows[:batch_size]
    yield count


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
  os.environ['TOKENIZERS_PARALLELISM'] = 'false'
  texts = list(data.Docstrings(files.data_dir()).documents('train'))
  temporary = tempfile.TemporaryDirectory()
  path = pathlib.Path(temporary.name) / 'text.jsonl'
  with path.open('w') as file:
    file.writelines(json.dumps({'text': x}) + '\n' for x in texts)
  from_text = (plain.vocabulary, path, flags.length, flags.batch_size)
  ways: dict[str, Callable[[], Iterator[int]]] = {
    'cached': lambda: cached(plain),
    'cached, packed': lambda: cached(packed),
    'raw': lambda: raw(*from_text),
    'tokenise': lambda: tokenised(plain.vocabulary, texts),
    'seqio': lambda: seqio_online(flags.length, flags.batch_size),
    'peer': lambda: peer(*from_text),
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
  for a, b in (('raw', 'peer'), ('cached', 'raw')):
    ratios = [x / y for x, y in zip(found[a], found[b], strict=True)]
    print(f'{a} over {b}: {statistics.median(ratios):.1f}')
  if flags.json:
    flags.json.write_text(json.dumps(vars(flags) | found, default=str))


if __name__ == '__main__':
  main()
