# shellcheck shell=bash disable=SC2034,SC2154
# Chooses how ranks are started and composes that command. Sourced by scripts/launch.sh.

# Sets launcher, ranks, nodes, ranks_per_node.
choose_launcher() {
  nodes=1
  if [ -n "$documented_nodes" ] && [ -z "$in_slurm" ]; then
    [ "${DRY_RUN:-0}" = 1 ] || fail "this is a Slurm job: submit it, as in: sbatch -N $documented_nodes slurm/$name.sub"
    launcher=srun nodes=$documented_nodes ranks=${NGPU:-$gpus} mpi_kind=pmix
    ranks_per_node=$(((ranks + nodes - 1) / nodes))
    return
  fi
  count_ranks
  launcher=${LAUNCHER:-auto}
  case $launcher in
    auto) launcher=$(best_launcher) || exit 2 ;;
    srun | mpirun | horovodrun) command -v "$launcher" >/dev/null || fail "LAUNCHER=$launcher, but there is no $launcher in PATH" ;;
    plain) [ "$ranks" = 1 ] || fail "LAUNCHER=plain starts one rank, not $ranks" ;;
    *) fail "LAUNCHER=$launcher: expected auto, srun, mpirun, horovodrun or plain" ;;
  esac
  if [ "$launcher" = srun ] && ! mpi_kind=$(slurm_mpi); then
    fail "srun --mpi=list offers no pmix, which Horovod's MPI needs: set LAUNCHER=mpirun or LAUNCHER=horovodrun"
  fi
  check_gpus
}

# In an allocation: its tasks, or NGPU over its nodes. Elsewhere NGPU, or the documented number.
count_ranks() {
  local wanted=${NGPU:-}
  [ -z "$wanted" ] || wanted=$(number NGPU "$wanted")
  if [ "$is_parallel" = 0 ]; then
    ranks=1 ranks_per_node=1
  elif [ -n "$in_slurm" ]; then
    nodes=${SLURM_JOB_NUM_NODES:-${SLURM_NNODES:-1}}
    ranks_per_node=${SLURM_NTASKS_PER_NODE:-}
    ranks=${wanted:-${SLURM_NTASKS:-$((nodes * ${ranks_per_node:-1}))}}
    [ -z "$wanted" ] || ranks_per_node=
    ranks_per_node=${ranks_per_node:-$(((ranks + nodes - 1) / nodes))}
  else
    if [ -n "${HOSTS:-}" ]; then
      nodes=$(tr ',' '\n' <<<"$HOSTS" | wc -l)
      wanted=${wanted:-$(tr ',' '\n' <<<"$HOSTS" | awk -F: '{n += ($2 ? $2 : 1)} END {print n}')}
    fi
    ranks=${wanted:-$gpus}
    ranks_per_node=$(((ranks + nodes - 1) / nodes))
  fi
  if [ "$is_parallel" = 1 ] && [ "$ranks" != "$gpus" ]; then
    say "$ranks ranks instead of the documented $gpus: the learning rate follows the global batch"
  fi
}

best_launcher() {
  if [ -n "$in_slurm" ] && [ "$is_parallel" = 1 ] && command -v srun >/dev/null; then
    if slurm_mpi >/dev/null; then
      echo srun
      return
    fi
    say "srun --mpi=list offers no pmix: the ranks are started by another launcher"
  fi
  if [ "$ranks" = 1 ] && [ -z "${HOSTS:-}" ]; then
    echo plain
  elif command -v mpirun >/dev/null; then
    echo mpirun
  elif command -v horovodrun >/dev/null; then
    echo horovodrun
  else
    fail "$ranks ranks need mpirun or horovodrun, and neither is in PATH: make the environment with scripts/setup_env.sh, or set NGPU=1"
  fi
}

# The PMIx flavour that srun offers; pmi2 does not start Open MPI's ranks.
slurm_mpi() {
  local offered
  offered=$(srun --mpi=list 2>&1 | tr -s ' \t,' '\n') || true
  grep -m 1 -x 'pmix' <<<"$offered" || grep -m 1 -xE 'pmix_v[0-9]+' <<<"$offered"
}

