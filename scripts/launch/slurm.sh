# shellcheck shell=bash disable=SC2034,SC2154
# What only a Slurm job needs: is its PMIx usable, how does it signal, shall it be queued again. Sourced by
# scripts/launch.sh.

# srun lists pmix even where the nodes lack its library. One empty task on every node tells, and that the nodes answer.
probe_srun() {
  [ "$launcher" = srun ] || return 0
  local said
  if ! said=$(timeout 120 srun "--mpi=$mpi_kind" "--nodes=$nodes" "--ntasks=$nodes" --ntasks-per-node=1 true 2>&1); then
    said=$(grep -m 1 -i 'error' <<<"$said" || true)
    if [ -n "${CONTAINER_IMAGE:-}" ] || ! command -v mpirun >/dev/null; then
      fail "srun --mpi=$mpi_kind starts no task on every node: $said"
    fi
    say "srun --mpi=$mpi_kind does not work here ($said): mpirun starts the ranks"
    launcher=mpirun
  fi
}

# proctrack/linuxproc signals all processes of a task, the others only its first one.
slurm_signals_all() {
  [ "$launcher" = srun ] && scontrol show config 2>/dev/null | grep -q '^ProctrackType *= *proctrack/linuxproc'
}

# Seconds of a time as Slurm prints it: [days-][hours:]minutes:seconds.
slurm_seconds() {
  [[ $1 =~ ^(([0-9]+)-)?(([0-9]+):)?([0-9]+):([0-9]+)$ ]] || return 1
  echo $((10#${BASH_REMATCH[6]} + 60 * (10#${BASH_REMATCH[5]} + 60 * (10#${BASH_REMATCH[4]:-0} + 24 * 10#${BASH_REMATCH[2]:-0}))))
}

# True if so little of the job's time is left that it is the time limit that ends it; preemption comes at any time, and
# leaves the limit (but not the job's end time) as it was.
is_at_time_limit() {
  local limit used
  read -r limit used < <(squeue -h -j "$SLURM_JOB_ID" -o '%l %M' 2>/dev/null) || return 1
  limit=$(slurm_seconds "$limit") && used=$(slurm_seconds "$used") || return 1
  [ $((limit - used)) -le "${TIME_LIMIT_MARGIN:-300}" ]
}

# The name of the newest checkpoint, which tells its step.
newest_save() {
  local saves=("$output"/ckpt-[0-9]*.index)
  echo "${saves[-1]}"
}

# After an orderly stop: the same job once more, from its checkpoint. Only for USR1, which --signal and preemption send to
# the batch script: a job that was cancelled stays cancelled, and what Slurm itself preempts it queues itself.
queue_again() {
  [ -n "$in_slurm" ] && [ "$first_signal" = USR1 ] && [ -n "$is_batch" ] || return 0
  if [ "${REQUEUE:-1}" = 0 ]; then
    say "REQUEUE=0: submit the same job again to continue"
  elif [ "$ended_by_limit" = 1 ] && [ "${CHAIN:-0}" != 1 ]; then
    say "the time limit ended the job: submit the same job again to continue, or CHAIN=1 to have that done"
  elif [ "$ended_by_limit" = 1 ] && [ "$(newest_save)" = "$save_at_start" ]; then
    say "the time limit came before the first save of this job, and would again: submit it with more --time"
  elif requeue; then
    say "job $SLURM_JOB_ID is in the queue again and will continue"
  else
    say "scontrol requeue refused: submit the same job again to continue"
  fi
}

# A controller that is busy, or being restarted, is asked again.
requeue() {
  local attempt
  for attempt in 1 2 3 4 5; do
    if scontrol requeue "$SLURM_JOB_ID"; then
      accept_fewer_nodes
      return 0
    fi
    [ "$attempt" = 5 ] || sleep "${REQUEUE_RETRY_SECONDS:-10}"
  done
  return 1
}

# Slurm forgets the range of sbatch -N 2-4 when a job starts, and waits for as many nodes as it had. With MIN_NODES it is
# told the range again; CPUs and tasks are those of the least, or they would demand the nodes.
accept_fewer_nodes() {
  local least=${MIN_NODES:-}
  [ -n "$least" ] || return 0
  least=$(number MIN_NODES "$least") || return 0
  # What is queued again is being ended: Slurm's SIGTERM must not reach this.
  (
    trap '' TERM
    scontrol update "JobId=$SLURM_JOB_ID" "NumCPUs=$least" "NumTasks=$((least * ranks_per_node))" "NumNodes=$least-$nodes"
  ) || say "scontrol update refused: the job waits for $nodes nodes"
}

# A node that dies takes its ranks along, and the others fail long before Slurm notices (SlurmdTimeout, 5 minutes by
# default). Then it queues a job with --requeue again by itself, if the job is still there; so this waits. Asking for it
# earlier (scontrol requeue) lost the job's GPUs in Slurm 22.05: "gres: node offset invalid" at the next start.
wait_for_replacement() {
  local node dead='' until
  [ -n "$in_slurm" ] && [ -n "$is_batch" ] && [ "${REQUEUE:-1}" != 0 ] && [ "$signals" = 0 ] || return 0
  for node in $(running_ranks | cut -d' ' -f4 | sort -u); do answers "$node" || dead="$dead $node"; done
  [ -n "$dead" ] || return 0
  say "no answer from node(s)$dead: waiting until Slurm notices and queues the job again, to continue from its last save"
  until=$((SECONDS + ${LOST_NODE_SECONDS:-900}))
  while [ "$SECONDS" -lt "$until" ]; do sleep 2; done
  say "Slurm did not queue the job again within ${LOST_NODE_SECONDS:-900} s: submit the same job again to continue"
}

answers() {
  timeout 60 srun --overlap --mpi=none --nodes=1 --ntasks=1 --nodelist="$1" true >/dev/null 2>&1 </dev/null
}
