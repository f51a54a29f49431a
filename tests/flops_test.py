# SPDX-License-Identifier: Apache-2.0
import pytest

from metro_jax import flops
from metro_jax.modules import TransformerConfig

BASE = TransformerConfig(
  vocab_size=128_000, embed_dim=768, num_heads=12, mlp_dim=3072, num_layers=12
)
LARGE = TransformerConfig(
  vocab_size=128_000, embed_dim=1024, num_heads=16, mlp_dim=4096, num_layers=24
)


def test_encoder_by_hand():
  config = TransformerConfig(
    vocab_size=50, embed_dim=8, num_heads=2, mlp_dim=20, num_layers=3
  )
  length = 5
  per_token = (
    4 * (8 * 8)  # Query, key, value, out.
    + 2 * (length * 8)  # Logits, weighted values.
    + 2 * (8 * 20)  # Feed-forward network.
  )
  assert flops.encoder(config, length) == 2 * length * 3 * per_token


def test_heads_by_hand():
  config = TransformerConfig(
    vocab_size=50, embed_dim=8, num_heads=2, table_dim=6
  )
  assert flops.lm_head(config, 7) == 2 * 7 * (8 * 6 + 6 * 50)
  same = TransformerConfig(vocab_size=50, embed_dim=8, num_heads=2)
  assert flops.lm_head(same, 7) == 2 * 7 * (8 * 8 + 8 * 50)
  assert flops.lm_head(same, 7, projection=False) == 2 * 7 * 8 * 50
  assert flops.rtd_head(same, 7) == 2 * 7 * 8


@pytest.mark.parametrize(
  'config, layers, printed',
  [
    (BASE, 12, 591.90),
    (BASE, 4, 398.63),
    (LARGE, 24, 1407.68),
    (LARGE, 6, 653.91),
  ],
)
def test_fast_electra_table_1(config, layers, printed):
  """Its GFLOPs of training on one sequence of 512.

  They count the embedding as a dense product, and no output logits.
  """
  depth = config.num_layers
  encoder = flops.encoder(config, 512) * layers / depth
  embedding = 2 * 512 * config.vocab_size * config.embed_dim
  total = flops.TRAINING * (encoder + embedding) / 1e9
  assert round(total, 2) == printed


@pytest.mark.parametrize(
  'kind, peak',
  [
    ('TPU v4', 275e12),
    ('TPU v5 lite', 197e12),
    ('TPU v5p', 459e12),
    ('TPU v6 lite', 918e12),
    ('NVIDIA H100 80GB HBM3', 989e12),
    ('NVIDIA H100 PCIe', 756e12),
    ('NVIDIA H200', 989e12),
    ('NVIDIA A100-SXM4-80GB', 312e12),
    ('cpu', None),
    ('something new', None),
  ],
)
def test_peak(kind, peak):
  assert flops.peak(kind) == peak
