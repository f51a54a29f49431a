# SPDX-License-Identifier: Apache-2.0
"""Whether the learning rate that is best at a small width serves a larger one.

  python -m benchmarks.width_transfer --widths=32,64,128

Trains METRO-LM on the embedded corpus at every width and learning rate, twice:
with the rate as it is, and with that of the matrices between hidden layers
times smallest width / width (`training.width_factors`). Heads are as wide at
every width. The tables have the losses of the auxiliary (MLM) and of the main
model (CLM) over the last fifth of the steps, added up, in nats; not that of
RTD, which is harder the better the auxiliary is. The best of a row is marked.
"""

import argparse
import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from metro_jax import data, host_memory, models, modules, pretrain, training
from metro_jax.training import state as state_lib
from metro_jax.training import step as step_lib

LENGTH, BATCH_SIZE, VOCABULARY, HEAD_WIDTH = 64, 16, 2048, 16
STDDEV = 0.1  # Of the start.


def main() -> None:
  """Entry point."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  add = parser.add_argument
  add('--widths', default='32,64,128')
  add('--rates', default='2e-3,4e-3,8e-3,1.6e-2,3.2e-2')
  add('--steps', type=int, default=600)
  flags = parser.parse_args()
  host_memory.keep_pages()
  widths = [int(x) for x in flags.widths.split(',')]
  rates = [float(x) for x in flags.rates.split(',')]
  dataset = data.TokenDataset(
    'metro_docstrings',
    length=LENGTH,
    batch_size=BATCH_SIZE,
    vocabulary_size=VOCABULARY,
  )
  batches = [dataset.batch(step) for step in range(flags.steps)]
  losses: dict[tuple[int, bool, float], float] = {}
  for width in widths:
    train = _trainer(width, batches)
    for rate in rates:
      plain = losses[width, False, rate] = train(rate, 1.0)
      scaled = losses[width, True, rate] = train(rate, widths[0] / width)
      print(
        f'width {width}, rate {rate:g}: {plain:.3f}, scaled {scaled:.3f}',
        flush=True,
      )
  for scaled in (False, True):
    title = 'rate of hidden matrices ~ 1 / width' if scaled else 'one rate'
    _print(title, widths, rates, lambda w, r, s=scaled: losses[w, s, r])


def _trainer(
  width: int, batches: Sequence[dict[str, np.ndarray]]
) -> Callable[[float, float], float]:
  """A function (rate, factor) -> final loss; compiled once for all of them."""
  steps = len(batches)
  model = models.PretrainingModel(_metro_lm(width))

  def optimizer(rate: Any, factor: Any) -> training.Optimizer:
    def schedule(step: Any) -> Any:
      return rate * jnp.minimum(10 * (step + 1) / steps, 1.0 - step / steps)

    hidden = training.width_factors(width, width)
    return training.adamw(schedule, rate_factors=dict.fromkeys(hidden, factor))

  def take(state: Any, batch: Any, rate: Any, factor: Any) -> Any:
    train_step = step_lib.make_train_step(model, optimizer(rate, factor))
    after, metrics, _ = train_step(state, None, batch)
    terms = [metrics[name] for name in ('loss/mlm', 'loss/clm')]
    return after, sum(term.total / term.count for term in terms)

  take = jax.jit(take, donate_argnums=0)
  spec = model.build_batch_spec(BATCH_SIZE, LENGTH)
  init = jax.jit(model.init)

  @functools.cache  # At the smallest width the factor is 1.
  def train(rate: float, factor: float) -> float:
    params = state_lib.unbox(init(jax.random.key(0), spec))
    state = state_lib.TrainState.create(params, optimizer(rate, factor))
    losses = []
    for batch in batches:
      state, loss = take(state, batch, np.float32(rate), np.float32(factor))
      losses.append(loss)
    final = np.asarray(jax.device_get(losses[-max(steps // 5, 1) :]))
    return float(final.mean()) if np.isfinite(final).all() else math.inf

  return train


def _metro_lm(width: int) -> pretrain.Pretrainer:
  """Two layers and one, with what the tiny recipe needs to learn in so few."""
  main = modules.TransformerConfig(
    vocab_size=VOCABULARY,
    embed_dim=width,
    mlp_dim=4 * width,
    num_heads=max(1, width // HEAD_WIDTH),
    num_layers=2,
    dtype='float32',
    init_stddev=STDDEV,
    positions=modules.PositionConfig(
      max_length=LENGTH, reset_cls=True, neighbour_bias=5.0
    ),
  )
  auxiliary = dataclasses.replace(main, num_layers=1)
  return pretrain.Pretrainer(
    main,
    modules.Encoder(main),
    pretrain.Auxiliary(auxiliary),
    objectives=(
      pretrain.MLM(),
      pretrain.RTD(weight=10.0),
      pretrain.CorrectiveLM(),
    ),
    dropout_rate=0.0,
  )


def _print(
  title: str,
  widths: Sequence[int],
  rates: Sequence[float],
  loss: Callable[[int, float], float],
) -> None:
  print(f'\n| {title}: width | ' + ' | '.join(f'{r:g}' for r in rates) + ' |')
  print('| --- ' * (1 + len(rates)) + '|')
  for width in widths:
    row = [loss(width, rate) for rate in rates]
    cells = [f'**{x:.3f}**' if x == min(row) else f'{x:.3f}' for x in row]
    print(f'| {width} | ' + ' | '.join(cells) + ' |')


if __name__ == '__main__':
  main()
