# SPDX-License-Identifier: Apache-2.0
"""Model FLOPs by formula, and what machines can do.

Counted are the products of matrices, two operations per multiply-add:
projections, attention, feed-forward networks, heads. Not counted: lookups,
norms, softmax, position biases, sampling, and what rematerialisation computes
again; so model FLOPs utilisation (MFU) says how much of the machine went into
the model.
"""

from flax import linen as nn

from metro_jax.modules import EncoderDecoder, TransformerConfig

# A backward pass multiplies twice for each product of the forward pass: once
# for the gradient of each operand.
TRAINING = 3


def encoder(config: TransformerConfig, length: int) -> float:
  """Forward FLOPs of one row through a stack (embedding lookups are free)."""
  width, inner = config.embed_dim, config.num_heads * config.head_width
  projections = 4 * width * inner
  attention = 2 * length * inner
  mlp = 2 * width * config.mlp_dim
  layers = config.num_layers * (projections + attention + mlp)
  widen = 0 if config.table_width == width else config.table_width * width
  return 2.0 * length * (layers + widen)


def decoder(
  config: TransformerConfig, length: int, context: int, context_width: int
) -> float:
  """Forward FLOPs of one row through a stack that attends to a context too.

  Attention counts in full, as it is computed; half of the causal part is
  masked.
  """
  width, inner = config.embed_dim, config.num_heads * config.head_width
  # Query and output; products with keys and values.
  per_token = 2 * width * inner + 2 * context * inner
  cross = length * per_token + context * 2 * context_width * inner
  return encoder(config, length) + 2.0 * config.num_layers * cross


def main_model(main: nn.Module, length: int) -> float:
  """Forward FLOPs of one row; a decoder's row is as long as the encoder's."""
  total = encoder(main.config, length)
  if isinstance(main, EncoderDecoder):
    width = main.config.embed_dim
    total += decoder(main.decoder_config, length, length, width)
  return total


def lm_head(
  config: TransformerConfig, calls: int, projection: bool = True
) -> float:
  """Forward FLOPs of `calls` token predictions over the whole vocabulary."""
  width, table = config.embed_dim, config.table_width
  dense = width * table if projection or width != table else 0
  return 2.0 * calls * (dense + table * config.vocab_size)


def rtd_head(
  config: TransformerConfig, calls: int, hidden: bool = False
) -> float:
  """Forward FLOPs of `calls` detections."""
  width = config.embed_dim
  return 2.0 * calls * width * (width + 1 if hidden else 1)


# FLOP/s of one device in bfloat16 without sparsity, by vendors' data sheets.
# A key matches the start of a device kind, the longest key first.
_PEAKS = {
  'TPU v3': 61.5e12,  # A core, which is what JAX counts as a device there.
  'TPU v4': 275e12,
  'TPU v4 lite': 137e12,
  'TPU v5': 459e12,
  'TPU v5p': 459e12,
  'TPU v5 lite': 197e12,
  'TPU v5e': 197e12,
  'TPU v6 lite': 918e12,
  'TPU v6e': 918e12,
  'NVIDIA A100': 312e12,
  'NVIDIA H100': 989e12,
  'NVIDIA H100 PCIe': 756e12,
  'NVIDIA H100 NVL': 835e12,
  'NVIDIA H200': 989e12,
}


def peak(device_kind: str) -> float | None:
  """bfloat16 FLOP/s of `jax.Device.device_kind`; None if not known."""
  known = [kind for kind in _PEAKS if device_kind.startswith(kind)]
  return _PEAKS[max(known, key=len)] if known else None
