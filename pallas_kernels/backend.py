# SPDX-License-Identifier: Apache-2.0
"""Which implementation of an op runs.

'xla' is the op's `reference.py`. 'pallas' is its kernel for the platform, or
`NotImplementedError` with the reason. 'auto' is the kernel where the op's
kernel for this platform is in `AUTO` and takes these arguments, and the
reference everywhere else.
"""

import contextlib
import contextvars
import dataclasses
from collections.abc import Callable, Iterator, Mapping

import jax
import jax.numpy as jnp

BACKENDS = ('auto', 'xla', 'pallas')

# (op, platform) pairs whose kernel was checked against float64 and timed on
# that hardware: only these replace XLA unasked. docs/kernels.md says how a
# pair gets in.
AUTO: frozenset[tuple[str, str]] = frozenset()


@dataclasses.dataclass(frozen=True)
class Target:
  """What kernels are built for.

  Attributes:
    platform: 'cpu', 'gpu' or 'tpu'.
    interpret: whether kernels run as plain JAX instead of being compiled.
  """

  platform: str
  interpret: bool = False


_TARGET: contextvars.ContextVar[Target | None] = contextvars.ContextVar(
  'target', default=None
)


@contextlib.contextmanager
def target(platform: str, interpret: bool = False) -> Iterator[None]:
  """Builds kernels for another platform than the one that is there.

  For tests, and for compiling ahead of time. What is traced inside keeps the
  choice; what was traced before, and is cached, does not see it.

  Args:
    platform: 'cpu', 'gpu' or 'tpu'.
    interpret: run that platform's kernels here, as plain JAX.

  Yields:
    Nothing.
  """
  token = _TARGET.set(Target(platform, interpret))
  try:
    yield
  finally:
    _TARGET.reset(token)


def current() -> Target:
  """The target of kernels traced now."""
  return _TARGET.get() or Target(jax.default_backend())


def wants_kernel(
  op: str, backend: str, kernels: Mapping[str, Callable]
) -> bool:
  """Whether `call` would try a kernel, for arguments that it supports."""
  here = current().platform
  asked = backend == 'pallas' or (backend == 'auto' and (op, here) in AUTO)
  return asked and here in kernels


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
    kernels: platform ('tpu', 'gpu') to kernel, which takes the reference's
      arguments and `interpret`. It raises NotImplementedError for arguments
      that it does not support.
    *args: handed to the implementation.
    **kwargs: handed to the implementation.

  Returns:
    What the implementation returns.
  """
  if backend not in BACKENDS:
    raise ValueError(f'{op}: backend {backend!r} is not one of {BACKENDS}')
  here = current()
  kernel = kernels.get(here.platform)
  if backend == 'pallas':
    if kernel is None:
      there = ', '.join(sorted(kernels)) or 'no platform'
      raise NotImplementedError(
        f'{op}: no Pallas kernel for platform {here.platform!r} (there is one'
        f" for {there}); use backend 'auto' or 'xla'"
      )
    return kernel(*args, interpret=here.interpret, **kwargs)
  if wants_kernel(op, backend, kernels):
    try:
      return kernel(*args, interpret=here.interpret, **kwargs)
    except NotImplementedError:
      pass
  return reference(*args, **kwargs)


def require(condition: bool, reason: str) -> None:
  """Raises NotImplementedError: a kernel does not take these arguments."""
  if not condition:
    raise NotImplementedError(f"{reason}; use backend 'auto' or 'xla'")


def require_dtype(op: str, *arrays: jax.Array) -> None:
  """Kernels take float32 and bfloat16."""
  for x in arrays:
    require(
      x.dtype in (jnp.float32, jnp.bfloat16),
      f'{op}: no Pallas kernel for {x.dtype}, only for float32 and bfloat16',
    )
