# SPDX-License-Identifier: Apache-2.0
"""Meshes, ZeRO stages and microbatches change where numbers are, not what."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import toy
from jax.sharding import PartitionSpec as P

from metro_jax import training
from metro_jax.errors import UserError
from metro_jax.training import info, initialization
from metro_jax.training import step as step_lib
from metro_jax.training.state import named_leaves

MESH = functools.partial(
  jax.sharding.AbstractMesh, axis_names=('data', 'fsdp', 'tensor')
)


# Momentum gives ZeRO slots to split; rate 1 makes updates large.
SGD = optax.sgd(1.0, momentum=0.9)
ADAMW = training.adamw(1e-2)


@pytest.mark.parametrize(
  'spec, shape, expected',
  [
    (P(), (16, 64), P(None, 'data')),  # The largest.
    (P(None, 'tensor'), (16, 64), P('data', 'tensor')),  # Free ones only.
    (P(), (12, 64, 20), P(None, 'data', None)),  # Divisible ones only.
    (P(), (12, 6), P()),  # None is.
    (P('data'), (8, 8), P('data')),  # There already.
    (P(('data', 'fsdp')), (8, 8), P(('data', 'fsdp'))),
    (P(), (), P()),
  ],
)
def test_zero_spec(spec, shape, expected):
  assert training.zero_spec(spec, shape, MESH((8, 1, 2))) == expected


def test_zero_spec_on_one_device_is_the_identity():
  assert training.zero_spec(P(), (64,), MESH((1, 1, 1))) == P()


def one_step(partitioner, microbatches, steps=2, optimizer=ADAMW):
  """State, metrics and layout after some steps."""
  model, dataset = toy.ToyModel(), toy.ToyDataset(batch_size=32)
  with partitioner.context():
    layout = initialization.make_layout(model, optimizer, dataset, partitioner)
    state = initialization.initial_state(
      model, optimizer, dataset, partitioner, layout, random_seed=0
    )
    train_step, empty_window = initialization.compile_step(
      model, optimizer, dataset, partitioner, layout, microbatches, 0
    )
    window = empty_window()
    for step in range(steps):
      batch = jax.device_put(dataset.batch(step), partitioner.batch_sharding)
      state, window, _ = train_step(state, window, batch)
  return state, jax.device_get(window), layout


@pytest.fixture(scope='module')
def reference():
  """The plainest form of the step: one device, no partitioner, no scan."""
  model, dataset = toy.ToyModel(), toy.ToyDataset(batch_size=32)
  optimizer = SGD
  params = initialization.unbox(model.init(jax.random.key(0), None))
  state = training.TrainState.create(params, optimizer)
  step = jax.jit(step_lib.make_train_step(model, optimizer))
  window = None
  for index in range(2):
    state, window, _ = step(state, window, dataset.batch(index))
  return params, state, jax.device_get(window)


@pytest.mark.parametrize('microbatches', [1, 4])
@pytest.mark.parametrize(
  'shape',
  [
    {'data': 8, 'zero_stage': 0},
    {'data': 8, 'zero_stage': 1},
    {'data': 8, 'zero_stage': 2},
    {'data': 8, 'zero_stage': 3},
    {'data': 2, 'fsdp': 2, 'tensor': 2, 'zero_stage': 1},
  ],
  ids=str,
)
def test_same_losses_on_any_mesh(reference, shape, microbatches):
  state, window, _ = one_step(
    training.Partitioner(**shape), microbatches, optimizer=SGD
  )
  start, expected_state, expected = reference
  # Sums of n fp32 terms in another order differ by about sqrt(n) roundings;
  # the longest here is over 32 x 8 positions of 64 ids.
  tolerance = np.finfo(np.float32).eps * np.sqrt(32 * 8 * 64)
  assert window.keys() == expected.keys()
  for name, metric in window.items():
    np.testing.assert_allclose(
      metric.total / metric.count,
      expected[name].total / expected[name].count,
      rtol=tolerance,
      err_msg=name,
    )
  # Gradient descent is linear: an update is off by the same fraction of the
  # sums behind it, for whose size the largest update of the array stands.
  start, params = named_leaves(start), named_leaves(state.params)
  for name, value in named_leaves(expected_state.params).items():
    largest = np.max(np.abs(value - start[name]))
    assert largest > 1e-3, name
    rounding = np.finfo(np.float32).eps * np.max(np.abs(value))
    np.testing.assert_allclose(
      params[name],
      value,
      rtol=0,
      atol=tolerance * largest + rounding,
      err_msg=name,
    )


def shards(array):
  return array.size // array.addressable_shards[0].data.size


@pytest.mark.parametrize(
  'stage, params, slots', [(0, 1, 1), (1, 1, 8), (2, 1, 8), (3, 8, 8)]
)
def test_stages_split_what_they_say(stage, params, slots):
  partitioner = training.Partitioner(zero_stage=stage)
  state, _, layout = one_step(partitioner, 1, steps=1)
  kernel = state.params['main']['wi']['kernel']
  moment = state.opt_state[1][0].mu['main']['wi']['kernel']
  assert (shards(kernel), shards(moment)) == (params, slots)
  memory = info.memory_per_device(layout, partitioner)
  assert memory['gradients'] * (8 if stage >= 2 else 1) == 4 * 2336
  assert memory['parameters'] * params == 4 * 2336
  # Step counts of the schedule and of Adam are replicated.
  assert (memory['optimizer slots'] - 8) * slots == 8 * 2336


def test_fresh_state_does_not_depend_on_the_mesh():
  split, _, _ = one_step(training.Partitioner(fsdp=8, zero_stage=3), 1, steps=0)
  whole, _, _ = one_step(training.Partitioner(zero_stage=0), 1, steps=0)
  for name, value in named_leaves(whole.params).items():
    np.testing.assert_array_equal(value, named_leaves(split.params)[name])


def test_fresh_state_is_never_whole_on_a_device():
  """No device's output of the creating program is as large as the state."""
  partitioner = training.Partitioner(zero_stage=3)
  model, dataset = toy.ToyModel(width=64), toy.ToyDataset()
  optimizer = training.adamw(1e-2)
  layout = initialization.make_layout(model, optimizer, dataset, partitioner)
  state = initialization.initial_state(
    model, optimizer, dataset, partitioner, layout, 0
  )
  for name, x in named_leaves(state.params).items():
    assert shards(x) == 8, name


