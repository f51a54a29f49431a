# SPDX-License-Identifier: Apache-2.0
"""Writes one HTML page about a run: alarms, what was refused, curves.

  python -m metro_jax.report runs/tiny

The page is one file that needs no other, no network and no scripts. It reads
MODEL_DIR/train/*.jsonl, MODEL_DIR/training_eval/*/metrics.jsonl and
MODEL_DIR/config.gin; the run may still be going on.
"""

import argparse
import dataclasses
import datetime
import html
import io
import json
import os
import pathlib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from metro_jax import health, plot
from metro_jax.data import command_line
from metro_jax.errors import UserError

_EVENTS_SHOWN = 50
_WIDTH, _HEIGHT = 4.6, 2.7  # Inches; the page scales them.


@dataclasses.dataclass(frozen=True)
class Chart:
  """One plot of the page.

  Attributes:
    metrics: names in metrics.jsonl; one that ends in '/*' stands for all that
      start so and that no other chart names.
    title: what it is, in words.
    unit: label of the vertical axis.
    percent: whether the values are fractions to be shown as per cent.
    log: whether the vertical axis is logarithmic.
  """

  metrics: tuple[str, ...]
  title: str
  unit: str
  percent: bool = False
  log: bool = False


SECTIONS = {
  'Losses': (
    Chart(('loss',), 'Loss', 'weighted sum'),
    Chart(('loss/mlm', 'loss/clm', 'loss/lm'), 'MLM, CLM, LM', 'nats'),
    Chart(('loss/rtd',), 'RTD', 'nats per token'),
    Chart(('loss/*',), 'Other parts', 'nats'),
    Chart(('main_over_auxiliary/rtd',), 'RTD over MLM loss', 'ratio'),
    Chart(('main_over_auxiliary/clm',), 'CLM over MLM loss', 'ratio'),
  ),
  'Replaced token detection': (
    Chart(('replace_rate',), 'Replace rate', 'of all tokens', True),
    Chart(
      ('replace_accuracy', 'rtd_precision'),
      'Replaced tokens found, and found rightly',
      'recall, precision',
      True,
    ),
    Chart(('rtd_auc',), 'Area under ROC', '0.5 is chance'),
  ),
  'Auxiliary': (
    Chart(('auxiliary_accuracy',), 'Accuracy', 'of masked tokens', True),
    Chart(('auxiliary_entropy',), 'Entropy of its proposals', 'nats'),
    Chart(('mixture/*',), 'Mixture of its heads', 'weight', True),
    Chart(('curriculum/*',), 'Curriculum', 'gamma'),
  ),
  'Stability': (
    Chart(('grad_norm', 'grad_norm/*'), 'Gradient norm', 'L2', log=True),
    Chart(('update_ratio/*',), 'Update over weight', 'norms', log=True),
    Chart(('refused_steps',), 'Steps refused', 'of all steps', True),
    Chart(('learning_rate',), 'Learning rate', ''),
    Chart(('param_norm',), 'Parameter norm', 'L2'),
    Chart(('timing/tokens_per_second',), 'Speed', 'tokens per second'),
  ),
}


def page(model_dir: str | os.PathLike) -> str:
  """The page about a MODEL_DIR.

  Raises:
    UserError: if it holds no metrics.
  """
  folder = pathlib.Path(model_dir).expanduser()
  run = _with_ratios(plot.load_run(folder))
  lines = _read(folder / 'train' / 'metrics.jsonl')
  config = folder / 'config.gin'
  text = config.read_text(errors='replace') if config.is_file() else ''
  planned = re.search(r'^TRAIN_STEPS = (\d+)', text, re.MULTILINE)
  steps = lines[-1]['step']
  total = int(planned.group(1)) if planned else steps
  findings = health.findings(lines, total)
  events = _read(folder / 'train' / 'events.jsonl')
  body = [
    f'<h1>{html.escape(run.name)}</h1>',
    f'<p class="sub">{html.escape(str(folder.resolve()))} &middot; step'
    f' {steps:,} of {total:,} &middot; page of'
    f' {datetime.datetime.now():%Y-%m-%d %H:%M}</p>',
    _alarms(findings),
    _events(events),
    _numbers(run),
    *_sections(run, findings),
  ]
  if text:
    body.append(
      '<h2>Configuration</h2><details><summary>config.gin</summary>'
      f'<pre>{html.escape(text)}</pre></details>'
    )
  return _PAGE.format(title=html.escape(run.name), body='\n'.join(body))


def _read(path: pathlib.Path) -> list[dict[str, Any]]:
  """The whole lines of a file that may be absent or still growing."""
  lines = []
  if path.is_file():
    for text in path.read_text(errors='replace').splitlines():
      try:
        line = json.loads(text)
      except ValueError:
        continue
      if isinstance(line, dict) and isinstance(line.get('step'), int):
        lines.append(line)
  return lines


