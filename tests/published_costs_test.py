# SPDX-License-Identifier: Apache-2.0
"""Table 1 of Fast-ELECTRA, to its printed digits."""

import pytest

from metro_jax import published_costs as costs

VOCABULARY, LENGTH, TOKENS = 128_000, 512, 2048 * 512

# Width, main and auxiliary layers; millions of parameters of Table 2: main,
# the auxiliary's own, and with the embeddings that a frozen one needs too.
SIZES = {
  'base': (768, 12, 4, 184, 29, 127),
  'large': (1024, 24, 6, 434, 77, 208),
}
# GFLOPs of main, joint and frozen auxiliary, and of the two methods.
COMPUTE = {
  'base': (591.9, 398.6, 132.9, 990.5, 724.8, 0.73),
  'large': (1407.7, 653.9, 218.0, 2061.6, 1625.6, 0.79),
}
MEMORY = {
  'base': (23.0, 7.0, 0.25, 30.0, 23.3, 0.77),
  'large': (60.2, 14.4, 0.42, 74.6, 60.6, 0.81),
}


def totals(main, joint, frozen) -> tuple[float, ...]:
  ratio = (main + frozen) / (main + joint)
  return (main, joint, frozen, main + joint, main + frozen, ratio)


def printed(got: tuple[float, ...], expected: tuple[float, ...]) -> None:
  for x, y in zip(got, expected, strict=True):
    digits = len(str(y).split('.')[1])
    assert round(x, digits) == y


@pytest.mark.parametrize('size', SIZES)
def test_computation(size):
  width, *layers = SIZES[size][:3]
  main, auxiliary = (
    costs.fast_electra_flops(LENGTH, width, 4 * width, n, VOCABULARY) / 1e9
    for n in layers
  )
  joint = costs.TRAINING * auxiliary
  printed(totals(costs.TRAINING * main, joint, auxiliary), COMPUTE[size])


@pytest.mark.parametrize('size', SIZES)
def test_memory(size):
  width, deep, shallow, *millions = SIZES[size]
  main, own, whole = (n * 1e6 for n in millions)
  kept = {'tokens': TOKENS, 'width': width}
  parts = (
    costs.fast_electra_bytes(main, deep, **kept),
    costs.fast_electra_bytes(own, shallow, **kept),
    costs.fast_electra_bytes(whole),
  )
  printed(totals(*(x / 1e9 for x in parts)), MEMORY[size])
