# SPDX-License-Identifier: Apache-2.0
"""Counting collectives: by hand in a text, and in what XLA really emits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from metro_jax.training import collectives

# A loop of 6 around an all-gather, as XLA writes one, and two others.
TEXT = """HloModule jit_step

%add (a: f32[], b: f32[]) -> f32[] {
  ROOT %c = f32[] add(f32[] %a, f32[] %b)
}

%body.1 (p: (s32[], bf16[4,8])) -> (s32[], bf16[4,8]) {
  %x = bf16[4,8]{1,0} get-tuple-element(%p), index=1
  %g = bf16[16,8]{1,0} all-gather(%x), replica_groups=[2,4]<=[8], dimensions={0}
  ROOT %t = (s32[], bf16[4,8]) tuple(%i, %x)
}

%condition.1 (p: (s32[], bf16[4,8])) -> pred[] {
  ROOT %l = pred[] compare(%i, %n), direction=LT
}

ENTRY %main (x: f32[32]) -> f32[32] {
  %w = (s32[], bf16[4,8]) while(%t0), condition=%condition.1, body=%body.1, \
backend_config={"known_trip_count":{"n":"6"},"known_init_step":{"init":"0"}}
  %r = (f32[32]{0}, f32[2,2]{1,0}) all-reduce(%x, %y), \
replica_groups={{0,1,2,3,4,5,6,7}}, to_apply=%add
  %s = f32[4]{0} reduce-scatter(%x), replica_groups=[1,8]<=[8], to_apply=%add
  ROOT %y = f32[32] copy(%x)
}
"""


def test_a_text_by_hand():
  found = {c.kind: c for c in collectives.find(TEXT, 8)}
  gather = 6 * 16 * 8 * 2
  assert found['all-gather'] == collectives.Collective(
    'all-gather', 6, gather, gather * 3 // 4
  )
  reduce = (32 + 4) * 4
  assert found['all-reduce'] == collectives.Collective(
    'all-reduce', 1, reduce, 2 * reduce * 7 // 8
  )
  scatter = 8 * 4 * 4  # The whole: eight parts of four numbers.
  assert found['reduce-scatter'] == collectives.Collective(
    'reduce-scatter', 1, scatter, scatter * 7 // 8
  )
  assert len(found) == 3


def test_started_and_done_count_once():
  """CUDA's operations begin and end; the beginning names both buffers."""
  text = (
    'ENTRY %main (x: f32[8]) -> f32[64] {\n'
    '  %s = (f32[8]{0}, f32[64]{0}) all-gather-start(%x), dimensions={0}\n'
    '  ROOT %d = f32[64]{0} all-gather-done(%s)\n'
    '}\n'
  )
  (found,) = collectives.find(text, 8)
  assert (found.count, found.size, found.moved) == (1, 64 * 4, 64 * 4 * 7 // 8)


@pytest.mark.parametrize('steps', [1, 5])
def test_what_xla_emits(steps):
  """A scan over a product whose contraction is split: one sum a step."""
  auto = (jax.sharding.AxisType.Auto,)
  mesh = jax.make_mesh((8,), ('data',), axis_types=auto)

  def run(x, w):
    def body(x, _):
      y = jax.lax.with_sharding_constraint(x @ w, NamedSharding(mesh, P()))
      split = NamedSharding(mesh, P(None, 'data'))
      return jax.lax.with_sharding_constraint(jnp.tanh(y), split), None

    return jax.lax.scan(body, x, None, length=steps)[0]

  split = NamedSharding(mesh, P(None, 'data'))
  rows = NamedSharding(mesh, P('data', None))
  compiled = (
    jax.jit(run, in_shardings=(split, rows), out_shardings=split)
    .lower(
      jax.ShapeDtypeStruct((16, 64), np.float32),
      jax.ShapeDtypeStruct((64, 64), np.float32),
    )
    .compile()
  )
  (found,) = collectives.find(compiled.as_text(), 8)
  size = 16 * 64 * 4
  assert found.kind == 'all-reduce'
  assert (found.count, found.size) == (steps, steps * size)
  assert found.moved == steps * 2 * size * 7 // 8
