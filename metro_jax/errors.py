# SPDX-License-Identifier: Apache-2.0
"""Errors that a user can mend."""


class UserError(ValueError):
  """Bad input: one line that names the file, flag or parameter, and the mend.

  Command lines print the message without a traceback and exit with code 2.
  """
