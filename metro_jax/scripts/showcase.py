# SPDX-License-Identifier: Apache-2.0
"""Shows what a pretrained model has learnt: replacements found, masks filled.

The sentences are from held-out text. The auxiliary replaces some of their
words, as in training, and the main model says which words were replaced.
"""

import bisect
import itertools
import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from rich import table, text

from metro_jax.inference import Filling, PretrainedModel
from metro_jax.inference_text import MASK

# Sentences worth showing: prose, neither short nor long.
_SENTENCE = re.compile(r'(?<![^\s])[A-Z][a-z][^.!?\n]*[a-z]\.(?=\s|$)')
_ODD = re.compile(r'[^A-Za-z0-9 ,.\'()-]')
_WORD = re.compile(r'[A-Za-z]{2,}')
# Nearly all that the auxiliary could say, as in training.
_CANDIDATES = 1000
_PER_DOCUMENT = 3

FOUND, MISSED, FALSE = 'found', 'missed', 'false alarm'
STYLES = {
  FOUND: 'bold white on green4',
  MISSED: 'black on yellow3',
  FALSE: 'white on red3',
}
# The same for where there are no colours.
_SIGNS = {FOUND: '[+{}]', MISSED: '[-{}]', FALSE: '[?{}]'}


class Corrupted(NamedTuple):
  """A sentence with replaced words.

  Attributes:
    text: with the replacements in it.
    replaced: (start, end, original word) of each, in `text`.
  """

  text: str
  replaced: list[tuple[int, int, str]]


def sentences(
  documents: Iterable[str], count: int, shortest: int = 60, longest: int = 130
) -> list[str]:
  """Plain sentences, at most three from each of the first documents."""
  chosen: dict[str, None] = {}  # A set in order.
  for document in documents:
    found = (m.group() for m in _SENTENCE.finditer(document))
    plain = (
      s for s in found if shortest <= len(s) <= longest and not _ODD.search(s)
    )
    chosen.update(dict.fromkeys(itertools.islice(plain, _PER_DOCUMENT)))
    if len(chosen) >= count:
      break
  return list(chosen)[:count]


def corrupt(
  model: PretrainedModel,
  texts: Sequence[str],
  rate: float = 0.15,
  seed: int = 0,
) -> list[Corrupted]:
  """Lets the auxiliary replace words of texts, as in pretraining.

  Words are masked, and each is replaced by a sample from the auxiliary's
  predictions. One in two or three samples is the original word, as in
  training, and does not count as replaced.

  Args:
    model: whose auxiliary proposes.
    texts: the texts.
    rate: share of the words that are masked.
    seed: of the choice.

  Returns:
    One answer a text.
  """
  rng = np.random.default_rng(seed)
  words = [list(_WORD.finditer(t)) for t in texts]
  chosen = [
    sorted(rng.permutation(len(w))[: max(1, round(rate * len(w)))])
    for w in words
  ]
  spans = [[w[i].span() for i in c] for w, c in zip(words, chosen, strict=True)]
  masked = [_mask(t, s) for t, s in zip(texts, spans, strict=True)]
  top_k = min(_CANDIDATES, model.vocabulary.size)
  filled = model.fill(masked, top_k=top_k)
  return [
    _sample(t, s, f, rng) for t, s, f in zip(texts, spans, filled, strict=True)
  ]


def _mask(sentence: str, spans: Sequence[tuple[int, int]]) -> str:
  for start, end in reversed(spans):
    sentence = sentence[:start] + MASK + sentence[end:]
  return sentence


def _sample(
  original: str,
  spans: Sequence[tuple[int, int]],
  filling: Filling,
  rng: np.random.Generator,
) -> Corrupted:
  """The text with a sampled whole word at each span."""
  out, last, replaced = '', 0, []
  for (start, end), mask in zip(spans, filling.masks, strict=True):
    out += original[last:start]
    whole = [c for c in mask.candidates if _WORD.fullmatch(c.text)]
    word = original[start:end]
    if whole:
      p = np.array([c.probability for c in whole])
      word = whole[rng.choice(len(whole), p=p / p.sum())].text
    if word != original[start:end]:
      replaced.append((len(out), len(out) + len(word), original[start:end]))
    out, last = out + word, end
  return Corrupted(out + original[last:], replaced)


def mark(
  corrupted: Corrupted, detected: Sequence[tuple[int, int]], colour: bool
) -> text.Text:
  """The sentence with each replaced or suspected word marked.

  Args:
    corrupted: the sentence.
    detected: stretches that the main model takes for replaced.
    colour: whether colours show; signs are used if not.

  Returns:
    Text for a terminal.
  """
  out, last = text.Text(), 0
  for start, end, kind, original in _verdicts(corrupted, detected):
    out.append(corrupted.text[last:start])
    word = corrupted.text[start:end]
    if colour:
      out.append(word, style=STYLES[kind])
    else:
      out.append(_SIGNS[kind].format(word))
    if original:
      out.append(f' ({original})', style='dim')
    last = end
  out.append(corrupted.text[last:])
  return out


def _verdicts(
  corrupted: Corrupted, detected: Sequence[tuple[int, int]]
) -> list[tuple[int, int, str, str]]:
  """(start, end, verdict, original word) in the order of the text."""
  out = []
  for start, end, original in corrupted.replaced:
    hit = any(a < end and start < b for a, b in detected)
    out.append((start, end, FOUND if hit else MISSED, original))
  taken = [(start, end) for start, end, _ in corrupted.replaced]
  for start, end in detected:
    for part in _outside(start, end, taken):
      if corrupted.text[slice(*part)].strip():
        out.append((*part, FALSE, ''))
  return sorted(out)


def _outside(
  start: int, end: int, taken: Sequence[tuple[int, int]]
) -> list[tuple[int, int]]:
  """What is left of a stretch without the taken ones (sorted)."""
  parts = []
  for a, b in taken[max(0, bisect.bisect(taken, (start, 0)) - 1) :]:
    if start < a < end:
      parts.append((start, a))
    if a < end and b > start:
      start = b
  if start < end:
    parts.append((start, end))
  return parts


def score(
  answers: Sequence[tuple[Corrupted, Sequence[tuple[int, int]]]],
) -> dict[str, int]:
  """How many words were found, missed, and wrongly suspected."""
  counts = dict.fromkeys((FOUND, MISSED, FALSE), 0)
  for corrupted, detected in answers:
    for _, _, kind, _ in _verdicts(corrupted, detected):
      counts[kind] += 1
  return counts


def legend(colour: bool) -> text.Text:
  """What the marks mean."""
  out = text.Text()
  words = {
    FOUND: 'replaced and found',
    MISSED: 'replaced and missed',
    FALSE: 'original, but suspected',
  }
  for kind, meaning in words.items():
    if colour:
      out.append(f' {meaning} ', style=STYLES[kind])
    else:
      out.append(_SIGNS[kind].format(meaning))
    out.append('   ')
  out.append('(original word)', style='dim')
  return out


def fillings(found: Sequence[Filling], top_k: int = 4) -> table.Table:
  """A table of sentences and what the model would put at their masks."""
  grid = table.Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
  grid.add_column('masked sentence')
  grid.add_column('best words, with their probability')
  for filling in found:
    sentence = text.Text(filling.text)
    sentence.highlight_words([MASK], style='bold cyan')
    words = text.Text()
    for mask in filling.masks:
      for index, candidate in enumerate(mask.candidates[:top_k]):
        style = 'bold' if index == 0 else ''
        words.append(candidate.text, style=style)
        words.append(f' {candidate.probability:.0%}  ', style='dim')
    grid.add_row(sentence, words)
  return grid
