# SPDX-License-Identifier: Apache-2.0
"""METRO-LM's Table 4 as a compiler sees it; a script.

Prints a JSON list: bytes on one of 256 devices for each ZeRO stage. What is
compiled is the update of XXL's state in the paper's types: 2 bytes a weight, 2
a gradient, 16 in the optimizer (fp32 weights, two moments, fp32 gradients),
laid out by this project's partitioner. Nothing is computed.
"""

import json
import os
import sys

DEVICES = 256


def update(params, gradients, slots):
  """One step of Adam in mixed precision."""
  import jax
  import jax.numpy as jnp

  def one(g, weight, first, second, held):
    held = held + g.astype(jnp.float32)
    first = 0.9 * first + 0.1 * held
    second = 0.98 * second + 0.02 * held**2
    weight = weight - 1e-4 * first / (jnp.sqrt(second) + 1e-6)
    return weight, first, second, jnp.zeros_like(held)

  names = ('weight', 'first', 'second', 'held')
  new = jax.tree.map(one, gradients, *(slots[n] for n in names))
  new = jax.tree.transpose(
    jax.tree.structure(gradients), jax.tree.structure((0,) * 4), new
  )
  params = jax.tree.map(lambda w, p: w.astype(p.dtype), new[0], params)
  return params, dict(zip(names, new, strict=True))


def main(recipe: str) -> list[int]:
  import jax
  import jax.numpy as jnp
  import recipe_files

  from metro_jax import training
  from metro_jax.training import initialization

  plan = recipe_files.plan(recipe)
  batch = plan.batch(0, slice(0, DEVICES))
  boxed = jax.eval_shape(lambda: plan.model.init(jax.random.key(0), batch))
  params = initialization.unbox(boxed)

  def like(dtype, shardings):
    return jax.tree.map(
      lambda x, s: jax.ShapeDtypeStruct(x.shape, dtype, sharding=s),
      params,
      shardings,
    )

  out = []
  for stage in range(4):
    partitioner = training.Partitioner(zero_stage=stage)
    slots = dict.fromkeys(('weight', 'first', 'second', 'held'), params)
    shardings = partitioner.state_shardings(
      boxed, training.TrainState(jnp.int32(0), params, slots)
    )
    gradients = partitioner.gradient_shardings(boxed) or shardings.params
    arguments = (
      like(jnp.bfloat16, shardings.params),
      like(jnp.bfloat16, gradients),
      {k: like(jnp.float32, s) for k, s in shardings.opt_state.items()},
    )
    # Old weights are written over, not read; they are held all the same.
    jitted = jax.jit(update, donate_argnums=(0, 2), keep_unused=True)
    analysis = jitted.lower(*arguments).compile().memory_analysis()
    out.append(analysis.argument_size_in_bytes)
  return out


if __name__ == '__main__':
  os.environ['JAX_PLATFORMS'] = 'cpu'
  os.environ['XLA_FLAGS'] = (
    f'--xla_force_host_platform_device_count={DEVICES}'
    ' --xla_backend_optimization_level=0'
  )
  print(json.dumps(main(sys.argv[1])))
