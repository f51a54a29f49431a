# SPDX-License-Identifier: Apache-2.0
"""Asks a pretrained model about text; answers are JSON lines.

  python -m metro_jax.infer --model_dir=runs/quickstart --mode=detect \\
    --text='Returns the banana of the array.'
  python -m metro_jax.infer --model_dir=runs/quickstart --mode=fill \\
    --text='Returns the [MASK] of the array.'
  cat my.txt | python -m metro_jax.infer --model_dir=runs/quickstart \\
    --mode=encode --cls_only --output=states.jsonl
  python -m metro_jax.infer --model_dir=runs/t5 --mode=generate --beams=4 \\
    --text='Returns the <extra_id_0> of the array.'

detect: how likely each token was replaced. fill: what may stand at [MASK].
encode: the main model's hidden states. generate, score: what an
encoder-decoder writes, and how likely it finds a target, which follows its
input after a tab. One line of input is one text, and one line of output
answers it; an empty line has an empty answer.
"""

import argparse
import contextlib
import dataclasses
import json
import logging
import os
import pathlib
import sys
from collections.abc import Iterator
from typing import IO, Any

from metro_jax import inference, inference_answers, inference_text, writing
from metro_jax.data import command_line
from metro_jax.errors import UserError

WRITING = ('generate', 'score')
MODES = ('detect', 'fill', 'encode', *WRITING)
_CANDIDATES = 5
# Batches that are sorted by length together.
_BATCHES_AHEAD = 8


class Texts:
  """Lines of bytes as texts, counted.

  Attributes:
    invalid: how many lines had invalid UTF-8, which was replaced.
    count: how many lines there were.
  """

  def __init__(self, lines: Iterator[bytes], name: str, invalid_utf8: str):
    """Takes the lines, a name for messages, and 'replace' or 'error'."""
    self._lines, self._name = lines, name
    self._strict = invalid_utf8 == 'error'
    self.invalid = self.count = 0

  def place(self, number: int) -> str:
    """Where a text stands, for messages."""
    return f'{self._name}, line {number}'

  def __iter__(self) -> Iterator[str]:
    """Yields each text without its line end."""
    for line in self._lines:
      self.count += 1
      line = line.rstrip(b'\r\n')
      try:
        yield line.decode('utf-8')
      except UnicodeDecodeError as error:
        if self._strict:
          raise UserError(
            f'{self.place(self.count)}: invalid UTF-8 at byte {error.start};'
            ' mend it, or choose --invalid_utf8=replace'
          ) from error
        self.invalid += 1
        yield line.decode('utf-8', 'replace')


def chunks(texts: Texts, size: int) -> Iterator[list[str]]:
  """Lists of at most `size` texts."""
  chunk: list[str] = []
  for text in texts:
    chunk.append(text)
    if len(chunk) == size:
      yield chunk
      chunk = []
  if chunk:
    yield chunk


def answers(
  model: inference.PretrainedModel | writing.Writer,
  texts: list[str],
  flags: argparse.Namespace,
  first: int = 0,
) -> list[dict[str, Any]]:
  """JSON of the answers to some texts, of which `first` came before."""
  if flags.mode == 'detect':
    found = model.detect(texts, flags.long)
    return [_detection(a, flags.threshold) for a in found]
  if flags.mode == 'fill':
    top_k = _CANDIDATES if flags.top_k is None else flags.top_k
    found = model.fill(texts, top_k, flags.head, flags.long)
    return [_filling(a) for a in found]
  if flags.mode == 'encode':
    found = model.encode(texts, flags.long)
    return [_encoding(a, flags.cls_only) for a in found]
  if flags.mode == 'score':
    found = model.score([_pair(text) for text in texts], flags.long)
  else:
    found = model.generate(
      texts,
      flags.length,
      flags.beams,
      flags.temperature,
      flags.top_k,
      flags.seed,
      flags.long,
      first,
    )
  return [_rounded(dataclasses.asdict(a)) for a in found]


def _pair(text: str) -> tuple[str, str]:
  source, tab, target = text.partition('\t')
  if text and not tab:
    raise UserError(
      f'--mode=score: {text[:40]!r} has no tab; a line is an input, a tab and'
      ' a target'
    )
  return source, target


def _rounded(answer: dict[str, Any]) -> dict[str, Any]:
  return answer | {'log_probability': _short(answer['log_probability'])}


def _detection(
  answer: inference_answers.Detection, threshold: float
) -> dict[str, Any]:
  tokens = [
    _span(answer.text, token.start, token.end) | {'p_replaced': _short(p)}
    for token, p in zip(answer.tokens, answer.p_replaced, strict=True)
  ]
  suspect = answer.most_suspicious()
  return {
    'text': answer.text,
    'most_suspicious': _span(answer.text, *suspect) if suspect else None,
    'replaced': [_span(answer.text, *s) for s in answer.replaced(threshold)],
    'tokens': tokens,
  }


def _filling(answer: inference_answers.Filling) -> dict[str, Any]:
  masks = [
    {
      'start': mask.start,
      'end': mask.end,
      'candidates': [
        {
          'text': c.text,
          'starts_word': c.starts_word,
          'probability': _short(c.probability),
        }
        for c in mask.candidates
      ],
    }
    for mask in answer.masks
  ]
  return {'text': answer.text, 'filled': answer.filled, 'masks': masks}


