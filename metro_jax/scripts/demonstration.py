# SPDX-License-Identifier: Apache-2.0
"""The last step of the quickstart: asks the model, and prints its answers."""

from collections.abc import Iterable, Sequence

import numpy as np
from rich import console, padding

from metro_jax.inference import PretrainedModel
from metro_jax.inference_answers import Detection
from metro_jax.scripts import showcase

# A sentence with a wrong word, and what should stand there.
TYPED = (
  ('Compute the eigenvalues of a square purple.', 'purple', 'matrix'),
  ('If True, the elephant value is returned.', 'elephant', 'default'),
  ('Raises an error if the file does green exist.', 'green', 'not'),
  ('Returns the banana of the array.', 'banana', 'shape'),
  ('The name of the monkey to open.', 'monkey', 'file'),
  ('Whether to use the elephant cache.', 'elephant', 'local'),
  ('Returns a list of purple.', 'purple', 'strings'),
  ('A tuple of integers with the shape of the banana.', 'banana', 'array'),
)
FILL = (
  'Returns the [MASK] of the array.',
  'If [MASK] is None, the default value is used.',
  'Raises an error if the [MASK] does not exist.',
  'A list of [MASK] to be used in the model.',
  'This function is not [MASK] by default.',
)
_SHOWN = 5
_SCORED = 200
_MASK_RATE = 0.15


def present(
  model: PretrainedModel, documents: Iterable[str], out: console.Console
) -> None:
  """Shows replaced words found and masked words filled in.

  Args:
    model: a pretrained model with its auxiliary.
    documents: that it has not been trained on.
    out: where to print.
  """
  originals = showcase.sentences(documents, _SCORED)
  corrupted = showcase.corrupt(model, originals, _MASK_RATE)
  found = model.detect([c.text for c in corrupted])
  marked = threshold(found, sum(len(c.replaced) for c in corrupted))
  colour = out.is_terminal and not out.no_color
  pairs = [
    (c, d.replaced(marked)) for c, d in zip(corrupted, found, strict=True)
  ]
  out.print(showcase.legend(colour))
  out.print('\nHeld-out sentences:')
  worth = [pair for pair in pairs if len(pair[0].replaced) >= 2][:_SHOWN]
  _print_marked(worth, colour, out)
  out.print(
    '\nA wrong word, typed; the word of the highest p(replaced) is marked:'
  )
  _print_marked(typed_pairs(model), colour, out)
  out.print(f'\n{_summary(pairs, marked)}\n')
  out.print(showcase.fillings(model.fill(FILL)))
  out.print()


def threshold(found: Sequence[Detection], count: int) -> float:
  """The probability that `count` tokens are over, in two digits.

  A model says "over one half" of few tokens, as most are originals. Marking as
  many as were replaced compares models whatever their caution.
  """
  p = np.sort(np.concatenate([d.p_replaced for d in found]))
  return round(float(p[-min(count, len(p))]), 2)


def typed_pairs(
  model: PretrainedModel,
) -> list[tuple[showcase.Corrupted, list[tuple[int, int]]]]:
  """`TYPED`, with the word of each that the model suspects most."""
  found = model.detect([sentence for sentence, _, _ in TYPED])
  pairs = []
  for (sentence, wrong, right), detection in zip(TYPED, found, strict=True):
    start = sentence.index(wrong)
    replaced = [(start, start + len(wrong), right)]
    suspect = detection.most_suspicious()
    marks = [suspect] if suspect else []
    pairs.append((showcase.Corrupted(sentence, replaced), marks))
  return pairs


def _print_marked(
  pairs: Sequence[tuple[showcase.Corrupted, Sequence[tuple[int, int]]]],
  colour: bool,
  out: console.Console,
) -> None:
  for sentence, spans in pairs:
    marked = showcase.mark(sentence, spans, colour)
    out.print(padding.Padding(marked, (0, 0, 0, 2)))


def _summary(
  pairs: Sequence[tuple[showcase.Corrupted, Sequence[tuple[int, int]]]],
  marked: float,
) -> str:
  """What was found, and what as many marks at random would find."""
  counts = showcase.score(pairs)
  found, wrong = counts[showcase.FOUND], counts[showcase.FALSE]
  replaced = found + counts[showcase.MISSED]
  words = sum(len(pair[0].text.split()) for pair in pairs)
  return (
    f'Marked: p(replaced) over {marked}, as many tokens as were replaced. In'
    f' {len(pairs)} sentences, {found} of {replaced} replaced words were found'
    f' ({found / max(replaced, 1):.0%}; at random:'
    f' {(found + wrong) / max(words, 1):.0%}), with {wrong} false alarms.'
  )
