# SPDX-License-Identifier: Apache-2.0
"""Steps that are refused, and what becomes of a run that refuses many."""

import dataclasses
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import toy

from metro_jax import training
from metro_jax.errors import UserError
from metro_jax.training import guards, summaries
from metro_jax.training.state import named_leaves


@dataclasses.dataclass(frozen=True)
class Batches(toy.ToyDataset):
  """Toy batches: some spoilt, some left out, one that ends the process.

  Attributes:
    nan: batches whose loss is not a number.
    loud: batches whose loss, and so its gradient, is a thousandfold.
    skip: (first, count): batches that are not in this dataset.
    fail_at: a batch that raises.
  """

  nan: tuple = ()
  loud: tuple = ()
  skip: tuple = (10**9, 0)
  fail_at: int = -1

  @property
  def fingerprint(self):
    return 'same'

  def batch(self, step, rows=None):
    if step >= self.skip[0]:
      step += self.skip[1]
    if step == self.fail_at and rows is None:
      raise InterruptedError('the process ends here')
    batch = super().batch(step, rows)
    factor = {**dict.fromkeys(self.loud, 1e3), **dict.fromkeys(self.nan, 1e38)}
    # The toy's loss multiplies by weights and divides by their sum, so that
    # the square of 1e38 is infinite, and a thousand is told by the ids.
    weights = batch['encoder_loss_weights'] * np.float32(factor.get(step, 1))
    return {**batch, 'encoder_loss_weights': weights}


class Model(toy.ToyModel):
  """A toy whose loss is not normalised, so that weights make it loud."""

  def normalizers(self, batch):
    return {'mlm': jnp.float32(50)}


def train(folder, steps=24, data=(), **options):
  defaults = {
    'guard': training.Guard(window=8, max_refused=3),
    'checkpoints': training.CheckpointConfig(period=4, keep=3),
    'optimizer': training.adamw(1e-2),
  }
  return training.train(
    model=Model(),
    model_dir=str(folder),
    train_dataset=Batches(**dict(data)),
    train_steps=steps,
    stats_period=4,
    tensorboard=False,
    **{**defaults, **options},
  )


def assert_equal(left, right):
  left, right = named_leaves(left.params), named_leaves(right.params)
  assert left.keys() == right.keys()
  for name, value in left.items():
    np.testing.assert_array_equal(value, right[name], err_msg=name)


def events(folder):
  return summaries.read_jsonl(folder / 'train' / summaries.EVENTS)


def logged(folder):
  lines = summaries.read_jsonl(folder / 'train' / 'metrics.jsonl')
  return [
    {k: v for k, v in line.items() if not k.startswith('timing/')}
    for line in lines
  ]


# ----------------------------------------------------------------------
# The judge.
# ----------------------------------------------------------------------


def verdicts(guard, values):
  """What a guard says of a sequence of (loss, gradient norm)."""
  judge = jax.jit(guard.judge)
  memory, said = guard.init(), []
  for loss, norm in values:
    verdict, refused, memory = judge(
      memory, jnp.float32(loss), jnp.float32(norm), jnp.float32(1)
    )
    said.append((int(verdict), int(refused)))
  return said


def test_spikes_are_those_of_a_plain_reading_of_the_rule():
  rng = np.random.default_rng(0)
  losses = 5 + 0.2 * rng.standard_normal(60)
  norms = np.exp(0.3 * rng.standard_normal(60))
  losses[[30, 31, 45]] = 9.0
  norms[[20, 45, 50]] = 1e4
  losses[40], norms[41] = math.nan, math.inf
  guard = training.Guard(sigmas=6.0, window=16)
  taken, refused, expected = [], 0, []
  for loss, norm in zip(losses, norms, strict=True):
    seen = np.array([loss, np.log(norm)])
    verdict = guards.GOOD
    if not np.isfinite(seen).all():
      verdict = guards.NON_FINITE
    elif len(taken) >= 16:
      past = np.array(taken[-16:])
      spread = np.maximum(past.std(0), [0.02 * abs(past[:, 0].mean()), 0.25])
      high = seen > past.mean(0) + 6 * spread
      spikes = [guards.LOSS_SPIKE, guards.NORM_SPIKE]
      verdict = spikes[int(np.argmax(high))] if high.any() else verdict
    refused = 0 if verdict == guards.GOOD else refused + 1
    if verdict == guards.GOOD:
      taken.append(seen)
    expected.append((verdict, refused))
  said = verdicts(guard, zip(losses, norms, strict=True))
  assert said == expected
  assert {v for v, _ in said} == set(range(4))
  assert (guards.LOSS_SPIKE, 2) in said