def _with_ratios(run: plot.Run) -> plot.Run:
  """Adds the loss of each main objective over the auxiliary's."""
  train = dict(run.train)
  steps, auxiliary = train.get('loss/mlm', ([], []))
  by_step = dict(zip(steps, auxiliary, strict=True))
  for name in [n for n in train if n.startswith('loss/') and by_step]:
    if name != 'loss/mlm':
      pairs = [
        (step, value / by_step[step])
        for step, value in zip(*train[name], strict=True)
        if by_step.get(step)
      ]
      ratio = ([s for s, _ in pairs], [v for _, v in pairs])
      train[f'main_over_auxiliary/{name.removeprefix("loss/")}'] = ratio
  return dataclasses.replace(run, train=train)


# ----------------------------------------------------------------------
# Words.
# ----------------------------------------------------------------------


def _alarms(findings: Sequence[health.Finding]) -> str:
  if not findings:
    return '<p class="calm">No alarms.</p>'
  items = ''.join(
    f'<li><b>{html.escape(f.name)}</b> <span class="sub">step {f.step:,}</span>'
    f'<br>{html.escape(_sentence(f.words))}<br>'
    f'<i>{html.escape(_sentence(f.advice))}</i></li>'
    for f in findings
  )
  return f'<h2>Alarms</h2><ul class="alarms">{items}</ul>'


def _sentence(text: str) -> str:
  return f'{text[:1].upper()}{text[1:]}.'


def _events(events: Sequence[Mapping[str, Any]]) -> str:
  if not events:
    return ''
  refused = sum(event.get('event') == 'refused' for event in events)
  rollbacks = sum(event.get('event') == 'rollback' for event in events)
  rows = [
    (f'{event["step"]:,}', _what(event)) for event in events[-_EVENTS_SHOWN:]
  ]
  more = len(events) - len(rows)
  note = f', the last {len(rows)} of them below' if more else ''
  return (
    f'<h2>What the guard did</h2><p>{refused} steps refused, {rollbacks}'
    f' rollbacks{note}. events.jsonl in the same folder names the examples.'
    f'</p>{_table(("step", "event"), rows)}'
  )


def _what(event: Mapping[str, Any]) -> str:
  if event.get('event') == 'rollback':
    return (
      f'went back to checkpoint_{event.get("to")}, reading on at batch'
      f' {event.get("next_batch")}'
    )
  return (
    f'refused: {event.get("reason")} (loss {_number(event.get("loss"))},'
    f' gradient norm {_number(event.get("grad_norm"))})'
  )


def _numbers(run: plot.Run) -> str:
  """The newest value of what matters, of training and of held-out text."""
  sets = {'training': run.train, **run.held_out}
  charts = [chart for section in SECTIONS.values() for chart in section]
  names = _expand([m for chart in charts for m in chart.metrics], run.train)
  last = {name: plot.last_values(series) for name, series in sets.items()}
  rows = [
    (name, *(_number(values.get(name)) for values in last.values()))
    for name in dict.fromkeys(names)
  ]
  return f'<h2>Newest values</h2>{_table(("metric", *sets), rows)}'


def _number(value: Any) -> str:
  return f'{value:,.5g}' if isinstance(value, int | float) else '–'


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
  def row(cells: Sequence[str], tag: str) -> str:
    inside = ''.join(f'<{tag}>{html.escape(c)}</{tag}>' for c in cells)
    return f'<tr>{inside}</tr>'

  body = ''.join(row(cells, 'td') for cells in rows)
  return f'<table>{row(head, "th")}{body}</table>'


# ----------------------------------------------------------------------
# Curves.
# ----------------------------------------------------------------------


def _sections(
  run: plot.Run, findings: Sequence[health.Finding]
) -> Iterable[str]:
  for title, charts in SECTIONS.items():
    drawn = [svg for chart in charts if (svg := draw(chart, run, findings))]
    if drawn:
      figures = ''.join(f'<figure>{svg}</figure>' for svg in drawn)
      yield f'<h2>{title}</h2><div class="grid">{figures}</div>'


