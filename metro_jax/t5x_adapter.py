# SPDX-License-Identifier: Apache-2.0
"""Recipes under T5X: a model, a trainer, a partitioner, and batches for it.

  python -m t5x.train --gin_file=gin_configs/t5x/pretrain.gin \\
    --gin_file=gin_configs/metro_lm/tiny.gin --gin.MODEL_DIR=\\"runs/t5x\\"

What T5X does not hand to a loss function, the trainer puts into the batch: the
step, each row's index in the global batch, and what the loss divides by. So
random draws, curricula and microbatches are those of the native trainer, and
so are the losses.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from clu import metrics as clu_metrics
from clu import values
from flax import serialization, struct, traverse_util
from flax.core import freeze, unfreeze
from flax.linen import partitioning as flax_partitioning

from metro_jax import metrics as metrics_lib
from metro_jax.models.base import Batch, Metrics, Model, Params
from metro_jax.training import checks, partitioning, prefetch, restore
from metro_jax.training.optimizers import Optimizer
from metro_jax.training.partial import PartialCheckpoint
from metro_jax.training.state import TrainState, unbox

try:
  from t5x import models as t5x_models
  from t5x import optimizers as t5x_optimizers
  from t5x import partitioning as t5x_partitioning
  from t5x import trainer as t5x_trainer
  from t5x import utils as t5x_utils
except ImportError as error:
  raise ImportError(
    'metro_jax.t5x_adapter needs T5X, which is not on PyPI: in a checkout,'
    " pip install -e '.[t5x]' fetches it from its repository; docs/t5x.md"
  ) from error

_STEP, _DIVISOR = 'train_step', 'divisor/'


class _Written(clu_metrics.Metric):
  """How T5X merges and writes a metric of this project: all are sums."""

  def merge(self, other: '_Written') -> '_Written':
    """The metric of both."""
    return metrics_lib.merge(self, other)

  def compute_value(self) -> values.Scalar:
    """The number as T5X writes it."""
    return values.Scalar(self.compute())


@struct.dataclass
class MeanMetric(_Written, metrics_lib.Mean):
  """`Mean` for T5X."""

  compute = metrics_lib.Mean.compute


@struct.dataclass
class HistogramMetric(_Written, metrics_lib.BinaryHistogram):
  """`BinaryHistogram` for T5X."""

  compute = metrics_lib.BinaryHistogram.compute


def _for_t5x(metrics: Metrics) -> dict[str, _Written]:
  kinds = {
    metrics_lib.Mean: MeanMetric,
    metrics_lib.BinaryHistogram: HistogramMetric,
  }
  return {k: kinds[type(x)](**vars(x)) for k, x in metrics.items()}


class _Optimizer(t5x_optimizers.OptaxWrapper):
  """Any optax transformation; T5X knows some of their states by name."""

  def derive_logical_axes(self, optimizer: Any, param_logical_axes: Any) -> Any:
    """A slot has the axes of its parameter."""
    axes = jax.tree.map(lambda x: None, optimizer.state_dict())
    slots = partitioning.slot_specs(
      optimizer.state.param_states,
      unfreeze(optimizer.target),
      unfreeze(param_logical_axes),
    )
    axes['target'] = unfreeze(param_logical_axes)
    axes['state']['param_states'] = serialization.to_state_dict(slots)
    return optimizer.restore_state(axes)


class T5XModel(t5x_models.BaseModel):
  """`models.Model` as T5X's.

  Attributes:
    model: the model.
    random_seed: of initial values and of draws in training; T5X's own keys
      are not used.
  """

  def __init__(self, model: Model, optimizer: Optimizer, random_seed: int = 0):
    """Takes what a recipe binds MODEL, OPTIMIZER and RANDOM_SEED to."""
    super().__init__(_Optimizer(optimizer))
    self.model, self.random_seed = model, random_seed

  @property
  def FEATURE_CONVERTER_CLS(self) -> Any:
    """SeqIO's converter, for T5X's own way to data."""
    from metro_jax.data import seqio_features

    return seqio_features.encoder_converter

  def get_initial_variables(
    self,
    rng: jax.Array,
    input_shapes: Mapping[str, tuple[int, ...]],
    input_types: Mapping[str, Any] | None = None,
  ) -> dict[str, Any]:
    """Parameters, and their logical axes in T5X's old form."""
    del rng
    batch = {
      name: jnp.zeros(shape, (input_types or {}).get(name, jnp.float32))
      for name, shape in input_shapes.items()
    }
    boxed = self.model.init(jax.random.key(self.random_seed), batch)
    specs = nn.get_partition_spec(boxed)
    axes = traverse_util.flatten_dict(specs)
    named = {
      (*path[:-1], f'{path[-1]}_axes'): flax_partitioning.AxisMetadata(spec)
      for path, spec in axes.items()
    }
    return {
      'params': unbox(boxed),
      'params_axes': traverse_util.unflatten_dict(named),
    }

  def for_step(self, batch: Batch, step: jax.Array) -> dict[str, jax.Array]:
    """The global batch with what its rows must know in any microbatch."""
    rows = next(iter(batch.values())).shape[0]
    more = {'row_ids': jnp.arange(rows, dtype=jnp.uint32)}
    more[_STEP] = jnp.full((rows,), step)
    for name, count in self.model.normalizers(batch).items():
      more[_DIVISOR + name] = jnp.full((rows,), count)
    return {**batch, **more}

  def loss_fn(
    self, params: Params, batch: Batch, dropout_rng: jax.Array | None
  ) -> tuple[jax.Array, dict[str, _Written]]:
    """The part of these rows in the loss of their batch."""
    del dropout_rng
    given = dict(batch)
    step = given.pop(_STEP)[0]
    divisors = {
      name.removeprefix(_DIVISOR): given.pop(name)[0]
      for name in list(given)
      if name.startswith(_DIVISOR)
    }
    rng = jax.random.fold_in(jax.random.key(self.random_seed), step)
    loss, metrics = self.model.loss_fn(
      params, given, rng, step, train=True, normalizers=divisors
    )
    return loss, _for_t5x(metrics)

  def eval_fn(
    self, params: Params, batch: Batch
  ) -> tuple[jax.Array, dict[str, _Written]]:
    """The loss without dropout, at the end of curricula."""
    rng = jax.random.key(0)
    loss, metrics = self.model.loss_fn(params, batch, rng, 0, train=False)
    return loss, _for_t5x(metrics)

  def predict_batch(
    self, params: Params, batch: Batch, rng: jax.Array | None = None
  ) -> jax.Array:
    """Tokens [batch, length] with the masked ones filled in."""
    del rng
    tokens = batch['encoder_input_tokens']
    fill = self.model.predict_batch(params, batch, mode='fill', top_k=1)
    rows, length = tokens.shape
    # A slot that is not in use points behind the row.
    places = jnp.where(fill.weights > 0, fill.positions, length)
    filled = tokens.at[jnp.arange(rows)[:, None], places]
    return filled.set(fill.ids[:, :, 0], mode='drop')

  def predict_batch_with_aux(
    self, params: Params, batch: Batch, rng: jax.Array | None = None
  ) -> tuple[jax.Array, dict[str, jax.Array]]:
    """As `predict_batch`, and p(replaced) of those tokens [batch, length]."""
    tokens = self.predict_batch(params, batch, rng)
    filled = {'encoder_input_tokens': tokens}
    p_replaced = self.model.predict_batch(params, filled, mode='detect')
    return tokens, {'p_replaced': p_replaced}

  def score_batch(
    self, params: Params, batch: Batch, return_intermediates: bool = False
  ) -> jax.Array:
    """Log-probability of what was masked in each row, float32 [batch]."""
    del return_intermediates
    return self.model.predict_batch(params, batch, mode='score')


