# SPDX-License-Identifier: Apache-2.0
"""T0's mixtures of datasets put by templates, and its evaluation.

Sanh et al., 2022, as METRO-T5 uses them. A folder holds rendered examples, one
folder for each dataset and template with the name that P3 gives it:
`super_glue_rte_must_be_true/validation.jsonl`, and for the rounds of ANLI
`anli_GPT_3_style_r1/validation.jsonl`. `metro_jax.render` makes such folders.
"""

import dataclasses
import functools
import json
import os
import pathlib
import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from metro_jax.downstream import tables, text
from metro_jax.downstream.records import Task
from metro_jax.errors import UserError

# What T0 is trained on.
BASE = (
  *('glue_mrpc', 'glue_qqp', 'paws_labeled_final', 'kilt_tasks_hotpotqa'),
  *('wiki_qa', 'adversarial_qa_dbidaf', 'adversarial_qa_dbert'),
  *('adversarial_qa_droberta', 'duorc_SelfRC', 'duorc_ParaphraseRC', 'ropes'),
  *('quoref', 'cos_e_v1.11', 'cosmos_qa', 'dream', 'qasc', 'quail', 'quarel'),
  *('quartz', 'sciq', 'social_i_qa', 'wiki_hop_original', 'wiqa'),
  *('amazon_polarity', 'app_reviews', 'imdb', 'rotten_tomatoes'),
  *('yelp_review_full', 'common_gen', 'wiki_bio', 'cnn_dailymail_3.0.0'),
  *('gigaword', 'multi_news', 'samsum', 'xsum', 'ag_news', 'dbpedia_14'),
  'trec',
)
# What T0+ adds: datasets that GPT-3 was evaluated on.
PLUS = (
  *('ai2_arc_ARC_Challenge', 'ai2_arc_ARC_Easy', 'trivia_qa_unfiltered'),
  *('web_questions', 'squad_v2', 'openbookqa_main', 'race_high'),
  *('race_middle', 'piqa', 'hellaswag'),
)
# What T0++ adds: SuperGLUE without its entailments.
SUPERGLUE = (
  *('super_glue_wsc.fixed', 'super_glue_record', 'super_glue_boolq'),
  *('super_glue_copa', 'super_glue_multirc', 'super_glue_wic'),
)
# What is never trained on, but for what T0+ and T0++ take of it.
EVALUATION = (
  *('super_glue_rte', 'super_glue_cb', 'anli_r1', 'anli_r2', 'anli_r3'),
  *('super_glue_wsc.fixed', 'winogrande_winogrande_xl', 'super_glue_copa'),
  *('story_cloze_2016', 'hellaswag', 'super_glue_wic'),
)
_FIELDS = ('inputs_pretokenized', 'targets_pretokenized')


@dataclasses.dataclass(frozen=True)
class Mixture(Task):
  """Datasets, each put by all templates that the folder has for it.

  Attributes:
    datasets: those of each split.
    cap: examples of a dataset in an epoch; its templates share them.
  """

  datasets: Mapping[str, tuple[str, ...]] = dataclasses.field(
    default_factory=dict
  )
  cap: int = 500_000

  def in_folder(self, folder: str | os.PathLike) -> 'Mixture':
    """With the files that the folder has.

    Raises:
      UserError: if it has no template of a dataset.
    """
    root = pathlib.Path(folder).expanduser()
    if not root.is_dir():
      raise UserError(f'TASK_DIR: {root} is not a folder')
    names = sorted(path.name for path in root.iterdir())
    splits = {}
    for split, datasets in self.datasets.items():
      files = {
        dataset: [
          f'{name}/{split}.jsonl'
          for name in names
          if belongs(name, dataset)
          and (root / name / f'{split}.jsonl').is_file()
        ]
        for dataset in datasets
      }
      missing = [dataset for dataset in datasets if not files[dataset]]
      if missing:
        raise UserError(
          f'{self.name}: {root} has no {split} examples of'
          f' {", ".join(missing)}; render them into {missing[0]}_TEMPLATE/'
          f'{split}.jsonl, or name others with TASK = @downstream.t0_mixture()'
        )
      splits[split] = tuple(name for d in datasets for name in files[d])
    return dataclasses.replace(self, splits=splits)


