# SPDX-License-Identifier: Apache-2.0
"""Ops of METRO models as pure functions on arrays; needs only JAX.

Each op is a folder: `reference.py` is its definition in plain JAX, kernels
stand beside it by platform, and the public function picks one by `backend`
('auto', 'xla', 'pallas'; see backend.py).
"""

from pallas_kernels import attention as _attention
from pallas_kernels import backend as _backend
from pallas_kernels import layer_norm as _layer_norm
from pallas_kernels import softmax_dropout as _softmax_dropout
from pallas_kernels import vocab_cross_entropy as _vocab_cross_entropy
from pallas_kernels.attention import PositionBias as PositionBias
from pallas_kernels.attention import attention as attention
from pallas_kernels.backend import BACKENDS as BACKENDS
from pallas_kernels.dropout import dropout as dropout
from pallas_kernels.layer_norm import layer_norm as layer_norm
from pallas_kernels.matmul import matmul as matmul
from pallas_kernels.sampling import categorical as categorical
from pallas_kernels.sampling import gumbel as gumbel
from pallas_kernels.softmax_dropout import softmax_dropout as softmax_dropout
from pallas_kernels.vocab_cross_entropy import Draw as Draw
from pallas_kernels.vocab_cross_entropy import (
  vocab_cross_entropy as vocab_cross_entropy,
)
from pallas_kernels.vocab_cross_entropy import vocab_logits as vocab_logits

_OPS = {
  'attention': _attention,
  'layer_norm': _layer_norm,
  'softmax_dropout': _softmax_dropout,
  'vocab_cross_entropy': _vocab_cross_entropy,
}


def wants_kernel(op: str, backend: str) -> bool:
  """Whether `backend` asks for a kernel that this platform has."""
  return _backend.wants_kernel(op, backend, _OPS[op].KERNELS)