def _encoding(
  answer: inference_answers.Encoding, cls_only: bool
) -> dict[str, Any]:
  out = {'text': answer.text, 'cls': [_short(x) for x in answer.cls]}
  if not cls_only:
    out['tokens'] = [_span(answer.text, t.start, t.end) for t in answer.tokens]
    out['hidden'] = [[_short(x) for x in row] for row in answer.hidden]
  return out


def _span(text: str, start: int, end: int) -> dict[str, Any]:
  return {'text': text[start:end], 'start': start, 'end': end}


def _short(number: float) -> float:
  """Six digits, which is more than bfloat16 or a reader can use."""
  return float(f'{number:.6g}')


def _open_input(
  flags: argparse.Namespace, stack: contextlib.ExitStack
) -> Texts:
  if flags.text and flags.input:
    raise UserError('--text and --input: give one of them')
  if flags.text:
    # Arguments that are not UTF-8 arrive as lone surrogates.
    raw = (t.encode('utf-8', 'surrogateescape') for t in flags.text)
    return Texts(raw, '--text', flags.invalid_utf8)
  if flags.input and flags.input != '-':
    path = pathlib.Path(flags.input).expanduser()
    try:
      file = stack.enter_context(path.open('rb'))
    except OSError as error:
      raise UserError(f'--input={path}: {error.strerror}') from error
    return Texts(iter(file), str(path), flags.invalid_utf8)
  if not flags.input and sys.stdin.isatty():
    raise UserError(
      'no text: give --text=..., --input=FILE, or --input=- to type it'
    )
  return Texts(iter(sys.stdin.buffer), 'standard input', flags.invalid_utf8)


def _open_output(
  flags: argparse.Namespace, stack: contextlib.ExitStack
) -> IO[str]:
  if not flags.output or flags.output == '-':
    sys.stdout.reconfigure(encoding='utf-8')  # Whatever the locale says.
    return sys.stdout
  path = pathlib.Path(flags.output).expanduser()
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    return stack.enter_context(path.open('w', encoding='utf-8'))
  except OSError as error:
    raise UserError(f'--output={path}: {error.strerror}') from error


def _parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(
    prog='python -m metro_jax.infer',
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
    allow_abbrev=False,
  )
  add = parser.add_argument
  add('--model_dir', required=True, help='MODEL_DIR of a training run')
  add('--mode', required=True, choices=MODES, help='what to ask')
  add('--step', type=int, help='checkpoint to use (default: the newest)')
  add('--text', action='append', help='a text; may be given again')
  add('--input', metavar='FILE', help='one text a line; - is standard input')
  add('--output', metavar='FILE', help='default: standard output')
  add(
    '--long',
    default='window',
    choices=inference_text.LONG,
    help='texts longer than the model: overlapping windows (default), only'
    ' the first part, or an error; generate and score have no windows',
  )
  add(
    '--invalid_utf8',
    default='replace',
    choices=('replace', 'error'),
    help='invalid bytes: replaced and counted (default), or an error',
  )
  add('--batch_size', type=int, default=32, help='rows at once (default: 32)')
  add(
    '--threshold',
    type=float,
    default=0.5,
    help='detect: tokens over this are listed as replaced (default: 0.5)',
  )
  add(
    '--top_k',
    type=int,
    help='fill: candidates (default: 5); generate: sample among the likeliest',
  )
  add(
    '--head',
    default='auxiliary',
    choices=('auxiliary', 'lm'),
    help='fill: the masked language model (default), or the main model'
    ' correcting its guesses',
  )
  add('--cls_only', action='store_true', help='encode: only the [CLS] state')
  add('--length', type=int, help='generate: most tokens to write (default: 64)')
  add('--beams', type=int, default=1, help='generate: beam search (default: 1)')
  add(
    '--temperature',
    type=float,
    default=0.0,
    help='generate: of sampling; 0 takes the likeliest token (default)',
  )
  add('--seed', type=int, default=0, help='generate: of sampling (default: 0)')
  return parser


def main(argv: list[str]) -> None:
  """Answers every text of the input."""
  flags = _parser().parse_args(argv)
  logging.getLogger('absl').setLevel(logging.ERROR)  # Orbax is talkative.
  with contextlib.ExitStack() as stack:
    texts = _open_input(flags, stack)
    module = writing if flags.mode in WRITING else inference
    model = module.load(flags.model_dir, flags.step, flags.batch_size)
    output = _open_output(flags, stack)
    typed = flags.input == '-' and sys.stdin.isatty()
    size = 1 if typed else flags.batch_size * _BATCHES_AHEAD
    masks = done = 0
    try:
      for chunk in chunks(texts, size):
        try:
          found = answers(model, chunk, flags, done)
        except inference_text.TooLong as error:
          place = texts.place(done + error.index + 1)
          raise UserError(error.about(place)) from error
        for number, answer in enumerate(found, done + 1):
          masks += len(answer.get('masks', ()))
          line = {'line': number, **answer}
          output.write(json.dumps(line, ensure_ascii=False) + '\n')
        output.flush()
        done += len(chunk)
    except BrokenPipeError:  # The reader, such as head, has enough.
      os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
      return
    except OSError as error:
      raise UserError(f'--output={flags.output}: {error.strerror}') from error
  if texts.invalid:
    print(
      f'{texts.invalid} of {done} lines had invalid UTF-8, replaced by U+FFFD',
      file=sys.stderr,
    )
  if flags.mode == 'fill' and not masks:
    print(f'no {inference_text.MASK} in any of {done} texts', file=sys.stderr)
  if output is not sys.stdout:
    print(f'{done} answers in {flags.output}', file=sys.stderr)


if __name__ == '__main__':
  command_line.run(main)
