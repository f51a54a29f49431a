# SPDX-License-Identifier: Apache-2.0
"""Puts data by promptsource's templates, as T0's mixtures take them.

  python -m metro_jax.render --templates=templates/super_glue/rte \\
    --input=rte/train.jsonl --split=train --output=/data/t0

Each template makes a folder with the name that P3 gives it,
`super_glue_rte_must_be_true`, with a JSON line for each record. Records are
rows as templates know them: fields by name, classes as numbers (--labels turns
names into numbers). A record that a template makes no target of is left out.
"""

import argparse
import collections
import json
import os
import pathlib
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jinja2
import jinja2.meta
import jinja2.sandbox
import yaml

from metro_jax.data import command_line
from metro_jax.downstream import tables
from metro_jax.errors import UserError

_BAR = '|||'  # Between input and target, and between choices.
_NO_BAR = '\0\0\0'  # Stands for one in the data.


class _Loader(yaml.SafeLoader):
  """Reads promptsource's two tags as mappings; makes nothing else."""


for _tag in ('!Template', '!TemplateMetadata'):
  _Loader.add_constructor(
    _tag, lambda loader, node: loader.construct_mapping(node, deep=True)
  )


class _Jinja(jinja2.sandbox.SandboxedEnvironment):
  """Jinja as promptsource has it; templates are programs of other people.

  Attributes:
    draw: what filters that choose at random draw from.
  """

  def __init__(self) -> None:
    super().__init__()
    self.draw = random.Random()
    self.globals['zip'] = zip
    self.filters |= {
      'choice': lambda items: self.draw.choice(list(items)),
      'random': lambda items: self.draw.choice(list(items)),
      'most_frequent': _most_frequent,
    }


class Template:
  """One way to put a dataset's records.

  Attributes:
    name: of its folder.
    ranked: whether it is a dataset's own task with answer choices, as T0's
      evaluation has them.
    fields: what it reads of a record.
  """

  def __init__(self, path: pathlib.Path, dataset: str, entry: Mapping):
    """Compiles a template.

    Args:
      path: its file, for messages.
      dataset: with its subset.
      entry: of the file.
    """
    self._jinja = _Jinja()
    choices = entry.get('answer_choices')
    task = bool((entry.get('metadata') or {}).get('original_task'))
    self.name = re.sub(r'[^\w.]+', '_', f'{dataset}_{entry["name"]}')
    self.ranked = bool(task and choices)
    self._where = f'{path}: {entry["name"]!r}'
    try:
      trees = [
        self._jinja.parse(part or '') for part in (entry['jinja'], choices)
      ]
      self._text = self._jinja.from_string(entry['jinja'])
      self._choices = self._jinja.from_string(choices) if choices else None
    except jinja2.TemplateError as error:
      raise UserError(f'{self._where}: {error}') from None
    read = set().union(*map(jinja2.meta.find_undeclared_variables, trees))
    self.fields = read - {'answer_choices'} - set(self._jinja.globals)

  def render(self, row: Mapping[str, Any], number: int) -> dict | None:
    """The example that a record makes; None if it makes none.

    Args:
      row: the record.
      number: its place in the file, on which random choices depend.
    """
    self._jinja.draw.seed(f'{self.name}/{number}')
    values = {name: _without_bars(value) for name, value in row.items()}
    try:
      choices = None
      if self._choices is not None:
        choices = _parts(self._choices.render(values))
        values['answer_choices'] = choices
      parts = _parts(self._text.render(values))
    except IndexError:  # Nothing to choose from, as METRO-T0's code has it.
      return None
    except (
      jinja2.TemplateError,
      ArithmeticError,
      *tables.OTHER_LAYOUT,
    ) as error:
      raise UserError(f'{self._where}, record {number}: {error}') from None
    if len(parts) != 2 or not all(parts):
      return None
    example = {
      'inputs_pretokenized': parts[0],
      'targets_pretokenized': parts[1],
    }
    return example | ({'answer_choices': choices} if choices else {})


def load(path: str | os.PathLike) -> list[Template]:
  """The templates of a templates.yaml, or of the folder that it is in."""
  file = pathlib.Path(path).expanduser()
  file = file / 'templates.yaml' if file.is_dir() else file
  try:
    content = yaml.load(file.read_text(encoding='utf-8'), Loader=_Loader)
    dataset = '_'.join(
      str(content[key]) for key in ('dataset', 'subset') if content.get(key)
    )
    entries = list(content['templates'].values())
    return [Template(file, dataset, entry) for entry in entries]
  except OSError as error:
    raise UserError(f'--templates={path}: {error.strerror}') from None
  except (yaml.YAMLError, LookupError, TypeError, AttributeError) as error:
    text = ' '.join(str(error).split())
    raise UserError(f'{file}: no templates of promptsource: {text}') from None


