# SPDX-License-Identifier: Apache-2.0
"""From a Python file's docstrings to English paragraphs.

Docstrings are half prose and half markup, doctests, tables and signatures;
only the prose teaches a language model English. What is prose is judged by a
paragraph's share of function words and of plain letters.
"""

import ast
import inspect
import re
from collections.abc import Iterator

_FUNCTION_WORDS_TEXT = (
  'a about after all also an and any are as at be because been before between'
  ' but by can does each for from has have how if in into is it its may more'
  ' most must no not of on one only or other over same should since so some'
  ' such than that the their them then there these they this those to under'
  ' until up use used was we were what when where whether which while will'
  ' with within without would you your'
)
_FUNCTION_WORDS = frozenset(_FUNCTION_WORDS_TEXT.split())
_LEAST_WORDS = 6
_LEAST_FUNCTION_WORDS = 0.2
_LEAST_LETTERS = 0.86

_FENCE = re.compile(r'^\s*(```|~~~)')
_RULE = re.compile(r'^\s*([=\-~^*#+"\'`_.|: ])\1{2,}[=\-~^*#+|: ]*$')
_DIRECTIVE = re.compile(r'^\s*\.\. ')
_TABLE = re.compile(r'\S {3,}\S.* {3,}\S|^\s*[|+].*[|+]\s*$')
_ITEM = re.compile(r'^\s*([-*+\u2022]|\d+[.)])\s+')
_FIELD = re.compile(r'^\s*:(param|type|return|rtype|raise|arg|key)[^:]*:\s*')
# 'name (type): what it is', and NumPy's 'names : type' on a line of its own.
_ARGUMENT = re.compile(r'^\s*[*]{0,2}[a-z_]\w*(\s*\([^()]*\))?:\s+')
_NUMPY_ARGUMENT = re.compile(r'^\s*[*\w][\w*, .]* : \S')
_HEADING = re.compile(
  r'^\s*(Args|Arguments|Attributes|Examples?|Keyword Arg(ument)?s|Methods'
  r'|Notes?|Other Parameters|Parameters|Raises|References|Returns?|See Also'
  r'|Usage|Warnings?|Warns|Yields):?$'
)
_ROLE = re.compile(r':[\w:.+-]+:`~?([^`<]+?)(\s*<[^`>]*>)?`')
_LITERAL = re.compile(r'`{1,3}([^`\n]+)`{1,3}_{0,2}')
_LINK = re.compile(r'\[([^\]\n]+)\]\([^)\s]*\)')
_URL = re.compile(r'<?\bhttps?://[^\s>)]+>?')
_STRONG = re.compile(r'(?<!\w)\*{1,2}([^*\s][^*\n]*?)\*{1,2}(?!\w)')
_FOOTNOTE = re.compile(r'\s*\[[\w#*]{1,3}\]_')
_PLAIN = re.compile(r"[A-Za-z ,.']+")
_WORD = re.compile(r"[A-Za-z]+(?:['-][A-Za-z]+)*")

_DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def paragraphs_of_source(source: bytes) -> list[str]:
  """English paragraphs of a file's docstrings, in the order of the file."""
  if source.count(b'"""') + source.count(b"'''") < 2:
    return []
  try:
    tree = ast.parse(source)
  except (SyntaxError, ValueError, RecursionError, MemoryError):
    return []
  found = []
  for docstring in _docstrings(tree):
    found += clean(docstring)
  return found


def _docstrings(node: ast.AST) -> Iterator[str]:
  """Docstrings of a module, class or function and of what stands in it."""
  if isinstance(node, _DOCUMENTED):
    docstring = ast.get_docstring(node, clean=False)
    if docstring:
      yield docstring
  # Statements hold statements; expressions need not be looked into.
  for name in ('body', 'handlers', 'orelse', 'finalbody', 'cases'):
    for child in getattr(node, name, ()):
      yield from _docstrings(child)


def clean(docstring: str) -> list[str]:
  """A docstring's prose, one string for each paragraph, list item or field."""
  lines = inspect.cleandoc(docstring).split('\n')
  found = (_inline(' '.join(group)) for group in _groups(lines))
  return [text for text in found if is_prose(text)]


def is_prose(text: str) -> bool:
  """Whether a paragraph reads as English."""
  words = _WORD.findall(text)
  if len(words) < _LEAST_WORDS:
    return False
  function = sum(word.lower() in _FUNCTION_WORDS for word in words)
  # Commas and full stops are part of prose; brackets and underscores are not.
  letters = len(text) - len(_PLAIN.sub('', text))
  return function >= _LEAST_FUNCTION_WORDS * len(
    words
  ) and letters >= _LEAST_LETTERS * len(text)


def _groups(lines: list[str]) -> Iterator[list[str]]:
  """Lines that belong together, code and markup left out."""
  group: list[str] = []
  for line in _prose_lines(lines):
    if not line:
      ended = True
    elif _HEADING.match(line) or _NUMPY_ARGUMENT.match(line):
      ended, line = True, ''
    else:
      label = _ITEM.match(line) or _FIELD.match(line) or _ARGUMENT.match(line)
      ended = label is not None
      line = line[label.end() :] if label else line
    if ended and group:
      yield group
      group = []
    if line:
      group.append(line.strip())
  if group:
    yield group


def _prose_lines(lines: list[str]) -> Iterator[str]:
  """Lines outside code; an empty string parts paragraphs."""
  fenced = doctest = False
  block: int | None = None  # Indentation of what opened an indented block.
  for raw in lines:
    line = raw.rstrip().expandtabs()
    indent = len(line) - len(line.lstrip())
    if _FENCE.match(line):
      fenced = not fenced
      yield ''
    elif fenced:
      continue
    elif not line:
      doctest = False
      yield ''
    elif block is not None and indent > block:
      continue
    elif line.lstrip().startswith(('>>>', '... ', '$ ', 'In [')) or doctest:
      doctest, block = True, None
      yield ''
    elif _DIRECTIVE.match(line):
      block = indent
      yield ''
    elif _RULE.match(line) or _TABLE.search(line):
      block = None
      yield ''
    else:
      block = indent if line.endswith('::') else None
      yield line.removesuffix(':') if line.endswith('::') else line


def _inline(text: str) -> str:
  """Plain text of a paragraph: roles, literals, links, emphasis undone."""
  text = _ROLE.sub(r'\1', text)
  text = _LITERAL.sub(r'\1', text)
  text = _LINK.sub(r'\1', text)
  text = _URL.sub('', text)
  text = _STRONG.sub(r'\1', text)
  text = _FOOTNOTE.sub('', text)
  return ' '.join(text.split())