def test_no_spike_before_the_window_is_full_and_none_if_not_asked_for():
  calm, wild = [(5.0, 1.0)] * 8, [(50.0, 1e6)]
  guard = training.Guard(window=8)
  assert verdicts(guard, calm[:7] + wild)[-1] == (guards.GOOD, 0)
  assert verdicts(guard, calm + wild)[-1] == (guards.LOSS_SPIKE, 1)
  finite_only = training.Guard(sigmas=None, window=8)
  assert verdicts(finite_only, calm + wild)[-1] == (guards.GOOD, 0)
  # Of a constant loss the least spread counts: 8 x 2 %.
  assert verdicts(guard, [*calm, (5.7, 1.0)])[-1] == (guards.GOOD, 0)
  assert verdicts(guard, [*calm, (5.9, 1.0)])[-1] == (guards.LOSS_SPIKE, 1)


def test_an_update_that_is_not_finite_is_refused():
  guard, one = training.Guard(), jnp.float32(1)
  for update_norm in (math.nan, math.inf):
    verdict, refused, _ = guard.judge(guard.init(), one, one, update_norm)
    assert (int(verdict), int(refused)) == (guards.NON_FINITE, 1)


@pytest.mark.parametrize(
  'options, words',
  [
    ({'window': 1}, 'window is 1'),
    ({'max_refused': 0}, 'max_refused is 0'),
    ({'max_rollbacks': -1}, 'max_rollbacks is -1'),
    ({'sigmas': 0.0}, 'sigmas is 0.0'),
  ],
)
def test_mistakes(options, words):
  with pytest.raises(UserError, match=words):
    training.Guard(**options)


# ----------------------------------------------------------------------
# A run.
# ----------------------------------------------------------------------


@pytest.fixture(scope='module')
def calm(tmp_path_factory):
  """24 steps without trouble, guarded: the folder and the state."""
  folder = tmp_path_factory.mktemp('calm')
  return folder, train(folder).state


def test_a_guard_changes_nothing_when_nothing_happens(calm, tmp_path):
  folder, state = calm
  assert_equal(train(tmp_path, guard=None).state, state)
  for left, right in zip(logged(tmp_path), logged(folder), strict=True):
    assert left == pytest.approx(right, rel=1e-5)  # Norms may fuse otherwise.
  assert not events(folder)
  assert {line['refused_steps'] for line in logged(folder)} == {0.0}


def test_a_refused_step_leaves_no_trace_but_its_number(tmp_path):
  """Batch 13 is infinite: slots, parameters and metrics are as before it."""
  before = train(tmp_path / 'a', 13).state
  after = train(tmp_path / 'a', 14, {'nan': (13,)}).state
  assert int(after.step) == 14
  assert_equal(before, after)
  slots = zip(
    jax.tree.leaves(before.opt_state),
    jax.tree.leaves(after.opt_state),
    strict=True,
  )
  for left, right in slots:
    np.testing.assert_array_equal(left, right)
  (event,) = events(tmp_path / 'a')
  assert event['step'] == 14 and event['batch'] == 13
  assert 'not finite' in event['reason']
  assert event['examples'] == Batches().position(13)