def rows(
  path: pathlib.Path, labels: Sequence[str] = ()
) -> Iterator[tuple[int, dict[str, Any]]]:
  """(line, record) of a file; `label` is its place in `labels`, if given."""
  for line, row in tables.jsonl(path):
    if labels and 'label' in row:
      name = tables.known(path, line, str(row['label']), labels)
      row['label'] = labels.index(name)
    yield line, row


def render(
  templates: Sequence[Template],
  records: Sequence[tuple[int, Mapping[str, Any]]],
  output: pathlib.Path,
  split: str,
  ranked: bool = False,
  suffix: str = '',
) -> dict[str, int]:
  """Writes OUTPUT/TEMPLATE/SPLIT.jsonl for each template.

  Args:
    templates: of `load`.
    records: of `rows`.
    output: TASK_DIR of the mixtures.
    split: 'train' or 'validation'.
    ranked: only what T0's evaluation has: templates of a dataset's own task
      with choices, one of which is the target of each record.
    suffix: of the folders' names.

  Returns:
    Examples written, by folder; 0 where a template was left out.
  """
  counts = {}
  for template in templates:
    name = template.name + suffix
    examples = (
      [] if ranked and not template.ranked else _examples(template, records)
    )
    if ranked:
      examples = [
        e for e in examples if e['targets_pretokenized'] in e['answer_choices']
      ]
      # One that is for some records only is not compared with the others.
      examples = examples if len(examples) == len(records) else []
    counts[name] = len(examples)
    if examples:
      path = output / name / f'{split}.jsonl'
      path.parent.mkdir(parents=True, exist_ok=True)
      lines = [json.dumps(e, ensure_ascii=False) + '\n' for e in examples]
      path.write_text(''.join(lines), encoding='utf-8')
  return counts


def _examples(
  template: Template, records: Sequence[tuple[int, Mapping[str, Any]]]
) -> list[dict]:
  """Those that a template makes, after a look at the records' fields."""
  if records and (missing := template.fields - set(records[0][1])):
    raise UserError(
      f'{template.name}: the template reads {sorted(missing)}, and records have'
      f' {sorted(records[0][1])}'
    )
  made = (template.render(row, line) for line, row in records)
  return [example for example in made if example is not None]


def _parts(text: str) -> list[str]:
  return [part.strip().replace(_NO_BAR, _BAR) for part in text.split(_BAR)]


def _without_bars(value: Any) -> Any:
  if isinstance(value, str):
    return value.replace(_BAR, _NO_BAR)
  if isinstance(value, list):
    return [_without_bars(item) for item in value]
  if isinstance(value, dict):
    return {name: _without_bars(item) for name, item in value.items()}
  return value


def _most_frequent(items: Sequence[Any]) -> list[Any]:
  """Those that are there most often, each once."""
  counts = collections.Counter(items)
  most = max(counts.values(), default=0)
  return [item for item, count in counts.items() if count == most]


def main(argv: list[str]) -> None:
  """Renders what the command line names."""
  parser = argparse.ArgumentParser(
    prog='python -m metro_jax.render',
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
    allow_abbrev=False,
  )
  parser.add_argument('--templates', required=True, help='templates.yaml')
  parser.add_argument('--input', required=True, help='records, JSON lines')
  parser.add_argument('--output', required=True, help='TASK_DIR to be')
  parser.add_argument(
    '--split', default='train', choices=('train', 'validation')
  )
  parser.add_argument(
    '--labels',
    default='',
    help='entailment,contradiction,neutral: classes in the order of their'
    ' numbers, where the input has names',
  )
  parser.add_argument(
    '--ranked', action='store_true', help="what T0's evaluation takes"
  )
  parser.add_argument('--suffix', default='', help='_r1, for rounds of ANLI')
  flags = parser.parse_args(argv)
  labels = [name for name in flags.labels.split(',') if name]
  path = pathlib.Path(flags.input).expanduser()
  if not path.is_file():
    raise UserError(f'--input={flags.input}: no such file')
  records = list(rows(path, labels))
  output = pathlib.Path(flags.output).expanduser()
  counts = render(
    load(flags.templates), records, output, flags.split, flags.ranked,
    flags.suffix,
  )  # fmt: skip
  for name, count in counts.items():
    left = '' if count else '; left out'
    print(f'{name}: {count} of {len(records)} records{left}')


if __name__ == '__main__':
  command_line.run(main)
