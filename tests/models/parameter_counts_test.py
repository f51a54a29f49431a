# SPDX-License-Identifier: Apache-2.0
"""METRO-LM Table 3 from shapes alone: nothing is allocated."""

import pytest

from metro_jax import models, modules, pretrain

VOCAB, LENGTH = 128_000, 512

# Size: width, heads, main layers, auxiliary layers, buckets; then published
# millions of main parameters, and computed ones of the auxiliary's own. (The
# paper's own numbers for the large and XL auxiliary do not follow from the
# depths that it states.)
SIZES = {
  'base': (768, 12, 12, 4, 64, 184, 29.5),
  'large': (1024, 16, 24, 6, 128, 434, 77.3),
  'xl': (1536, 24, 48, 8, 512, 1_557.4, 229.9),
  'xxl': (2560, 40, 64, 8, 512, 5_364.5, 637.4),
}
PUBLISHED = {'base': 184, 'large': 434, 'xl': 1_600, 'xxl': 5_400}


def model(size: str, scan: bool = True) -> models.PretrainingModel:
  width, heads, main, auxiliary, buckets, *_ = SIZES[size]

  def config(layers: int) -> modules.TransformerConfig:
    return modules.TransformerConfig(
      vocab_size=VOCAB,
      embed_dim=width,
      num_heads=heads,
      mlp_dim=4 * width,
      num_layers=layers,
      scan_layers=scan,
      scaled_init=True,
      positions=modules.PositionConfig(
        max_length=LENGTH, num_buckets=buckets, max_distance=512, reset_cls=True
      ),
    )

  return models.PretrainingModel(
    pretrain.Pretrainer(
      config(main),
      main=modules.Encoder(config(main)),
      auxiliary=pretrain.Auxiliary(config(auxiliary)),
    )
  )


@pytest.mark.parametrize('size', SIZES)
def test_table_3(size):
  width, heads, main, auxiliary, buckets, *computed = SIZES[size]
  counts = model(size).parameter_counts()
  layer = 12 * width**2 + 13 * width
  relative = (buckets + 2) * heads
  own = LENGTH * width + 2 * width  # Positions, embedding norm.
  head = width**2 + 3 * width + VOCAB
  assert counts == {
    'main': VOCAB * width + own + main * layer + relative,
    'heads': width + 1 + VOCAB,
    'auxiliary': own + auxiliary * layer + relative + head,
    'total': sum(counts[part] for part in ('main', 'heads', 'auxiliary')),
  }
  millions = [counts[part] / 1e6 for part in ('main', 'auxiliary')]
  assert millions == pytest.approx(computed, rel=0.002)
  # "1.6B" has two digits: XL's own 1.557 rounds to it.
  printed = PUBLISHED[size]
  digits = 0.01 if size != 'xl' else 0.05 / 1.6
  assert millions[0] == pytest.approx(printed, rel=digits)


def test_scan_and_loop_have_as_many():
  scan, loop = (model('base', scan).parameter_counts() for scan in (1, 0))
  assert scan == loop
