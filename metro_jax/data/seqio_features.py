# SPDX-License-Identifier: Apache-2.0
"""From SeqIO's examples to the batches that models take."""

from typing import Any

import seqio

from metro_jax.data import vocabularies


def encoder_converter(**arguments: Any) -> seqio.FeatureConverter:
  """Packs or pads 'inputs' (masked) and 'targets' (original)."""
  return seqio.EncoderFeatureConverter(mask_id=vocabularies.MASK, **arguments)