class Trainer(t5x_trainer.Trainer):
  """T5X's trainer, whose batches know their step and their rows."""

  def __init__(
    self, *, dataset: prefetch.Dataset | None = None, **arguments: Any
  ):
    """Takes T5X's arguments, and batches by step in place of its iterator."""
    super().__init__(**arguments)
    self._dataset = dataset
    if dataset is not None and jax.process_index() == 0:
      dataset.save_assets(arguments['summary_dir'])

  def train(
    self, batch_iter: Any, num_steps: int, start_step: int | None = None
  ) -> Any:
    """See T5X."""
    if self._dataset is None:
      return super().train(batch_iter, num_steps, start_step)
    step = int(self.train_state.step) if start_step is None else start_step
    partitioner = self._partitioner
    sharding = jax.sharding.NamedSharding(
      partitioner.mesh, partitioner.data_partition_spec
    )
    batches = prefetch.device_batches(
      self._dataset, sharding, range(step, step + num_steps)
    )
    return super().train(batches, num_steps, step)

  @functools.cached_property
  def _partitioned_train_step(self) -> Any:
    def train_step(state: Any, batch: Batch) -> Any:
      return t5x_trainer.train_with_lr(
        state,
        self._model.for_step(batch, state.step),
        learning_rate=self._learning_rate_fn(state.step),
        dropout_rng=self._get_step_rng(state.step),
        model=self._model,
        num_microbatches=self._num_microbatches,
        weight_metrics_computer=self._weight_metrics_computer,
        data_partition_spec=self._partitioner.data_partition_spec,
      )

    axes = self._train_state_axes
    return self._partitioner.partition(
      train_step,
      in_axis_resources=(axes, self._partitioner.data_partition_spec),
      out_axis_resources=(axes, None),
      donate_argnums=(0,),
    )


