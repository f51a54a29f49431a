# SPDX-License-Identifier: Apache-2.0
"""Table 1 of Fast-ELECTRA, counted as its authors counted it.

  python -m metro_jax.published_costs

`metro_jax.flops` counts the matrix products of this code. The paper's table
counts otherwise: one sequence, embeddings as a product with one-hot rows, no
output logits, no softmax; memory of weights and optimizer, and of one
activation a layer for the whole batch.
"""

import dataclasses

LENGTH, BATCH_SIZE, VOCABULARY = 512, 2048, 128_000
TRAINING = 3  # A backward pass costs two forward passes.
TRAINED_BYTES, FROZEN_BYTES, ACTIVATION_BYTES = 20, 2, 2


@dataclasses.dataclass(frozen=True)
class Size:
  """A row of the paper's Table 2.

  Attributes:
    width: of hidden states.
    layers: of the main model.
    auxiliary_layers: of the auxiliary.
    parameters: of the main model.
    auxiliary_own: of the auxiliary, without the table that it shares.
    auxiliary_whole: with it, which a frozen one needs.
  """

  width: int
  layers: int
  auxiliary_layers: int
  parameters: float
  auxiliary_own: float
  auxiliary_whole: float


SIZES = {
  'base': Size(768, 12, 4, 184e6, 29e6, 127e6),
  'large': Size(1024, 24, 6, 434e6, 77e6, 208e6),
}


@dataclasses.dataclass(frozen=True)
class Cost:
  """What a step takes, in one unit.

  Attributes:
    main: of the main model.
    joint: of an auxiliary that is trained with it.
    frozen: of an auxiliary that is not.
  """

  main: float
  joint: float
  frozen: float

  @property
  def totals(self) -> tuple[float, float]:
    """Of joint training, and of Fast-ELECTRA."""
    return self.main + self.joint, self.main + self.frozen


def forward_flops(width: int, layers: int) -> int:
  """Of one sequence; feed-forward networks are four times as wide."""
  embedding = 2 * LENGTH * VOCABULARY * width
  projections = 8 * LENGTH * width**2
  attention = 4 * LENGTH**2 * width
  mlp = 16 * LENGTH * width**2
  return embedding + layers * (projections + attention + mlp)


def computation(size: Size) -> Cost:
  """GFLOPs of a sequence."""
  main = forward_flops(size.width, size.layers) / 1e9
  auxiliary = forward_flops(size.width, size.auxiliary_layers) / 1e9
  return Cost(TRAINING * main, TRAINING * auxiliary, auxiliary)


def memory(size: Size) -> Cost:
  """GB of the whole batch."""

  def trained(parameters: float, layers: int) -> float:
    activations = ACTIVATION_BYTES * layers * BATCH_SIZE * LENGTH * size.width
    return (TRAINED_BYTES * parameters + activations) / 1e9

  return Cost(
    trained(size.parameters, size.layers),
    trained(size.auxiliary_own, size.auxiliary_layers),
    FROZEN_BYTES * size.auxiliary_whole / 1e9,
  )


def main() -> None:
  """Prints the table."""
  heads = ('main', 'joint', 'frozen', 'all joint', 'all frozen', 'ratio')
  print(f'{"":20}' + ''.join(f'{head:>12}' for head in heads))
  for unit, count in (('GFLOPs', computation), ('GB', memory)):
    for name, size in SIZES.items():
      cost = count(size)
      joint, frozen = cost.totals
      cells = (cost.main, cost.joint, cost.frozen, joint, frozen)
      row = ''.join(f'{cell:12.2f}' for cell in cells)
      print(f'{name + ", " + unit:20}{row}{frozen / joint:12.2f}')


if __name__ == '__main__':
  main()
