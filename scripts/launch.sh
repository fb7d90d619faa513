#!/usr/bin/env bash
# Starts one documented run on as many ranks as asked for. The scripts in scripts/D0/, scripts/maskrcnn/ and
# slurm/ are calls of this one.
#
# Here is the order of things; the parts are in scripts/launch/: what a kind of run is, what is a family's own, the
# variables of the ranks, the choice of the launcher, containers, starting and stopping.
# shellcheck disable=SC1090,SC2034,SC2154  # the parts share their variables
set -euo pipefail
# Before bash 4.4 an empty list counts as unset.
((BASH_VERSINFO[0] * 100 + BASH_VERSINFO[1] >= 404)) || set +u

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
readonly root

usage() {
  cat <<'USAGE'
Usage: scripts/launch.sh FAMILY KIND [options] [-- FLAGS]
       scripts/launch.sh SCRIPT [options] [-- FLAGS]

  FAMILY          efficientdet or maskrcnn
  KIND            convergence, evaluate, training-benchmark, inference-benchmark, inference
  SCRIPT          of scripts/D0 or scripts/maskrcnn: its folder says the family, its name begins with the kind
  --name NAME     name of the run and of its folder
  --recipe NAME   settings: a name in the family's configs/, or a YAML file
  --gpus N        ranks, one for each GPU, where NGPU does not say otherwise (default 1)
  --nodes N       for Slurm: the nodes that the run is documented for; outside an allocation this is an error
  FLAGS           go to the program; they win over everything

Variables: NGPU, BS, AMP, CKPT, MODEL_DIR, training_mode, datadir, checkpointdir (of the reference), DATA_DIR,
BACKBONE_CKPT, RESULTS_DIR, IMAGE_PATH, PRESET (what is read and written), DRY_RUN=1 (print the command, start
nothing), LAUNCHER (auto, srun, mpirun, horovodrun, plain), HOSTS (a:8,b:8), PREFLIGHT (auto, 1, 0, only),
BIND (auto, cores, none), CONTAINER_IMAGE, REQUEUE, MIN_NODES, CHAIN, STOP_SECONDS, PYTHON. docs/runs.md explains each.

Exit code: that of the run; 75 means stopped by a signal, with all steps saved. If ranks fail, that of the first one to fail.
USAGE
}

# Nobody may be there to hear it, and what comes after it is done all the same.
say() { printf 'launch.sh: %s\n' "$*" >&2 || true; }

fail() {
  say "ERROR: $*"
  exit 2
}

# The argument's text if it is a positive whole number; ends the launcher otherwise.
number() {
  [[ $2 =~ ^[1-9][0-9]*$ ]] || fail "$1=$2: expected a number of at least 1"
  printf '%s' "$2"
}

# True if a folder can be listed, or is not there, within so many seconds: on a dead file system that takes for ever.
folder_answers() {
  local probe tries
  ls "$1" >/dev/null 2>&1 &
  probe=$!
  for ((tries = 0; tries < 10 * $2; tries++)); do
    kill -0 "$probe" 2>/dev/null || return 0
    sleep 0.1
  done
  return 1
}

name='' recipe='' gpus=1 documented_nodes=''
case ${1:-} in
  -h | --help)
    usage
    exit 0
    ;;
  *.sh)
    name=$(basename "$1" .sh)
    kind=$(grep -oE '^(convergence|evaluate|training-benchmark|inference-benchmark|inference)' <<<"$name") || fail "whose kind is $1?"
    family=maskrcnn
    case $(cd "$(dirname "$1")" && pwd -P) in */D0) family=efficientdet ;; *) name=maskrcnn-$name ;; esac
    shift
    ;;
  *)
    [ $# -ge 2 ] || fail "expected FAMILY KIND (--help explains)"
    family=$1 kind=$2
    shift 2
    ;;
esac
while [ $# -gt 0 ]; do
  case $1 in
    --name | --recipe | --gpus | --nodes)
      [ $# -ge 2 ] || fail "$1 needs a value"
      case $1 in
        --name) name=$2 ;;
        --recipe) recipe=$2 ;;
        --gpus) gpus=$(number --gpus "$2") ;;
        --nodes) documented_nodes=$(number --nodes "$2") ;;
      esac
      shift 2
      ;;
    --)
      shift
      break
      ;;
    *) fail "unknown option '$1' (--help lists them; flags of the program go after --)" ;;
  esac
done
name=${name:-$kind}
flags=("$@")

[ -f "$root/scripts/launch/family_$family.sh" ] || fail "unknown family '$family'"
for part in variables recipes kinds launchers containers ranks slurm "family_$family"; do
  source "$root/scripts/launch/$part.sh"
done

main() {
  find_place
  set_family
  compose_program
  case ${program[0]} in *.py) program[0]=$root/${program[0]} ;; esac
  case $output in /*) ;; *) output=$PWD/$output ;; esac
  set_rank_variables
  choose_launcher
  if [ "${DRY_RUN:-0}" = 1 ]; then
    describe_start
    return
  fi
  folder_answers "$output" 60 || fail "$output does not answer: is its file system up? Else name another folder with MODEL_DIR or RESULTS_DIR"
  said=$(mkdir -p "$output/logs" 2>&1) || fail "${said#mkdir: }: name another folder with MODEL_DIR or RESULTS_DIR"
  [ -z "$in_slurm" ] || probe_srun
  prepare_container
  if wants_preflight; then
    compose_preflight
    run_ranks preflight "${preflight[@]}"
    [ "$run_code" = 0 ] || leave "$run_code"
    [ "${PREFLIGHT:-auto}" != only ] || return 0
  fi
  save_at_start=$(newest_save)
  run_ranks run "${program[@]}"
  leave "$run_code"
}

main