def test_buffers_are_donated():
  partitioner = training.Partitioner()
  model, dataset = toy.ToyModel(), toy.ToyDataset()
  optimizer = training.adamw(1e-2)
  with partitioner.context():
    layout = initialization.make_layout(model, optimizer, dataset, partitioner)
    state = initialization.initial_state(
      model, optimizer, dataset, partitioner, layout, 0
    )
    train_step, empty_window = initialization.compile_step(
      model, optimizer, dataset, partitioner, layout, 1, 0
    )
    batch = jax.device_put(dataset.batch(0), partitioner.batch_sharding)
    new, _, _ = train_step(state, empty_window(), batch)
  assert all(x.is_deleted() for x in jax.tree.leaves(state))
  assert not any(x.is_deleted() for x in jax.tree.leaves(new))


def test_microbatches_are_interleaved_rows():
  batch = {'x': jnp.arange(12), 'y': jnp.arange(24).reshape(12, 2)}
  part = step_lib.take_microbatch(batch, 1, 3)
  np.testing.assert_array_equal(part['x'], [1, 4, 7, 10])
  np.testing.assert_array_equal(part['y'][:, 0], [2, 8, 14, 20])


def refused(words, call):
  with pytest.raises(UserError, match=words) as error:
    call()
  assert '\n' not in str(error.value)


def test_mistakes_are_told_with_their_numbers():
  make = training.Partitioner
  refused(
    'BATCH_SIZE=30 is not divisible by the 8 devices.*data=8 x fsdp=1.*'
    'nearest that is: 32',
    lambda: make().check_batch(30),
  )
  refused(
    'BATCH_SIZE=32 / 8 microbatches = 4 is not divisible by the 8',
    lambda: make().check_batch(32, 8),
  )
  refused(
    'BATCH_SIZE=32 is not divisible by NUM_MICROBATCHES=5',
    lambda: make().check_batch(32, 5),
  )
  refused(
    'data=-1, fsdp=3, tensor=1 does not make 8 devices',
    lambda: make(fsdp=3).mesh,
  )
  refused(
    'data=4, fsdp=1, tensor=1 does not make 8 devices',
    lambda: make(data=4).mesh,
  )
  refused('zero_stage is 4', lambda: make(zero_stage=4))
  refused('tensor is 0', lambda: make(tensor=0))
  refused("mesh axis 'model'", lambda: make(rules=(('embed', 'model'),)))
  refused(
    "main/query/kernel: its 'heads' dimension of 6 is not divisible by"
    ' training.Partitioner.tensor=4; choose a divisor of 6',
    lambda: initialization.make_layout(
      toy.ToyModel(heads=6),
      training.adamw(1.0),
      toy.ToyDataset(),
      make(tensor=4),
    ),
  )
