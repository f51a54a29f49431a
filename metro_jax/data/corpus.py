# SPDX-License-Identifier: Apache-2.0
"""One binding decides whose text is read: a registered task's, or one's own."""

from collections.abc import Callable, Sequence

from metro_jax.data.text_files import TextFiles


def corpus(
  task: str,
  text_files: str | Sequence[str] | None = None,
  reader: Callable[[str | Sequence[str]], TextFiles] = TextFiles,
) -> str | TextFiles:
  """The `source` of a `TokenDataset`.

  Args:
    task: a registered task or mixture by name.
    text_files: glob patterns of one's own text, which win over the task.
    reader: makes a source of them.

  Returns:
    The task's name, or the text files.
  """
  return reader(text_files) if text_files else task