# True if all ranks are on this host; one that HOSTS names alone may be another.
is_here() { [ "$nodes" = 1 ] && [ -z "${HOSTS:-}" ]; }

# One rank for each GPU. Without any GPU the ranks run on the CPU, which is how a run is tried out.
check_gpus() {
  local found=0
  is_here && [ -z "${CONTAINER_IMAGE:-}" ] || return 0
  if command -v nvidia-smi >/dev/null; then found=$(nvidia-smi -L 2>/dev/null | grep -c '^GPU') || true; fi
  if [ "$found" = 0 ]; then
    say "no GPU here: $ranks rank(s) on the CPU"
  elif [ "$ranks" -gt "$found" ]; then
    fail "$ranks GPUs wanted, $found here: set NGPU=$found"
  fi
}

# Sets start: the words that come before those of one rank.
compose_start() {
  case $launcher in
    srun)
      start=(
        srun "--mpi=$mpi_kind" --kill-on-bad-exit=1 "--nodes=$nodes" "--ntasks=$ranks"
        "--ntasks-per-node=$ranks_per_node" --unbuffered
      )
      if [ -n "${SLURM_CPUS_PER_TASK:-}" ]; then
        start+=("--cpus-per-task=$SLURM_CPUS_PER_TASK")
      else
        # Otherwise some sites bind each task to a single core. rank.sh shares the cores out.
        start+=(--cpu-bind=none)
      fi
      # Inside an interactive step (srun --pty) the resources are already taken by that step.
      case ${SLURM_STEP_ID:-} in [0-9]*) start+=(--overlap) ;; esac
      ;;
    mpirun) compose_mpirun ;;
    horovodrun)
      start=(horovodrun --gloo --disable-cache -np "$ranks")
      add_hosts
      if is_here; then
        # Alone on one host it can hang while it looks for the interface of the others.
        start+=(-H "localhost:$ranks" --network-interfaces lo)
      fi
      ;;
    plain) start=() ;;
  esac
}

compose_mpirun() {
  local variable
  start=(mpirun -np "$ranks" --bind-to none --oversubscribe)
  [ "$(id -u)" != 0 ] || start+=(--allow-run-as-root)
  add_hosts
  if ! is_here; then
    for variable in $(exported_names); do start+=(-x "$variable"); done
  fi
}

# Adds to start the hosts and their ranks, unless all ranks are here.
add_hosts() {
  if [ -n "${HOSTS:-}" ]; then
    start+=(-H "$HOSTS")
  elif [ "$nodes" -gt 1 ]; then
    start+=(-H "$(scontrol show hostnames "${SLURM_JOB_NODELIST:-}" | sed "s/\$/:$ranks_per_node/" | paste -sd,)")
  fi
}

# The names of the nodes, one a line; for a dry run outside an allocation node1, node2, ...
node_names() {
  if [ -n "$in_slurm" ] && command -v scontrol >/dev/null; then
    scontrol show hostnames "${SLURM_JOB_NODELIST:-}"
  elif [ -n "${HOSTS:-}" ]; then
    tr ',' '\n' <<<"$HOSTS" | cut -d: -f1
  elif [ "$nodes" = 1 ]; then
    uname -n
  else
    seq -f 'node%g' "$nodes"
  fi
}

# What DRY_RUN=1 prints.
describe_start() {
  local node first=0 last variable
  compose_command run "${program[@]}"
  echo "# $name: $launcher, $ranks rank(s) on $nodes node(s), results in $output"
  while read -r node; do
    last=$((first + ranks_per_node - 1))
    [ "$last" -lt "$ranks" ] || last=$((ranks - 1))
    echo "# node $node: ranks $first-$last"
    first=$((last + 1))
  done < <(node_names)
  for variable in "${shown_variables[@]}"; do printf 'export %s=%q\n' "$variable" "${!variable}"; done
  printf '%q ' "${command[@]}"
  echo
}
