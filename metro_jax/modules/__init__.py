# SPDX-License-Identifier: Apache-2.0
"""Transformer architecture: no losses, no batch keys, no masking."""

from metro_jax.modules.attention import Attention as Attention
from metro_jax.modules.attention import DecodeStep as DecodeStep
from metro_jax.modules.block import Block as Block
from metro_jax.modules.config import PositionConfig as PositionConfig
from metro_jax.modules.config import TransformerConfig as TransformerConfig
from metro_jax.modules.dense import Dense as Dense
from metro_jax.modules.dense import Table as Table
from metro_jax.modules.dropout import Dropout as Dropout
from metro_jax.modules.embeddings import Embedder as Embedder
from metro_jax.modules.encoder_decoder import Decoder as Decoder
from metro_jax.modules.encoder_decoder import EncoderDecoder as EncoderDecoder
from metro_jax.modules.encoder_decoder import MainOutput as MainOutput
from metro_jax.modules.encoder_decoder import shift_right as shift_right
from metro_jax.modules.heads import LMHead as LMHead
from metro_jax.modules.heads import RTDHead as RTDHead
from metro_jax.modules.heads import SequenceHead as SequenceHead
from metro_jax.modules.mlp import MLP as MLP
from metro_jax.modules.mlp import gelu as gelu
from metro_jax.modules.norm import LayerNorm as LayerNorm
from metro_jax.modules.positions import RelativeBias as RelativeBias
from metro_jax.modules.positions import metro_bucket as metro_bucket
from metro_jax.modules.positions import t5_bucket as t5_bucket
from metro_jax.modules.stack import Stack as Stack
from metro_jax.modules.stack import stack_layers as stack_layers
from metro_jax.modules.stack import unstack_layers as unstack_layers
from metro_jax.modules.transformer import Encoder as Encoder
from metro_jax.modules.transformer import EncoderOutput as EncoderOutput
from metro_jax.ops import PositionBias as PositionBias
from metro_jax.ops import TokenLogits as TokenLogits
