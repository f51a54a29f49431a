# SPDX-License-Identifier: Apache-2.0
"""A recipe with a frozen auxiliary, small enough to corrupt with in a test."""

import json
import pathlib

import numpy as np
import pretrain_models

from metro_jax import data, models, modules, offline, pretrain
from metro_jax.data import vocabulary_training
from metro_jax.models import PretrainingModel
from metro_jax.training import partial

LENGTH, BATCH, STEPS, VOCAB = 16, 16, 40, 160
EPOCHS, SEED = 3, 5  # As many epochs as 40 steps are.
WORDS = 'the cat sat on a mat and the dog ran to the park by the old red house'


def write_text(folder: pathlib.Path, documents: int = 150) -> pathlib.Path:
  """A file of documents of several lengths."""
  rng = np.random.default_rng(0)
  words = WORDS.split()
  texts = [
    ' '.join(rng.choice(words, rng.integers(3, 30))) for _ in range(documents)
  ]
  path = folder / 'corpus.txt'
  path.write_text('\n'.join(texts))
  return path


def datasets(folder: pathlib.Path, **options) -> dict[str, data.TokenDataset]:
  """Both splits of the text, with a vocabulary of their own."""
  path = folder / 'vocabulary.model'
  text = folder / 'corpus.txt'
  if not path.exists():
    write_text(folder)
    vocabulary_training.train(text.read_text().split('\n'), path, size=VOCAB)
  source = data.TextFiles(str(text), document='line', validation_fraction=0.1)
  defaults = dict(
    length=LENGTH,
    batch_size=BATCH,
    vocabulary=str(path),
    data_dir=str(folder / 'data'),
    seed=3,
  )
  return {
    split: data.TokenDataset(
      source, split, shuffle=split == 'train', **(defaults | options)
    )
    for split in ('train', 'validation')
  }


def config() -> modules.TransformerConfig:
  return pretrain_models.config(vocab_size=VOCAB)


def online(**changes) -> PretrainingModel:
  """Fast-ELECTRA, with nothing random but the corruption."""
  defaults = dict(
    config=config(),
    main=modules.Encoder(config()),
    auxiliary=pretrain.Auxiliary(config(), augmentation=pretrain.Temperature()),
    objectives=(pretrain.RTD(), pretrain.CorrectiveLM()),
    share=(),
    dropout_rate=0.0,
    max_predictions=data.max_predictions(LENGTH, 0.15),
  )
  return models.PretrainingModel(
    pretrain.Pretrainer(**(defaults | changes)), curriculum_steps=STEPS
  )


def write(place, text, name, **options) -> pathlib.Path:
  """Corrupts; files are of 48 rows, three batches each."""
  defaults = dict(
    model=online(),
    stream_dir=str(place / name),
    train_dataset=text['train'],
    eval_datasets={'validation': text['validation']},
    train_steps=STEPS,
    partial_checkpoint=partial.PartialCheckpoint(
      str(place / 'auxiliary'),
      ('auxiliary/.*',),
      pretrain.auxiliary_source,
    ),
    random_seed=SEED,
    shard_rows=48,
  )
  offline.corrupt(**(defaults | options))
  return place / name


def tree(path: pathlib.Path) -> dict[str, bytes]:
  return {
    str(p.relative_to(path)): p.read_bytes()
    for p in sorted(path.rglob('*'))
    if p.is_file()
  }


def manifest_of(path: pathlib.Path, split: str = 'train') -> dict:
  return json.loads((path / split / 'manifest.json').read_text())


def opened(path: pathlib.Path, split: str = 'train', **options):
  options = dict(batch_size=BATCH, seed=3) | options
  return data.CorruptedStream(str(path), split, **options)