class Partitioner(t5x_partitioning.PjitPartitioner):
  """T5X's partitioner with ZeRO, and a mesh that flax and shard_map see.

  Under the mesh context of T5X, flax's logical constraints do nothing and
  shard_map finds no mesh.
  """

  def __init__(
    self, num_partitions: int = 1, zero_stage: int = 1, **arguments: Any
  ):
    """Takes T5X's arguments, and a stage (gradients are left to XLA)."""
    arguments.setdefault('logical_axis_rules', _rules())
    super().__init__(num_partitions=num_partitions, **arguments)
    self._zero_stage = zero_stage

  @functools.cached_property
  def mesh(self) -> jax.sharding.Mesh:
    """T5X's, but on CPUs, where T5X has no data axis to speak of."""
    devices = np.array(jax.devices())
    if devices[0].platform != 'cpu':
      return super().mesh
    grid = devices.reshape(-1, self._num_partitions)
    return jax.sharding.Mesh(grid, ('data', 'model'))

  def get_mesh_axes(self, train_state: Any) -> Any:
    """Mesh axes of parameters and slots, those of ZeRO included."""
    axes = super().get_mesh_axes(train_state)
    shapes = traverse_util.flatten_dict(
      train_state.state_dict(), keep_empty_nodes=True, sep='/'
    )
    flat = traverse_util.flatten_dict(
      axes.state_dict(), keep_empty_nodes=True, sep='/'
    )
    for name, spec in flat.items():
      stage = 3 if name.startswith('target/') else 1
      if self._zero_stage >= stage and isinstance(
        spec, jax.sharding.PartitionSpec
      ):
        shape = shapes[name].shape
        flat[name] = partitioning.zero_spec(spec, shape, self.mesh)
    tree = traverse_util.unflatten_dict(flat, sep='/')
    return axes.restore_state(tree)

  def partition(
    self,
    fn: Any,
    in_axis_resources: Any,
    out_axis_resources: Any,
    static_argnums: int | Sequence[int] = (),
    donate_argnums: int | Sequence[int] = (),
  ) -> '_InMesh':
    """See T5X, whose pjit takes partition specs under its own context only."""
    jitted = jax.jit(
      fn,
      in_shardings=self._shardings(in_axis_resources),
      out_shardings=self._shardings(out_axis_resources),
      static_argnums=static_argnums,
      donate_argnums=donate_argnums,
    )
    return _InMesh(jitted, self)

  def _shardings(self, axes: Any) -> Any:
    """Specs as shardings; T5X's None is an array that every device holds."""

    def leaf(x: Any) -> bool:
      return x is None or isinstance(x, jax.sharding.PartitionSpec)

    def sharding(spec: Any) -> jax.sharding.NamedSharding:
      spec = jax.sharding.PartitionSpec() if spec is None else spec
      return jax.sharding.NamedSharding(self.mesh, spec)

    return jax.tree.map(sharding, axes, is_leaf=leaf)


class _InMesh:
  """A partitioned function that is traced under the mesh and the rules."""

  def __init__(self, function: Any, partitioner: Partitioner):
    self._function = function
    self._partitioner = partitioner

  def _under(self, call: Any, *arguments: Any, **more: Any) -> Any:
    rules = self._partitioner.logical_axis_rules
    mesh = self._partitioner.mesh
    with jax.set_mesh(mesh), nn.logical_axis_rules(rules):
      return call(*arguments, **more)

  def __call__(self, *arguments: Any, **more: Any) -> Any:
    return self._under(self._function, *arguments, **more)

  def lower(self, *arguments: Any, **more: Any) -> Any:
    """Traces."""
    return self._under(self._function.lower, *arguments, **more)


class Initializer(t5x_utils.TrainStateInitializer):
  """T5X's fresh state, with parameters from runs of this project in it."""

  def __init__(
    self,
    *,
    dataset: prefetch.Dataset | None = None,
    initial_checkpoint_path: str | None = None,
    partial_checkpoint: PartialCheckpoint | None = None,
    **arguments: Any,
  ):
    """Takes T5X's arguments, and what `training.train` has of these names."""
    super().__init__(**arguments)
    self._dataset, self._path = dataset, initial_checkpoint_path
    self._partial = partial_checkpoint

  def from_scratch(self, init_rng: jax.Array) -> Any:
    """See T5X."""
    fresh = super().from_scratch(init_rng)
    state = TrainState(fresh.step, unfreeze(fresh.params), ())
    if self._path:
      folder = restore.find_checkpoint(self._path).parent
      checks.check_assets(self._dataset, folder)
      state = restore.load_initial(state, self._path, ('.*',))
    if self._partial:
      state = self._partial.load(state, self._dataset)
    return fresh.replace_params(freeze(state.params))


def learning_rate(optimizer: Optimizer) -> Any:
  """What T5X logs: the optimizer's own schedule."""
  return optimizer.learning_rate


def _rules() -> tuple[tuple[str, str | None], ...]:
  """Logical axes of this project on T5X's mesh."""
  there = {partitioning.BATCH_AXES: 'data', 'tensor': 'model'}
  # Parameters over data is ZeRO's affair.
  return tuple((name, there.get(x)) for name, x in partitioning.DEFAULT_RULES)
