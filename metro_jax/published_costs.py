# SPDX-License-Identifier: Apache-2.0
"""Costs as papers count them, to compare with what they print.

`metro_jax.flops` counts this code's matrix products. Fast-ELECTRA's Table 1
counts otherwise: embeddings as a product with one-hot rows, no output logits,
one sequence; memory of weights, optimizer and one activation a layer.
"""

TRAINING = 3  # A backward pass costs two forward passes.
TRAINED_BYTES, FROZEN_BYTES, ACTIVATION_BYTES = 20, 2, 2


def fast_electra_flops(
  length: int, width: int, mlp_dim: int, layers: int, vocabulary: int
) -> int:
  """Forward FLOPs of a sequence: Hoffmann et al. without the softmax.

  Args:
    length: tokens.
    width: of hidden states.
    mlp_dim: inside the feed-forward networks.
    layers: of the stack.
    vocabulary: number of ids.
  """
  embedding = 2 * length * vocabulary * width
  projections = 6 * length * width**2 + 2 * length * width**2
  attention = 4 * length**2 * width
  mlp = 4 * length * width * mlp_dim
  return embedding + layers * (projections + attention + mlp)


def fast_electra_bytes(
  parameters: int, layers: int = 0, tokens: int = 0, width: int = 0
) -> int:
  """Memory of a model that is trained, or of a frozen one.

  Args:
    parameters: of the model.
    layers: whose outputs are kept for the backward pass; 0 for a frozen model.
    tokens: of a batch.
    width: of hidden states.
  """
  if not layers:
    return FROZEN_BYTES * parameters
  activations = ACTIVATION_BYTES * layers * tokens * width
  return TRAINED_BYTES * parameters + activations
