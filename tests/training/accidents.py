# SPDX-License-Identifier: Apache-2.0
"""Accidents of a run, planted in its own process at a step of one's choice.

Steps are counted from 0, as batches are. Those that end the process or turn
the clock happen when the batch is asked for, which is a little before its step.
"""

import json
import os
import pathlib
import resource
import signal
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from metro_jax.training import initialization

KINDS = (
  'kill_at',  # SIGKILL.
  'terminate_at',  # SIGTERM.
  'deadline',  # Seconds from SIGTERM to SIGKILL.
  'kill_in_save',  # SIGKILL when the save of this step has begun.
  'wait_at',  # Until somebody deletes MODEL_DIR/waiting.
  'clock_jumps',  # {step: seconds}.
  'full_disk',  # [first step, last step, bytes a file may have].
  'nan_batches',
  'nan_gradients',
  'nan_parameter',  # Until the run has gone back to a checkpoint.
)


class Accidents:
  """What is to happen to a run."""

  def __init__(self, model_dir: pathlib.Path, plan: Mapping[str, Any]):
    unknown = plan.keys() - set(KINDS)
    assert not unknown, unknown
    self._folder, self._plan = model_dir, plan

  def install(self) -> None:
    """Plants what happens outside the data."""
    if 'kill_in_save' in self._plan:
      threading.Thread(target=self._kill_in_save, daemon=True).start()
    compile_step = initialization.compile_step

    def compile_ill_step(model, *arguments, **options):
      if 'nan_gradients' in self._plan:
        model = _IllModel(model, self._plan['nan_gradients'])
      step, window = compile_step(model, *arguments, **options)
      return self._ill_step(step), window

    initialization.compile_step = compile_ill_step

  def batch(
    self,
    load: Callable[..., dict[str, np.ndarray]],
    step: int,
    rows: slice | None = None,
  ) -> dict[str, np.ndarray]:
    """load(step, rows), with what happens to the batch or to us."""
    if rows is not None:  # Nobody trains on a part: it is asked for its shape.
      return load(step, rows)
    plan = self._plan
    if step == plan.get('kill_at'):
      os.kill(os.getpid(), signal.SIGKILL)
    if step == plan.get('terminate_at'):
      os.kill(os.getpid(), signal.SIGTERM)
      if 'deadline' in plan:
        kill = threading.Timer(
          plan['deadline'], os.kill, (os.getpid(), signal.SIGKILL)
        )
        kill.daemon = True
        kill.start()
    if step == plan.get('wait_at'):
      (self._folder / 'waiting').touch()
      while (self._folder / 'waiting').exists():
        time.sleep(0.01)
    jump = plan.get('clock_jumps', {}).get(str(step))
    if jump:
      now = time.time
      time.time = lambda: now() + jump
    self._fill_disk(step)
    batch = load(step)
    if step in plan.get('nan_batches', ()):
      weights = batch['encoder_loss_weights']
      batch['encoder_loss_weights'] = weights * np.float32(np.nan)
    return batch

  def _fill_disk(self, step: int) -> None:
    """A limit on the size of files: writing fails part-way, as on a full disk.

    Root's disk quota would be the other way; tests are not always root.
    """
    first, last, size = self._plan.get('full_disk', (-1, -1, 0))
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    if step == first:
      resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    elif step == last:
      resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))

  def _kill_in_save(self) -> None:
    while True:
      name = f'checkpoint_{self._plan["kill_in_save"]}.*'
      for path in self._folder.glob(name):
        if any(path.rglob('ocdbt.process_0')):
          os.kill(os.getpid(), signal.SIGKILL)

  def _ill_step(self, take: Callable[..., Any]) -> Callable[..., Any]:
    """The train step, with a NaN in a parameter before one of them."""
    ill = self._plan.get('nan_parameter')
    if ill is None:
      return take

    def step(state, window, batch):
      if int(state.step) == ill and not self._has_gone_back():
        leaves, structure = jax.tree.flatten(state.params)
        spot = (0,) * leaves[-1].ndim
        leaves[-1] = leaves[-1].at[spot].set(jnp.nan)
        params = jax.tree.unflatten(structure, leaves)
        state = state.replace(params=params)
      return take(state, window, batch)

    return step

  def _has_gone_back(self) -> bool:
    events = self._folder / 'train' / 'events.jsonl'
    lines = events.read_text().splitlines() if events.exists() else []
    return any(json.loads(line)['event'] == 'rollback' for line in lines)


class _IllModel:
  """A model whose loss is right and whose gradient is not, at some steps."""

  def __init__(self, model: Any, steps: list[int]):
    self._model, self._steps = model, jnp.asarray(steps)

  def __getattr__(self, name: str) -> Any:
    return getattr(self._model, name)

  def loss_fn(self, params, batch, rng, step, train, normalizers=None):
    ill = jnp.isin(step, self._steps)
    params = jax.tree.map(lambda x: _ill_gradient(x, ill), params)
    return self._model.loss_fn(
      params, batch, rng, step, train=train, normalizers=normalizers
    )


@jax.custom_vjp
def _ill_gradient(x: jax.Array, ill: jax.Array) -> jax.Array:
  """x; its gradient is not a number where `ill`."""
  del ill
  return x


def _backward(ill, gradient):
  return jnp.where(ill, jnp.nan, gradient), None


_ill_gradient.defvjp(lambda x, ill: (x, ill), _backward)
