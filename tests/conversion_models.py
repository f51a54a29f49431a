# SPDX-License-Identifier: Apache-2.0
"""Tiny models with random parameters, and what they compute."""

import jax
import jax.numpy as jnp
import numpy as np

from metro_jax.conversion import model_dirs
from metro_jax.pretrain import MaskedTokens

VOCAB, LENGTH, ROWS = 96, 12, 3


def random_params(model, seed: int = 0) -> dict[str, np.ndarray]:
  """Numbers far from any initial values, by name."""
  rng = np.random.default_rng(seed)
  return {
    name: (
      rng.normal(1.0 if name.endswith('/scale') else 0.0, 0.3, shape).astype(
        np.float32
      )
    )
    for name, shape in model_dirs.shapes(model).items()
  }


def tokens(seed: int = 0) -> np.ndarray:
  """int32 [ROWS, LENGTH]: rows of different lengths, padding 0."""
  rng = np.random.default_rng(seed)
  ids = rng.integers(5, VOCAB, (ROWS, LENGTH)).astype(np.int32)
  for row, size in enumerate((LENGTH, LENGTH - 1, LENGTH // 2)):
    ids[row, size:] = 0
  return ids


def encoder_batch(ids: np.ndarray) -> dict[str, np.ndarray]:
  segments = (ids != 0).astype(np.int32)
  return {
    'encoder_input_tokens': ids,
    'encoder_target_tokens': ids,
    'encoder_loss_weights': segments.astype(np.float32),
    'encoder_segment_ids': segments,
    'encoder_positions': segments * np.arange(ids.shape[1], dtype=np.int32),
  }


def _answers(pretrainer, batch) -> dict[str, jax.Array]:
  """All logits that a Pretrainer has, at every position."""
  masked = MaskedTokens.from_batch(batch)
  outputs = pretrainer.encode(masked.tokens, masked, train=False)
  h = outputs.encoded
  out = {'encoded': h}
  names = {o.name for o in pretrainer.objectives}
  if 'rtd' in names:
    out['rtd'] = pretrainer.rtd_logits(h)
  if 'clm' in names:
    table = pretrainer.embedder.table()
    out['clm'] = pretrainer.lm_head(outputs.top, table).logits()
  if pretrainer.auxiliary is not None:
    proposal = pretrainer.propose(masked)
    heads = [masked.spread(x.logits()) for x in proposal.heads]
    out['mlm'] = jnp.stack(heads)
    if proposal.mixture is not None:
      out['mixture'] = proposal.mixture
  return out


def pretrainer_answers(model, params, ids) -> dict[str, np.ndarray]:
  # Not compiled as a whole: layers and tests share what their ops compile.
  tree = {'params': model_dirs.tree_of(params)}
  answers = model.pretrainer.apply(tree, encoder_batch(ids), method=_answers)
  return jax.device_get(answers)


def seq2seq_logits(model, params, inputs, targets) -> np.ndarray:
  """[rows, target length, vocabulary]; the decoder reads `targets` itself."""
  batch = {
    'encoder_input_tokens': inputs,
    'decoder_target_tokens': targets,
    'decoder_input_tokens': targets,
  }
  tree = {'params': model_dirs.tree_of(params)}
  return jax.device_get(model.text_to_text.apply(tree, batch).logits())