def draw(
  chart: Chart,
  run: plot.Run,
  findings: Sequence[health.Finding] = (),
  kind: str = 'svg',
) -> Any:
  """Draws a chart.

  Args:
    chart: what to draw.
    run: whose metrics; lines are training, dots held-out text.
    findings: alarms, which become vertical lines.
    kind: 'svg' for text, 'png' for bytes.

  Returns:
    The image; None if the run has none of the metrics.
  """
  import matplotlib

  matplotlib.use('agg')  # No display needed.
  from matplotlib import pyplot

  names = _expand(chart.metrics, run.train)
  if not names:
    return None
  # Ids of one drawing must not be those of another on the same page.
  with matplotlib.rc_context({'svg.hashsalt': chart.title}):
    figure, axis = pyplot.subplots(figsize=(_WIDTH, _HEIGHT))
    for index, name in enumerate(names):
      colour = plot.COLOURS[index % len(plot.COLOURS)]
      steps, values = run.train[name]
      label = name.split('/', 1)[-1] if '/' in name else name
      marker = 'o' if len(steps) == 1 else ''
      axis.plot(steps, values, color=colour, lw=1.4, label=label, marker=marker)
      for series in run.held_out.values():
        steps, values = series.get(name, ([], []))
        axis.plot(steps, values, 'o', color=colour, ms=4, mfc='white', mew=1.2)
    for finding in findings:
      axis.axvline(finding.step, color='#c62828', lw=1, ls=':')
    panel = plot.Panel(names[0], chart.title, chart.unit, chart.percent)
    plot.dress(axis, panel)
    if chart.log and min(min(run.train[n][1]) for n in names) > 0:
      _log_scale(axis)
    if len(names) > 1:
      axis.legend(frameon=False, fontsize=7.5, ncols=2, labelspacing=0.3)
    figure.tight_layout(pad=0.6)
    image = io.BytesIO()
    figure.savefig(image, format=kind, metadata=_NO_DATE.get(kind), dpi=110)
    pyplot.close(figure)
  if kind != 'svg':
    return image.getvalue()
  text = image.getvalue().decode('utf-8')
  return text[text.index('<svg') :]  # Without the head of a separate file.


def _log_scale(axis: Any) -> None:
  """With 0.1, 0.2, 0.5, 1, ... in plain figures."""
  from matplotlib import ticker

  axis.set_yscale('log')
  axis.yaxis.set_major_locator(ticker.LogLocator(subs=(1.0, 2.0, 5.0)))
  axis.yaxis.set_major_formatter(lambda value, _: f'{value:g}')
  axis.yaxis.set_minor_locator(ticker.NullLocator())


_NO_DATE = {'svg': {'Date': None}}


def _expand(patterns: Iterable[str], series: plot.Series) -> list[str]:
  charts = [chart for section in SECTIONS.values() for chart in section]
  named = {name for chart in charts for name in chart.metrics}
  names = []
  for pattern in patterns:
    if pattern.endswith('/*'):
      rest = sorted({*series} - named)
      names += [n for n in rest if n.startswith(pattern[:-1])]
    elif pattern in series:
      names.append(pattern)
  return names


_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 1240px;
  margin: 2rem auto; padding: 0 1rem; }}
h1 {{ margin: 0; font-size: 1.6rem; }}
h2 {{ margin: 2rem 0 .6rem; font-size: 1.15rem;
  border-bottom: 1px solid #ddd; }}
.sub {{ color: #777; }}
.calm {{ color: #1b6e3c; font-weight: 600; }}
.alarms li {{ margin: .5rem 0; padding: .5rem .8rem; list-style: none;
  border-left: 4px solid #c62828; background: #fdf3f2; }}
.alarms {{ padding: 0; }}
.grid {{ display: grid; gap: 1rem;
  grid-template-columns: repeat(auto-fill, minmax(340px, 1fr)); }}
figure {{ margin: 0; }}
figure svg {{ width: 100%; height: auto; }}
table {{ border-collapse: collapse; font-size: 13px; }}
th, td {{ text-align: right; padding: .15rem .8rem .15rem 0;
  border-bottom: 1px solid #eee; font-variant-numeric: tabular-nums; }}
th:first-child, td:first-child {{ text-align: left; }}
td:last-child {{ padding-right: 0; }}
pre {{ font-size: 12px; background: #f7f7f7; padding: 1rem; overflow: auto; }}
</style>
</head>
<body>
{body}
</body>
</html>
"""


def main(argv: list[str]) -> None:
  """Writes the page of the run named on the command line."""
  parser = argparse.ArgumentParser(
    prog='python -m metro_jax.report',
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
    allow_abbrev=False,
  )
  parser.add_argument('model_dir', metavar='MODEL_DIR')
  parser.add_argument(
    '--output',
    metavar='FILE',
    help='page to write; default: report.html in the MODEL_DIR',
  )
  flags = parser.parse_args(argv)
  text = page(flags.model_dir)
  default = pathlib.Path(flags.model_dir).expanduser() / 'report.html'
  output = pathlib.Path(flags.output or default).expanduser()
  try:
    output.write_text(text, encoding='utf-8')
  except OSError as error:
    raise UserError(f'--output={output}: {error.strerror}') from error
  print(output)


if __name__ == '__main__':
  command_line.run(main)
