#!/usr/bin/env bash
# One rank: gives it its share of the cores, keeps its log and how it ended, passes signals on. scripts/launch.sh has it
# started on every rank; the arguments are the rank's command. Rank 0 also speaks on the console.
#
# A rank that was asked to stop and left with code 75 counts as a success for mpirun and srun, which would otherwise
# kill the others in the middle of theirs; launch.sh reads the code from the file.
set -uo pipefail

# The value of the first variable that is set.
first_set() {
  local name
  for name in "$@"; do
    if [ -n "${!name:-}" ]; then
      printf '%s' "${!name}"
      return
    fi
  done
  printf 0
}

# Launchers in the order of engine/ranks/distributed.py: mpirun's own daemons may be started by srun.
rank=$(first_set OMPI_COMM_WORLD_RANK HOROVOD_RANK PMI_RANK SLURM_PROCID)
local_rank=$(first_set OMPI_COMM_WORLD_LOCAL_RANK HOROVOD_LOCAL_RANK MPI_LOCALRANKID SLURM_LOCALID)
# Hosts may have unlike numbers of ranks.
ranks_here=$(first_set OMPI_COMM_WORLD_LOCAL_SIZE HOROVOD_LOCAL_SIZE RINGDET_RANKS_PER_NODE)
if [ "$RINGDET_LAUNCHER" = plain ]; then rank=0 local_rank=0; fi
host=$(uname -n)
base=$RINGDET_RANK_LOGS/$(printf 'rank-%05d' "$rank")

if ! { mkdir -p "$RINGDET_RANK_LOGS" && echo "$rank $host $$ ${SLURMD_NODENAME:-$host}" >"$base.start"; }; then
  echo "ERROR (rank $rank on $host): $RINGDET_RANK_LOGS cannot be written here: name a folder that all nodes share with MODEL_DIR or RESULTS_DIR" >&2
  exit 1
fi
tee=
if [ "$rank" = 0 ]; then
  # The file has a writer of its own: where its file system no longer answers, the console still has what is said.
  exec > >(
    trap '' INT TERM USR1 PIPE
    tee >(exec cat >>"$base.log" 2>/dev/null)
    [ -z "${!:-}" ] || wait "$!" # bash before 4.4 does not know it
  ) 2>&1
  tee=$!
else
  exec >>"$base.log" 2>&1
fi

# The cores of this rank, as a list for taskset: an equal share, hyperthreads of a core and cores of a NUMA node
# together. Nothing if the launcher has bound the rank already, or if there are too few cores to share.
own_cores() {
  local share allowed total
  [ "$RINGDET_BIND" != none ] && [ "$ranks_here" -gt 1 ] || return 0
  command -v lscpu >/dev/null && command -v taskset >/dev/null || return 0
  allowed=$(nproc)
  total=$(getconf _NPROCESSORS_ONLN)
  share=$((allowed / ranks_here))
  [ "$allowed" = "$total" ] && [ "$share" -ge 2 ] || return 0
  lscpu -p=NODE,CORE,CPU | grep -v '^#' | sort -t, -k1,1n -k2,2n -k3,3n | cut -d, -f3 |
    tail -n "+$((local_rank * share + 1))" | head -n "$share" | paste -sd,
}

# Waits for a process of this script, ten seconds at most: what a dead file system holds never ends.
finish() {
  local tries
  for ((tries = 0; tries < 100; tries++)); do
    kill -0 "$1" 2>/dev/null || return 0
    sleep 0.1
  done
}

cores=$(own_cores)
[ -z "$cores" ] || taskset -pc "$cores" $$ >/dev/null || echo "rank $rank on $host: not bound to cores $cores"

told='' interrupted=0
# shellcheck disable=SC2329  # the traps call it
pass_on() {
  interrupted=1 told=$1
  if [ "$RINGDET_LAUNCHER" != srun ] && [ "$1" != USR1 ]; then
    # mpirun and horovodrun end their ranks so; they do not wait for a save.
    kill -KILL -- "-$child" 2>/dev/null
  elif [ "$RINGDET_SIGNALS_REACH_ALL" != 1 ]; then
    kill "-$1" "$child" 2>/dev/null
  fi
}
trap 'pass_on USR1' USR1
trap 'pass_on TERM' TERM
trap 'pass_on INT' INT

# A process group of its own: signals to the group of this script must not reach the rank a second time. It dies with
# this script.
dies_with_parent=()
if setpriv --pdeathsig KILL true 2>/dev/null; then dies_with_parent=(setpriv --pdeathsig KILL); fi
set -m
${dies_with_parent[@]+"${dies_with_parent[@]}"} "$@" </dev/null &
child=$!
set +m
echo "$child" >"$base.child"
while :; do
  interrupted=0
  wait "$child" 2>/dev/null
  code=$?
  [ "$interrupted" = 1 ] || break
done

# Told to stop before it could answer signals: it had nothing to save yet.
if [ -n "$told" ] && [ "$RINGDET_STOPS_ORDERLY" = 1 ] && [ "$code" = $((128 + $(kill -l "$told"))) ]; then code=75; fi
# The shell's own clock, from bash 5 on: a signal to the whole step may end another program, and then this end comes last.
now=${EPOCHREALTIME:-$(date +%s.%N)}
now=${now/,/.}
end="$rank $host $code ${now:-9999999999} $told"
(echo "$end" >"$base.end") >&- 2>&- &
finish $!
exec >&- 2>&-
[ -z "$tee" ] || finish "$tee"
[ "$code" != 75 ] || code=0
exit "$code"