def test_ill_batches_are_skipped_and_the_run_ends(calm, tmp_path, capsys):
  data = {'nan': (5, 17), 'loud': (12, 19)}
  result = train(tmp_path, data=data)
  assert result.step == 24
  reasons = [(e['step'], e['reason']) for e in events(tmp_path)]
  assert [step for step, _ in reasons] == [6, 13, 18, 20]
  assert ['finite' in reason for _, reason in reasons] == [True, False] * 2
  line = logged(tmp_path)[1]  # Of steps 5 to 8.
  assert line['refused_steps'] == 0.25
  assert math.isfinite(line['loss']) and math.isfinite(line['loss/mlm'])
  assert np.isfinite(named_leaves(result.state.params)['main/wi/bias']).all()
  warnings = [
    line
    for line in capsys.readouterr().out.splitlines()
    if line.startswith('warning')
  ]
  assert len(warnings) == 4 and 'events.jsonl' in warnings[0]
  # The guard's memory goes through a checkpoint as through none.
  train(tmp_path / 'cut', 10, data)
  resumed = train(tmp_path / 'cut', data=data)
  assert_equal(resumed.state, result.state)
  assert events(tmp_path / 'cut') == events(tmp_path)


def test_nothing_to_go_back_to_ends_with_one_line(tmp_path):
  with pytest.raises(UserError) as error:
    train(tmp_path, data={'nan': tuple(range(24))})
  text = str(error.value)
  assert '\n' not in text
  for words in ('at step 3', '3 steps in a row', 'no checkpoint', 'DTYPE'):
    assert words in text, text
  assert [e['step'] for e in events(tmp_path)] == [1, 2, 3]


def test_goes_back_and_past_the_bad_stretch(tmp_path):
  """The run is that of a corpus without the batches that were passed over.

  Batches 14..20 are ill. Steps 15, 16 and 17 are refused; the run goes back to
  step 12 and reads on at batch 17; 17, 18 and 19 are refused; being in trouble
  again it goes back to step 8, and reads on at batch 20, which it skips.
  """
  ill = {'nan': tuple(range(14, 21))}
  result = train(tmp_path / 'run', data=ill)
  rollbacks = [e for e in events(tmp_path / 'run') if e['event'] == 'rollback']
  assert [(e['to'], e['next_batch']) for e in rollbacks] == [(12, 17), (8, 20)]
  assert result.step == 24
  spliced = train(tmp_path / 'oracle', data={**ill, 'skip': (8, 12)})
  assert_equal(spliced.state, result.state)
  assert logged(tmp_path / 'oracle') == logged(tmp_path / 'run')
  saved = tmp_path / 'run/checkpoint_24/dataset/metadata'
  course = json.loads(saved.read_text())['course']
  assert course['passed_over'] == 12 and course['rollbacks'] == 2

  # A process that ends in the middle of it all, twice, makes no difference:
  # before the second rollback, and after it, without a checkpoint in between.
  for fail_at in (18, 22):
    with pytest.raises(InterruptedError):
      train(tmp_path / 'cut', data={**ill, 'fail_at': fail_at})
  again = train(tmp_path / 'cut', data=ill)
  assert_equal(again.state, result.state)
  assert events(tmp_path / 'cut') == events(tmp_path / 'run')
  assert logged(tmp_path / 'cut') == logged(tmp_path / 'run')


def test_an_update_that_overflows_is_refused(tmp_path):
  """Loss and gradients of batch 13 are good, what becomes of them is not."""
  inner = training.adamw(1e-2)

  def update(gradients, slots, params):
    updates, slots = inner.update(gradients, slots, params)
    loud = optax.global_norm(gradients) > 100
    return jax.tree.map(lambda u: jnp.where(loud, jnp.inf, u), updates), slots

  options = {
    'data': {'loud': (13,)},
    'guard': training.Guard(sigmas=None),
    'optimizer': optax.GradientTransformation(inner.init, update),
  }
  before = train(tmp_path, 13, **options).state
  after = train(tmp_path, 14, **options).state
  assert [(e['event'], e['step']) for e in events(tmp_path)] == [
    ('refused', 14)
  ]
  assert_equal(before, after)
  assert train(tmp_path, **options).step == 24


def test_gives_up_when_going_back_does_not_help(tmp_path):
  with pytest.raises(UserError, match='going back 2 times did not help'):
    train(
      tmp_path,
      data={'nan': tuple(range(14, 60))},
      guard=training.Guard(window=8, max_refused=3, max_rollbacks=2),
    )
  with pytest.raises(UserError, match='max_rollbacks is 0'):
    train(
      tmp_path,
      data={'nan': tuple(range(14, 60))},
      guard=training.Guard(window=8, max_refused=3, max_rollbacks=0),
    )
