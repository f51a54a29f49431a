# SPDX-License-Identifier: Apache-2.0
"""Configuration of a Transformer, checked when it is made.

Frozen and hashable: a config is an attribute of modules and a static argument
of compiled functions. Dropout is not here: it is data (see dropout.py).
"""

import dataclasses

import jax.numpy as jnp

from metro_jax import ops
from metro_jax.errors import UserError

_DTYPES = ('float32', 'bfloat16')


def _check(good: bool, parameter: str, problem: str) -> None:
  if not good:
    raise UserError(f'{parameter}: {problem}')


def _one_of(value, choices: tuple, parameter: str) -> None:
  _check(value in choices, parameter, f'{value!r} is not one of {choices}')


@dataclasses.dataclass(frozen=True)
class PositionConfig:
  """How positions enter the model.

  Attributes:
    absolute: learned absolute position embeddings are added to the input.
    max_length: rows of the absolute position table.
    relative: bias on attention logits by key - query: 'metro' (signed buckets
      of COCO-LM, AMOS and METRO-LM), 't5' (T5's buckets) or None.
    num_buckets: buckets of the relative bias, both directions together.
    max_distance: distance from which all offsets share the last bucket.
    per_layer: every layer has its own relative bias (METRO-T5) instead of one
      per stack.
    reset_cls: the relative bias to and from [CLS] is replaced by two learned
      numbers per head (METRO-LM Table 1, after TUPE).
    neighbour_bias: at the start, how much more each head looks at one
      neighbour, added to its logit: the first at the token before, the second
      at the one after, the next two at distance 2, and so on. 0 is the papers'
      start. Steps of Adam are as large as the learning rate, so a bias takes
      thousands of them to tell neighbours apart; short runs start with 5.
    untied: absolute positions act through attention logits of their own
      instead of being added to the input (TUPE).
  """

  absolute: bool = True
  max_length: int = 512
  relative: str | None = 'metro'
  num_buckets: int = 32
  max_distance: int = 128
  per_layer: bool = False
  reset_cls: bool = False
  neighbour_bias: float = 0.0
  untied: bool = False

  def __post_init__(self):
    name = 'PositionConfig'
    _one_of(self.relative, ('metro', 't5', None), f'{name}.relative')
    _check(self.max_length > 0, f'{name}.max_length', 'must be at least 1')
    if self.relative is not None:
      _check(
        self.num_buckets >= 4 and self.num_buckets % 4 == 0,
        f'{name}.num_buckets',
        f'{self.num_buckets} is not a multiple of 4, which two directions'
        ' with exact and logarithmic halves need',
      )
      _check(
        self.max_distance > self.num_buckets // 4 + 1,
        f'{name}.max_distance',
        f'{self.max_distance} must be over num_buckets / 4 + 1'
        f' = {self.num_buckets // 4 + 1}',
      )
    _check(
      not self.per_layer or self.relative is not None,
      f'{name}.per_layer',
      "needs a relative bias: set PositionConfig.relative to 'metro' or 't5'",
    )
    _check(
      not self.reset_cls or self.relative is not None or self.untied,
      f'{name}.reset_cls',
      'resets a bias that is not there: set PositionConfig.relative or untied',
    )
    _check(
      not self.neighbour_bias or self.relative is not None,
      f'{name}.neighbour_bias',
      "is a start of the relative bias: set PositionConfig.relative to 'metro'"
      " or 't5', or neighbour_bias to 0",
    )


