#!/usr/bin/env bash
# Writes the lock files of both stacks, requirements/{old,new}/*.txt, from the .in files: every package, direct or not,
# with its exact version, for all Python versions of the stack in one file. An .in file in the stack's own folder goes
# before the shared one. Run it after a change of an .in file; pass --upgrade for newer versions of what they leave
# open. Needs uv (`pip install uv`) and network; users of Ringdet never run it.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../requirements"

command -v uv >/dev/null || { echo "lock_requirements.sh: uv is not in PATH: pip install uv" >&2; exit 1; }

lock() {
  local stack=$1 oldest_python=$2 name source options
  shift 2
  for name in cpu gpu dev eval export build mpi; do
    source=$name.in
    [ ! -e "$stack/$name.in" ] || source=$stack/$name.in
    options=(--constraint "$stack/cpu.txt")
    case $name in cpu | mpi) options=() ;; esac
    if [ "$name" = cpu ] && [ "$stack" = new ]; then options+=(--excludes new/excluded.in); fi
    echo "requirements/$source -> requirements/$stack/$name.txt"
    uv pip compile --quiet --universal --python-version "$oldest_python" --no-header --annotation-style line \
      ${options[@]+"${options[@]}"} --output-file "$stack/$name.txt" "$@" "$source"
    sed -i "1i # Lock file, written by scripts/lock_requirements.sh from $source. Do not edit." "$stack/$name.txt"
  done
}

lock old 3.9 "$@"
lock new 3.10 "$@"
