# SPDX-License-Identifier: Apache-2.0
"""Which implementation of an op runs.

'xla' is the op's `reference.py`. 'pallas' is its kernel for the platform, or
`NotImplementedError` with the reason. 'auto' is the kernel where there is one
that takes these arguments, and the reference everywhere else.
"""

from collections.abc import Callable, Mapping

import jax

BACKENDS = ('auto', 'xla', 'pallas')


def call(
  op: str,
  backend: str,
  reference: Callable,
  kernels: Mapping[str, Callable],
  *args,
  **kwargs,
):
  """Calls the implementation of `op` that `backend` names.

  Args:
    op: name of the op, for error messages.
    backend: 'auto', 'xla' or 'pallas'.
    reference: the plain JAX implementation.
    kernels: platform ('tpu', 'gpu') to kernel. A kernel raises
      NotImplementedError for arguments that it does not support.
    *args: handed to the implementation.
    **kwargs: handed to the implementation.

  Returns:
    What the implementation returns.
  """
  if backend not in BACKENDS:
    raise ValueError(f'{op}: backend {backend!r} is not one of {BACKENDS}')
  if backend == 'xla':
    return reference(*args, **kwargs)
  platform = jax.default_backend()
  kernel = kernels.get(platform)
  if backend == 'pallas':
    if kernel is None:
      there = ', '.join(sorted(kernels)) or 'no platform'
      raise NotImplementedError(
        f'{op}: no Pallas kernel for platform {platform!r} (there is one for'
        f" {there}); use backend 'auto' or 'xla'"
      )
    return kernel(*args, **kwargs)
  if kernel is not None:
    try:
      return kernel(*args, **kwargs)
    except NotImplementedError:
      pass
  return reference(*args, **kwargs)
