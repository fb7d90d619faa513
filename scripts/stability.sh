#!/usr/bin/env bash
# Runs a convergence script once for each of SEEDS and reports the AP of all runs, their mean and standard deviation:
#   SEEDS='1 2 3 4 5' scripts/stability.sh maskrcnn/convergence-AMP-8xV100-16G-pytorch.sh [FLAGS]
# Each run has a folder of its own, that of the script with -seed-N at the end. Called again it goes on where it stopped.
set -euo pipefail

fail() {
  printf 'stability.sh: ERROR: %s\n' "$*" >&2
  exit 2
}

[ $# -ge 1 ] || fail "expected a convergence script, as in: scripts/stability.sh D0/convergence-AMP-8xA100-80G.sh"
script=$(dirname "${BASH_SOURCE[0]}")/$1
shift
[ -x "$script" ] || fail "there is no script $script"
for flag in "$@"; do
  case ${flag%%=*} in --seed | --model_dir) fail "$flag would be the same for all runs: set SEEDS or MODEL_DIR" ;; esac
done
read -ra seeds <<<"${SEEDS:-1 2 3 4 5}"

# Where the script writes, it says in a dry run.
base=$(DRY_RUN=1 "$script" "$@" | sed -n 's/^# .*, results in //p')
[ -n "$base" ] || fail "$script does not say where it writes"

# One number of a run's last evaluation; nothing where it has none.
score() { sed -n "s/^ *\"$1\": *\\([0-9.eE+-]*\\),\\{0,1\\}\$/\\1/p" "$base-seed-$2/evaluation/metrics.json"; }

# The deviation is that of the values themselves (divided by their number), as the references state it.
report() {
  local key seed
  for key in AP mask_AP; do
    for seed in "${seeds[@]}"; do score "$key" "$seed"; done | awk -v key="$key" '
      {line = line sprintf(" %.4f", $1); sum += $1; squares += $1 * $1}
      END {
        if (!NR) exit
        mean = sum / NR; variance = squares / NR - mean * mean
        printf "%s:%s, mean %.4f, deviation %.4f\n", key, line, mean, sqrt(variance > 0 ? variance : 0)
      }'
  done
}

for seed in "${seeds[@]}"; do
  if [ -e "$base-seed-$seed/ckpt-final.index" ]; then continue; fi
  MODEL_DIR=$base-seed-$seed "$script" "$@" "--seed=$seed"
done
[ "${DRY_RUN:-0}" = 1 ] || report
