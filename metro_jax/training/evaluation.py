# SPDX-License-Identifier: Apache-2.0
"""Evaluation: the same batches, the same keys, every time.

Two evaluations of the same parameters are equal to the bit, and those of one
run can be compared with one another.
"""

import contextlib
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from metro_jax import metrics as metrics_lib
from metro_jax.errors import UserError
from metro_jax.models.base import Model
from metro_jax.training import checks, initialization, restore, summaries
from metro_jax.training import step as step_lib
from metro_jax.training.partitioning import Partitioner
from metro_jax.training.preemption import StopSignal
from metro_jax.training.prefetch import Dataset, device_batches
from metro_jax.training.progress import Progress
from metro_jax.training.state import TrainState

PyTree = Any


class Evaluator:
  """Runs a model over the first batches of a dataset.

  A dataset with a `score` is given the model's predictions, of all rows in
  order, and answers with metrics: those that are no sums over examples.

  Attributes:
    dataset: The data.
    steps: Batches in an evaluation.
  """

  def __init__(
    self,
    model: Model,
    dataset: Dataset,
    partitioner: Partitioner,
    steps: int | None = None,
  ):
    """Prepares an evaluation.

    Args:
      model: Its loss_fn is called with train=False.
      dataset: An unshuffled dataset; a step's batch must not change.
      partitioner: Splits the batches.
      steps: Batches to use; None, or more than there are, for all.
    """
    partitioner.check_batch(dataset.batch_size, what='eval BATCH_SIZE')
    available = getattr(dataset, 'steps_per_epoch', None)
    if steps is None and available is None:
      raise UserError('EVAL_STEPS: this dataset has no end; say how many')
    self.dataset = dataset
    self.steps = min(n for n in (steps, available) if n is not None)
    self._partitioner = partitioner
    self._zeros: Callable[[], PyTree] | None = None
    self._scored = hasattr(dataset, 'score')
    self._eval_step = jax.jit(
      step_lib.make_eval_step(model, self._scored),
      donate_argnums=1,
      out_shardings=partitioner.replicated,
    )

  def run(
    self, params: PyTree, stop: Callable[[], bool] = lambda: False
  ) -> dict[str, float] | None:
    """Metrics of the parameters, or None if asked to stop."""
    metrics, _ = self.predict(params, stop)
    return metrics

  def predict(
    self, params: PyTree, stop: Callable[[], bool] = lambda: False
  ) -> tuple[dict[str, float] | None, dict[str, np.ndarray]]:
    """Metrics, and the predictions [rows, ...] for a dataset with `score`."""
    window, parts = None, []
    sharding = self._partitioner.batch_sharding
    batches = device_batches(self.dataset, sharding, range(self.steps))
    with contextlib.closing(batches):
      for index, batch in enumerate(batches):
        if stop():
          return None, {}
        number = jnp.asarray(index, jnp.int32)
        if window is None:
          window = self._empty_window(params, batch, number)
        window, outputs = self._eval_step(params, window, batch, number)
        if self._scored:
          parts.append(jax.device_get(outputs))
    metrics = metrics_lib.compute(jax.device_get(window))
    if not self._scored:
      return metrics, {}
    predictions = jax.tree.map(lambda *x: np.concatenate(x), *parts)
    return metrics | self.dataset.score(predictions), predictions

  def _empty_window(self, params: PyTree, *inputs: PyTree) -> PyTree:
    if self._zeros is None:
      shapes, _ = jax.eval_shape(self._eval_step, params, None, *inputs)
      self._zeros = jax.jit(
        lambda: step_lib.zeros_like(shapes),
        out_shardings=self._partitioner.replicated,
      )
    return self._zeros()


class Evaluation:
  """The evaluations of a training run, each with its file."""

  def __init__(
    self,
    model: Model,
    datasets: Mapping[str, Dataset],
    partitioner: Partitioner,
    steps: int | None,
    progress: Progress,
  ):
    """Checks that model and data fit; see `Evaluator` for the arguments."""
    for name, dataset in datasets.items():
      checks.check_fits(model, dataset, f'eval_datasets[{name!r}]')
    self._evaluators = {
      name: Evaluator(model, dataset, partitioner, steps)
      for name, dataset in datasets.items()
    }
    self._progress = progress
    self._writers: dict[str, summaries.MetricWriter] = {}
    self._latest: dict[str, float] = {}
    self._latest_step = -1

  def metrics(self, step: int) -> dict[str, float]:
    """What was measured at a step, by dataset/metric; empty for others."""
    return self._latest if step == self._latest_step else {}

  def open(
    self,
    folder: pathlib.Path,
    open_writer: Callable[[pathlib.Path], summaries.MetricWriter],
  ) -> None:
    """Opens the files, one folder for each dataset."""
    for name in self._evaluators:
      self._writers[name] = open_writer(folder / name)

  def run(self, state: TrainState, stop: StopSignal) -> None:
    """Evaluates on each dataset that has no line for this step yet."""
    step = int(state.step)
    for name, evaluator in self._evaluators.items():
      if self._writers[name].last_step == step:
        continue
      metrics = evaluator.run(state.params, lambda: stop.requested(step))
      if metrics is not None:
        if step != self._latest_step:
          self._latest, self._latest_step = {}, step
        self._latest |= {f'{name}/{k}': v for k, v in metrics.items()}
        self._writers[name].write(step, metrics)
        self._progress.report_eval(step, name, metrics)

  def close(self) -> None:
    """Closes the files."""
    for writer in self._writers.values():
      writer.close()


def evaluate(
  *,
  model: Model,
  model_dir: str,
  eval_datasets: Mapping[str, Dataset],
  eval_steps: int | None = None,
  step: int | None = None,
  partitioner: Partitioner | None = None,
  tensorboard: bool = False,
) -> dict[str, dict[str, float]]:
  """Evaluates a checkpoint, prints a table and records it in MODEL_DIR.

  Args:
    model: What was trained.
    model_dir: Where the checkpoints are.
    eval_datasets: Data by name.
    eval_steps: Batches of each dataset; None for all.
    step: Which checkpoint; None for the newest.
    partitioner: How to split the work; all devices on `data` by default.
    tensorboard: Whether to write TensorBoard events too.

  Returns:
    Metrics by dataset.
  """
  partitioner = partitioner or Partitioner()
  checkpoint = restore.find_checkpoint(model_dir, step)
  step = int(checkpoint.name.removeprefix(f'{restore.PREFIX}_'))
  results = {}
  with partitioner.context():
    for name, dataset in eval_datasets.items():
      checks.check_fits(model, dataset, f'eval_datasets[{name!r}]')
      checks.check_assets(dataset, model_dir)
    like = initialization.params_layout(
      model, next(iter(eval_datasets.values())), partitioner
    )
    params = restore.restore_params(str(checkpoint), like)
    for name, dataset in eval_datasets.items():
      evaluator = Evaluator(model, dataset, partitioner, eval_steps)
      results[name] = evaluator.run(params)
      folder = pathlib.Path(model_dir) / 'training_eval' / name
      summaries.record(folder, step, results[name], tensorboard)
  if jax.process_index() == 0:
    print(format_table(f'{model_dir} at step {step}', results))
  return results


def format_table(title: str, results: Mapping[str, Mapping[str, float]]) -> str:
  """Metrics of each dataset, one a line."""
  lines = [title]
  for dataset, metrics in results.items():
    width = max(map(len, metrics), default=0)
    lines.append(f'  {dataset}')
    lines += [f'    {k:<{width}}  {v:.6g}' for k, v in sorted(metrics.items())]
  return '\n'.join(lines)
