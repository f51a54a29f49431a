# SPDX-License-Identifier: Apache-2.0
"""What a pretrained model answers about one text."""

import dataclasses
import re

import numpy as np

from metro_jax.inference_text import Token


@dataclasses.dataclass(frozen=True)
class Detection:
  """Which tokens look replaced.

  Attributes:
    text: as given.
    tokens: its tokens; `text[token.start:token.end]`.
    p_replaced: float32 [tokens], probability that a token is not the one that
      the writer wrote.
  """

  text: str
  tokens: list[Token]
  p_replaced: np.ndarray

  def replaced(self, threshold: float = 0.5) -> list[tuple[int, int]]:
    """Stretches (start, end) of the text whose tokens are over `threshold`."""
    spans: list[tuple[int, int]] = []
    for token, p in zip(self.tokens, self.p_replaced, strict=True):
      if p < threshold or token.start == token.end:
        continue
      if spans and token.start <= spans[-1][1]:
        spans[-1] = spans[-1][0], max(token.end, spans[-1][1])
      else:
        spans.append((token.start, token.end))
    return spans

  def most_suspicious(self) -> tuple[int, int] | None:
    """The word (start, end) with the likeliest token; None without tokens."""
    if not self.tokens:
      return None
    token = self.tokens[int(np.argmax(self.p_replaced))]
    words = (m.span() for m in re.finditer(r'\w+|[^\w\s]', self.text))
    return next((w for w in words if token.start < w[1]), None)


@dataclasses.dataclass(frozen=True)
class Candidate:
  """What may stand at a mask.

  Attributes:
    text: the token's text, without the space before a word.
    starts_word: whether the token begins a word.
    probability: of the token.
    id: in the vocabulary.
  """

  text: str
  starts_word: bool
  probability: float
  id: int


@dataclasses.dataclass(frozen=True)
class Mask:
  """One [MASK] of a text: where it stands, and candidates, best first."""

  start: int
  end: int
  candidates: list[Candidate]


@dataclasses.dataclass(frozen=True)
class Filling:
  """A text's masks.

  Attributes:
    text: as given.
    masks: in the order of the text.
  """

  text: str
  masks: list[Mask]

  @property
  def filled(self) -> str:
    """The text with the best candidate at each mask, each chosen alone."""
    out, last = '', 0
    for mask in self.masks:
      best = mask.candidates[0]
      out += self.text[last : mask.start]
      if best.starts_word and out[-1:].isalnum():
        out += ' '
      out += best.text
      last = mask.end
    return out + self.text[last:]


@dataclasses.dataclass(frozen=True)
class Encoding:
  """Hidden states of the main model's last layer.

  Attributes:
    text: as given.
    tokens: its tokens; `text[token.start:token.end]`.
    hidden: float32 [tokens, width], one row a token.
    cls: float32 [width], the state of [CLS]; the mean over windows where the
      text has several.
  """

  text: str
  tokens: list[Token]
  hidden: np.ndarray
  cls: np.ndarray
