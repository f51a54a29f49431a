#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Makes a virtual environment: sh make_venv.sh FOLDER [PYTHON]
# Without PYTHON it takes the first that is new enough. TensorFlow Text, which
# SeqIO needs, has no wheels for 3.14 yet.
set -eu

folder=$1
wanted=${2:-}

fits() {
  command -v "$1" > /dev/null 2>&1 && "$1" -c \
    'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' \
    > /dev/null 2>&1
}

python=
for candidate in ${wanted:-python3 python3.12 python3.13 python3.11 python}; do
  if fits "$candidate"; then
    python=$candidate
    break
  fi
done

if [ -z "$python" ]; then
  if [ -n "$wanted" ]; then
    echo "error: PYTHON=$wanted is not a Python 3.11, 3.12 or 3.13" >&2
  else
    echo 'error: no Python 3.11, 3.12 or 3.13 found; install one' \
      '(Debian, Ubuntu: sudo apt install python3 python3-venv)' \
      'or name it: make quickstart PYTHON=/path/to/python3.12' >&2
  fi
  exit 2
fi

if ! "$python" -c 'import ensurepip, venv' > /dev/null 2>&1; then
  version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
  echo "error: $python cannot make virtual environments; install the module:" \
    "sudo apt install python$version-venv (or python3-venv)" >&2
  exit 2
fi

echo "Making $folder with $("$python" --version)"
# A folder left half made is mended in place.
"$python" -m venv "$folder"
