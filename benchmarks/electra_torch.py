# SPDX-License-Identifier: Apache-2.0
"""The joint ELECTRA step with Hugging Face transformers and PyTorch.

What `training_step.py` compares with. Two ways to write it: `plain`, with
logits at every position, as `ElectraForMaskedLM` gives them; and `gathered`,
which takes the masked positions out before the LM head.
"""

from collections.abc import Sequence

import numpy as np
import torch
import transformers

from benchmarks.shapes import Shape

RTD_WEIGHT = 50.0
CLIP_NORM = 1.0


class ElectraStep:
  """A generator and a discriminator that share embeddings, and their AdamW."""

  def __init__(
    self, shape: Shape, device: str, dtype: str, gathered: bool, compiled: bool
  ):
    """Makes the models on a device; `dtype` other than float32 is autocast."""
    torch.manual_seed(0)
    self.device, self.gathered = device, gathered
    self.dtype = getattr(torch, dtype)
    auxiliary = transformers.ElectraForMaskedLM(
      _config(shape, shape.auxiliary_layers)
    )
    main = transformers.ElectraForPreTraining(_config(shape, shape.layers))
    auxiliary.electra.embeddings = main.electra.embeddings
    auxiliary.tie_weights()
    self.models = torch.nn.ModuleList([auxiliary, main]).to(device).train()
    self.optimizer = torch.optim.AdamW(
      self.models.parameters(), lr=1e-4, fused=True
    )
    self.loss = torch.compile(self._loss) if compiled else self._loss

  def batches(
    self, batches: Sequence[dict[str, np.ndarray]]
  ) -> list[dict[str, torch.Tensor]]:
    """Batches as this step takes them, on the device."""
    made = []
    for batch in batches:
      original = torch.from_numpy(batch['encoder_target_tokens']).long()
      masked = torch.from_numpy(batch['encoder_loss_weights'] > 0)
      tokens = torch.from_numpy(batch['encoder_input_tokens']).long()
      tensors = {'tokens': tokens, 'original': original, 'masked': masked}
      made.append({k: v.to(self.device) for k, v in tensors.items()})
    return made

  def __call__(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """One update; the loss."""
    with torch.autocast(
      torch.device(self.device).type,
      self.dtype,
      enabled=self.dtype != torch.float32,
    ):
      loss = self.loss(**batch)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(self.models.parameters(), CLIP_NORM)
    self.optimizer.step()
    self.optimizer.zero_grad(set_to_none=True)
    return loss.detach()

  def wait(self, loss: torch.Tensor) -> float:
    """Waits for a step that was started; its loss."""
    return loss.item()

  def _loss(
    self, tokens: torch.Tensor, original: torch.Tensor, masked: torch.Tensor
  ) -> torch.Tensor:
    auxiliary, main = self.models
    labels = original[masked]
    if self.gathered:
      hidden = auxiliary.electra(tokens).last_hidden_state[masked]
      logits = auxiliary.generator_lm_head(
        auxiliary.generator_predictions(hidden)
      )
      mlm = torch.nn.functional.cross_entropy(logits, labels)
    else:
      output = auxiliary(tokens, labels=original.masked_fill(~masked, -100))
      mlm, logits = output.loss, output.logits[masked]
    with torch.no_grad():
      noise = torch.empty_like(logits).exponential_().log()
      sampled = (logits - noise).argmax(-1)
    corrupted = tokens.masked_scatter(masked, sampled)
    replaced = (corrupted != original).long()
    return mlm + RTD_WEIGHT * main(corrupted, labels=replaced).loss


def _config(shape: Shape, layers: int) -> transformers.ElectraConfig:
  return transformers.ElectraConfig(
    vocab_size=shape.vocab_size,
    embedding_size=shape.width,
    hidden_size=shape.width,
    intermediate_size=4 * shape.width,
    num_attention_heads=shape.heads,
    num_hidden_layers=layers,
    max_position_embeddings=shape.length,
    attn_implementation='sdpa',
  )
