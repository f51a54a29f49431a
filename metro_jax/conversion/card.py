# SPDX-License-Identifier: Apache-2.0
"""The README.md of an exported folder."""

import pathlib

from metro_jax import __version__
from metro_jax.conversion.model_dirs import Trained


def _classifier(kind: str) -> str:
  return (
    f'from transformers import AutoTokenizer, {kind}ForSequenceClassification'
    "\n\ntokenizer = AutoTokenizer.from_pretrained('.')\n"
    f"model = {kind}ForSequenceClassification.from_pretrained('.')"
  )


_LOADERS = {
  'electra_classifier': _classifier('Electra'),
  'bert_classifier': _classifier('Bert'),
  'electra': (
    'from transformers import AutoTokenizer, ElectraForPreTraining\n\n'
    "tokenizer = AutoTokenizer.from_pretrained('.')\n"
    "model = ElectraForPreTraining.from_pretrained('.')"
  ),
  'bert': (
    'from transformers import AutoTokenizer, BertForMaskedLM\n\n'
    "tokenizer = AutoTokenizer.from_pretrained('.')\n"
    "model = BertForMaskedLM.from_pretrained('.')"
  ),
  't5': (
    'from transformers import AutoTokenizer, T5ForConditionalGeneration\n\n'
    "tokenizer = AutoTokenizer.from_pretrained('.')\n"
    "model = T5ForConditionalGeneration.from_pretrained('.')"
  ),
  'native': (
    'from metro_jax.conversion import native\n\n'
    "model = native.load('.')\n"
    "model.encode(['Some text.'])[0].hidden"
  ),
}


def write(
  folder: pathlib.Path, format_: str, trained: Trained, folders: list[str]
) -> None:
  """Writes README.md.

  Args:
    folder: of the model.
    format_: the format it is written in.
    trained: what has been written.
    folders: names of the folders that were written, '' for this one.
  """
  library = 'metro_jax' if format_ == 'native' else 'transformers'
  tokens = 'none' if trained.vocabulary is None else 'tokenizer.json'
  count = sum(x.size for x in trained.params.values())
  parts = [name for name in folders if name]
  also = f'\nThe auxiliary is in `{parts[0]}/`.\n' if parts else ''
  text = f"""---
library_name: {library}
tags: [metro_jax, {format_}]
---

# A model of metro_jax {__version__}

| | |
|---|---|
| written as | {format_} |
| parameters | {count:,} |
| training steps | {trained.step:,} |
| vocabulary | {tokens}, {trained.model.vocab_size:,} ids |

## Use

```python
{_LOADERS[format_]}
```
{also}
## To be filled in by its author

Recipe and data, what it is meant for, scores and seeds, licence, limits.
"""
  (folder / 'README.md').write_text(text)
