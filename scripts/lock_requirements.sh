#!/usr/bin/env bash
# Writes the lock files requirements/*.txt from requirements/*.in: every package, direct or not, with its exact
# version, for Python 3.9 to 3.11 in one file. Run it after a change of an .in file; pass --upgrade for newer
# versions of what the .in files leave open. Needs uv (`pip install uv`) and network; users of Ringdet never run it.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../requirements"

command -v uv >/dev/null || { echo "lock_requirements.sh: uv is not in PATH: pip install uv" >&2; exit 1; }

for name in cpu gpu dev eval build mpi; do
  echo "requirements/$name.in -> requirements/$name.txt"
  uv pip compile --quiet --universal --python-version 3.9 --no-header --annotation-style line \
    --output-file "$name.txt" "$@" "$name.in"
  sed -i "1i # Lock file, written by scripts/lock_requirements.sh from $name.in. Do not edit." "$name.txt"
done