@dataclasses.dataclass(frozen=True)
class TransformerConfig:
  """Sizes and numerics of a Transformer stack and its embeddings.

  Attributes:
    vocab_size: rows of the token table.
    embed_dim: width of hidden states.
    num_heads: attention heads.
    head_dim: width of a head; None is embed_dim / num_heads.
    mlp_dim: width inside the feed-forward network.
    num_layers: blocks of the stack.
    activation: 'gelu' (exact, by erf) or 'relu'.
    norm_placement: 'post' (LayerNorm after each residual sum) or 'pre'.
    norm_epsilon: added to the variance in LayerNorm.
    positions: how positions enter.
    dtype: of activations and matrix products, 'bfloat16' or 'float32';
      parameters, LayerNorm, softmax and logits are float32.
    init_stddev: of the normal initializer of all weights and tables.
    scaled_init: feed-forward weights of layer l = 0, 1, ... start smaller by
      sqrt(2 (l + 1)) (METRO-LM equation 10).
    scan_layers: compile one layer and loop over it (short compile times).
    remat: what the backward pass computes again: 'none', 'dots' (all but
      matrix products with weights) or 'full' (everything inside a layer).
    layer_norm_backend: 'auto', 'xla' or 'pallas'; likewise the next three.
    attention_backend: of attention as one op.
    softmax_backend: of softmax and dropout, where attention runs as XLA.
    vocab_backend: of the language-model loss.
    table_dim: width of the token and position tables where it differs from
      embed_dim (ELECTRA's small models); None is embed_dim.
    norm: 'layer' (LayerNorm) or 'rms' (T5: neither mean nor bias).
    use_bias: biases of the blocks' linear maps; T5 has none.
    embed_norm: a norm after the embeddings; T5 has none.
  """

  vocab_size: int = 32768
  embed_dim: int = 768
  num_heads: int = 12
  head_dim: int | None = None
  mlp_dim: int = 3072
  num_layers: int = 12
  activation: str = 'gelu'
  norm_placement: str = 'post'
  norm_epsilon: float = 1e-5
  positions: PositionConfig = PositionConfig()
  dtype: str = 'bfloat16'
  init_stddev: float = 0.02
  scaled_init: bool = False
  scan_layers: bool = False
  remat: str = 'none'
  layer_norm_backend: str = 'auto'
  attention_backend: str = 'auto'
  softmax_backend: str = 'auto'
  vocab_backend: str = 'auto'
  table_dim: int | None = None
  norm: str = 'layer'
  use_bias: bool = True
  embed_norm: bool = True

  def __post_init__(self):
    name = 'TransformerConfig'
    for field in (
      'vocab_size',
      'embed_dim',
      'num_heads',
      'mlp_dim',
      'num_layers',
    ):
      value = getattr(self, field)
      _check(value > 0, f'{name}.{field}', f'{value} must be at least 1')
    for field in ('head_dim', 'table_dim'):
      value = getattr(self, field)
      _check(
        value is None or value > 0, f'{name}.{field}', f'{value} is not a width'
      )
    _check(
      self.head_dim is not None or self.embed_dim % self.num_heads == 0,
      f'{name}.num_heads',
      f'{self.num_heads} heads do not divide embed_dim {self.embed_dim}; change'
      ' one of them or set TransformerConfig.head_dim',
    )
    _one_of(self.activation, ('gelu', 'relu'), f'{name}.activation')
    _one_of(self.norm_placement, ('post', 'pre'), f'{name}.norm_placement')
    _one_of(self.norm, ('layer', 'rms'), f'{name}.norm')
    _one_of(self.dtype, _DTYPES, f'{name}.dtype')
    _one_of(self.remat, ('none', 'dots', 'full'), f'{name}.remat')
    _check(self.norm_epsilon > 0, f'{name}.norm_epsilon', 'must be over 0')
    _check(self.init_stddev >= 0, f'{name}.init_stddev', 'must not be negative')
    for op in ('layer_norm', 'attention', 'softmax', 'vocab'):
      field = f'{op}_backend'
      _one_of(getattr(self, field), ops.BACKENDS, f'{name}.{field}')

  @property
  def head_width(self) -> int:
    """Width of one attention head."""
    return self.head_dim or self.embed_dim // self.num_heads

  @property
  def table_width(self) -> int:
    """Width of the token and position tables."""
    return self.table_dim or self.embed_dim

  @property
  def compute_dtype(self) -> jnp.dtype:
    """Dtype of activations."""
    return jnp.dtype(self.dtype)
