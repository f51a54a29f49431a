# SPDX-License-Identifier: Apache-2.0
"""After fine-tuning: predictions, submission files, and the run's result.

`MODEL_DIR/result.json` says how the run ended; `MODEL_DIR/predictions/` holds
what the model says of each record, and the files that benchmarks take.
"""

import json
import math
import pathlib
from collections.abc import Mapping
from typing import Any

import jax

from metro_jax import downstream
from metro_jax.errors import UserError
from metro_jax.models.base import Model
from metro_jax.training import Evaluator, Partitioner, initialization, restore
from metro_jax.training.summaries import FILE, read_jsonl

RESULT = 'result.json'


def columns() -> tuple[tuple[str, str, str], ...]:
  """What a progress line shows after the losses."""
  return tuple((name, name, 'number') for name in downstream.METRIC_NAMES)


def predict(
  *,
  model: Model,
  model_dir: str,
  eval_datasets: Mapping[str, downstream.TaskDataset],
  test_datasets: Mapping[str, downstream.TaskDataset],
  metric: str,
  checkpoint: str = 'best',
  partitioner: Partitioner | None = None,
) -> dict[str, Any]:
  """Predicts with a checkpoint of a finished run, and sums the run up.

  Args:
    model: what was trained.
    model_dir: where.
    eval_datasets: by name; scored.
    test_datasets: by name; only predicted.
    metric: evaluation/metric that says which checkpoint is best.
    checkpoint: 'best' or 'last'.
    partitioner: how to split the work.

  Returns:
    What is in result.json.
  """
  folder = pathlib.Path(model_dir)
  steps = _history(folder, metric)
  choices = {'best': max(steps, key=_of_numbers(steps)), 'last': max(steps)}
  if checkpoint not in choices:
    raise UserError(
      f'PREDICT_WITH: {checkpoint!r} is not one of {list(choices)}'
    )
  step = choices[checkpoint]
  partitioner = partitioner or Partitioner()
  datasets = {**eval_datasets, **test_datasets}
  scores = {}
  with partitioner.context():
    like = initialization.params_layout(
      model, next(iter(eval_datasets.values())), partitioner
    )
    params = restore.restore_params(model_dir, like, step=step)
    for name, dataset in datasets.items():
      _, outputs = Evaluator(model, dataset, partitioner).predict(params)
      if name in eval_datasets:
        scores[name] = dataset.score(outputs)
      _write(
        folder / 'predictions', name, dataset, dataset.predictions(outputs)
      )
  result = {
    'metric': metric,
    'score': steps[step],
    'best': steps[choices['best']],
    'best_step': choices['best'],
    'last': steps[choices['last']],
    'last_step': choices['last'],
    'predicted_with': checkpoint,
    'scores': scores,
    'truncated': {name: d.truncated for name, d in datasets.items()},
  }
  if jax.process_index() == 0:
    (folder / RESULT).write_text(json.dumps(result, indent=2) + '\n')
    print(
      f'{metric}: best {result["best"]:.4g} at step {result["best_step"]}, last'
      f' {result["last"]:.4g} at step {result["last_step"]}; predictions of the'
      f' {checkpoint} one are in {folder / "predictions"}'
    )
  return result


def _history(folder: pathlib.Path, metric: str) -> dict[int, float]:
  """Step -> value of a metric, of all evaluations of a run."""
  evaluation, _, name = metric.rpartition('/')
  lines = read_jsonl(folder / 'training_eval' / evaluation / FILE)
  values = {line['step']: line[name] for line in lines if name in line}
  if not values:
    raise UserError(
      f'{folder}: no evaluation has written {metric}; train to the end first'
    )
  return values


def _of_numbers(values: Mapping[int, float]):
  """Orders steps by value, NaN below all; of equals, the newest is highest."""

  def key(step: int) -> tuple[float, int]:
    value = values[step]
    return (-math.inf if math.isnan(value) else value, step)

  return key


def _write(
  folder: pathlib.Path,
  name: str,
  dataset: downstream.TaskDataset,
  predictions: list[Any],
) -> None:
  """JSON lines of all predictions, and the benchmark's own file."""
  if jax.process_index() != 0:
    return
  (task,), (records,) = dataset.tasks, dataset.records
  path = folder / f'{name}.jsonl'
  path.parent.mkdir(parents=True, exist_ok=True)
  lines = [
    json.dumps({'id': record.id, 'prediction': _plain(said)})
    for record, said in zip(records, predictions, strict=True)
  ]
  path.write_text('\n'.join(lines) + '\n')
  submission = task.submissions.get(dataset.split)
  if submission and task.write:
    task.write(path.parent / submission, task, records, predictions)


def _plain(prediction: Any) -> Any:
  """As JSON has it."""
  if isinstance(prediction, downstream.Answer):
    return {'text': prediction.text, 'null_odds': prediction.null_odds}
  return prediction