def t0_mixture(
  train: Sequence[str] = BASE,
  validation: Sequence[str] | None = None,
  cap: int = 500_000,
  name: str = 't0',
) -> Mixture:
  """Datasets to train on, each with all its templates, and to evaluate on.

  Args:
    train: names as `glue_mrpc`; their folders are `glue_mrpc_TEMPLATE`.
    validation: likewise; None for T0's evaluation, less what is trained on.
    cap: examples of a dataset in an epoch; its templates share them.
    name: what results call the task.

  Returns:
    The task.
  """
  if validation is None:
    validation = [dataset for dataset in EVALUATION if dataset not in train]
  datasets = {'train': tuple(train), 'validation': tuple(validation)}
  datasets = {split: names for split, names in datasets.items() if names}
  return Mixture(
    name,
    'rank',
    {},
    _read,
    ('accuracy', 'median'),
    score=functools.partial(score, datasets=datasets.get('validation', ())),
    datasets=datasets,
    cap=cap,
  )


def score(
  records: Sequence[text.TextPair],
  predictions: Sequence[str],
  *,
  datasets: Sequence[str],
) -> dict[str, float]:
  """Accuracy of each template; mean and median over those of a dataset.

  `accuracy` is the mean over datasets of the means (METRO-T5's Table 3),
  `median` that of the medians, which T0's authors report for each dataset.
  """
  right: dict[str, list[bool]] = {}
  for record, said in zip(records, predictions, strict=True):
    template = record.id.split('/')[0]
    right.setdefault(template, []).append(said == record.target)
  scores = {f'template/{n}': float(np.mean(x)) for n, x in right.items()}
  means, medians = {}, {}
  for dataset in datasets:
    found = [
      scores[f'template/{name}'] for name in right if belongs(name, dataset)
    ]
    means[f'{dataset}/accuracy'] = statistics.fmean(found)
    medians[f'{dataset}/median'] = statistics.median(found)
  return {
    'accuracy': statistics.fmean(means.values()),
    'median': statistics.fmean(medians.values()),
    **means,
    **medians,
    **scores,
  }


def belongs(name: str, dataset: str) -> bool:
  """Whether a folder holds a template of a dataset; rounds of ANLI end it."""
  head, _, last = dataset.rpartition('_')
  if head == 'anli':
    return name.startswith('anli_') and name.endswith(f'_{last}')
  return name.startswith(f'{dataset}_')


def _read(path: pathlib.Path, split: str) -> Iterator[text.TextPair]:
  found = tables.lines(path)
  if not found:
    raise UserError(f'{path} is empty')
  for number, line in enumerate(found, 1):
    pair = pair_of(path, number, line)
    if split != 'train' and pair.target not in pair.choices:
      raise UserError(
        f'{path}, line {number}: {pair.target!r} is none of answer_choices'
        f' {list(pair.choices)}'
      )
    yield pair


def pair_of(
  path: pathlib.Path, number: int, line: str | bytes
) -> text.TextPair:
  """A line of a file; P3's texts have white space at their ends."""
  try:
    row: Any = json.loads(line)
    source, target = (row[field].strip() for field in _FIELDS)
    choices = tuple(
      choice.strip() for choice in row.get('answer_choices') or ()
    )
  except tables.OTHER_LAYOUT as error:
    raise UserError(
      f'{path}, line {number}: not an object with the texts'
      f' {" and ".join(_FIELDS)}: {error!r}'
    ) from None
  return text.TextPair(
    f'{path.parent.name}/{number}', source, target, (target,), choices
  )


TASKS = (
  t0_mixture(name='t0_train'),
  t0_mixture((*BASE, *PLUS), name='t0p_train'),
  t0_mixture((*BASE, *PLUS, *SUPERGLUE), name='t0pp_train'),
  t0_mixture((), EVALUATION, name='t0_eval'),
)
