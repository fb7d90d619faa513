# shellcheck shell=bash disable=SC2034,SC2154
# Starts the ranks, passes signals on, waits, and says how they ended. Sourced by scripts/launch.sh.
#
# The ranks are in a session of their own, so that a terminal's Ctrl-C reaches this script alone; it asks them to save.
# Open MPI 5 answers SIGTERM and SIGINT by killing its ranks after 0.2 s, and passes SIGUSR1 on: that is what is sent.

is_batch=''
[ -z "${SLURM_JOB_ID:-}" ] || [ -n "${SLURM_STEP_ID:-}" ] || is_batch=1
first_signal='' signals=0 ended_by_limit=0 started='' interrupted=0 keeper='' ender='' is_down=''
stop_seconds=$(number STOP_SECONDS "${STOP_SECONDS:-300}")

# Sets command: all words, from the launcher to the program's flags.
compose_command() {
  local purpose=$1
  shift
  rank_logs=$output/logs/$(date '+%Y-%m-%d-%H-%M-%S')${SLURM_JOB_ID:+-job-$SLURM_JOB_ID}
  [ "$purpose" = run ] || rank_logs=$rank_logs-$purpose
  export RINGDET_RANK_LOGS=$rank_logs RINGDET_RANKS_PER_NODE=$ranks_per_node RINGDET_BIND=${BIND:-auto}
  export RINGDET_LAUNCHER=$launcher RINGDET_STOPS_ORDERLY=$stops_orderly
  export RINGDET_SIGNALS_REACH_ALL=0
  if [ -n "$in_slurm" ] && slurm_signals_all; then RINGDET_SIGNALS_REACH_ALL=1; fi
  compose_start
  add_container
  command=("${start[@]}" "$root/scripts/launch/rank.sh" "$python" "$@")
}

# A preflight takes some seconds; where GPUs or several nodes are about to be used they are well spent.
wants_preflight() {
  [ "$is_parallel" = 1 ] || return 1
  case ${PREFLIGHT:-auto} in
    1 | only) return 0 ;;
    0) return 1 ;;
    auto) ! is_here || { command -v nvidia-smi >/dev/null && nvidia-smi -L >/dev/null 2>&1; } ;;
    *) fail "PREFLIGHT=$PREFLIGHT: expected auto, 0, 1 or only" ;;
  esac
}

compose_preflight() {
  preflight=(-m engine.ranks.preflight "--reduced_mb=$reduced_mb" "--output_dir=$output" "${program[@]:1}")
}

# Runs the words after the interpreter on all ranks. Sets run_code: 0, 75, or the code of the first rank that failed.
run_ranks() {
  local attempt
  for attempt in 1 2 3; do
    start_ranks "$@"
    if [ "$signals" -gt 0 ] || [ "$attempt" = 3 ] || ! stumbled_in_mpi; then return 0; fi
    say "Open MPI itself failed in MPI_Init, before any rank had begun (its issue 12495): starting the ranks again"
    sleep 1 # logs are named by the second
  done
}

# Open MPI 5 under srun: a rank that gets a message of a faster one while it still is in MPI_Init breaks off.
stumbled_in_mpi() {
  [ "$run_code" != 0 ] && [ -z "$is_down" ] && grep -qs 'mca_pml_ob1_recv_frag_callback_match' "$rank_logs"/rank-*.log &&
    grep -qs 'ompi_mpi_init' "$rank_logs"/rank-*.log
}

start_ranks() {
  local status
  # Told to stop between the preflight and the run.
  if [ "$signals" -gt 0 ]; then
    run_code=75
    return
  fi
  compose_command "$@"
  mkdir -p "$rank_logs"
  say "$launcher, $ranks rank(s) on $nodes node(s); logs of all ranks: $rank_logs"
  trap 'on_signal INT' INT
  trap 'on_signal TERM' TERM
  trap 'on_signal USR1' USR1
  trap 'on_signal HUP' HUP
  trap '' PIPE
  setsid "${command[@]}" </dev/null &
  started=$!
  # Groups of their own: what ends the launcher does not end them.
  set -m
  keep_watch &
  keeper=$!
  set +m
  while :; do
    interrupted=0 status=0
    wait "$started" || status=$?
    [ "$interrupted" = 1 ] || break
  done
  started=
  kill -KILL -- "-$keeper" ${ender:+"-$ender"} 2>/dev/null || true
  wait "$keeper" ${ender:+"$ender"} 2>/dev/null || true
  judge "$status"
}

# Beside the launcher. If it is killed, its ranks are treated as after a SIGTERM. If a rank has failed and what started it
# does not end the others, they are ended here.
keep_watch() {
  local failed_for=0 parent=$$
  trap '' INT TERM HUP USR1 PIPE
  while [ "$parent" = "$$" ]; do
    kill -0 "$started" 2>/dev/null || return 0
    if [ -n "$(cat "$rank_logs"/*.end 2>/dev/null | first_cause)" ]; then failed_for=$((failed_for + 2)); fi
    if [ "$failed_for" -ge 60 ]; then
      say "a rank has failed and $launcher has not ended the others within 60 s: ending them"
      end_ranks
      return
    fi
    sleep 2
    # A killed launcher that nobody has waited for still is a process, but nobody's parent.
    read -r _ _ _ parent _ <"/proc/$BASHPID/stat"
  done
  say "the launcher was killed: the ranks are asked to finish their step, save and leave"
  if [ "$stops_orderly" = 1 ]; then ask_ranks_to_stop; else end_ranks; fi
  end_after "$stop_seconds"
}

# Ends what is left of the ranks after so many seconds.
end_after() {
  local waited
  trap '' INT TERM HUP USR1 PIPE
  for ((waited = 0; waited < 5 * $1; waited++)); do
    kill -0 -- "-$started" 2>/dev/null || return 0
    sleep 0.2
  done
  say "the ranks have not ended $1 s after they were asked to (STOP_SECONDS): ending them"
  end_ranks
  wait
}

on_signal() {
  interrupted=1
  signals=$((signals + 1))
  [ -n "$first_signal" ] || first_signal=$1
  [ -n "$started" ] || return 0
  if [ "$signals" -gt 1 ] || [ "$stops_orderly" = 0 ]; then
    say "$1: ending the ranks"
    end_ranks
  elif [ -n "$in_slurm" ] && [ "$1" = TERM ] && [ "$launcher" = srun ]; then
    say "TERM: Slurm has told the ranks too; they save and leave"
  else
    say "$1: the ranks are asked to finish their step, save and leave; a second signal ends them at once"
    if [ -n "$in_slurm" ] && [ "$1" = USR1 ] && is_at_time_limit; then ended_by_limit=1; fi
    ask_ranks_to_stop
  fi
  [ -z "$ender" ] || return 0
  set -m
  end_after "$stop_seconds" &
  ender=$!
  set +m
}

# The ranks that have started and not ended, one a line: rank, host, process there, node.
running_ranks() {
  local record
  for record in "$rank_logs"/*.start; do
    [ ! -e "$record" ] || [ -e "${record%.start}.end" ] || cat "$record"
  done
}

ask_ranks_to_stop() {
  local rank host pid node
  case $launcher in
    srun | mpirun) kill -USR1 "$started" ;;
    *)
      # horovodrun passes nothing on: the ranks of this host are told directly.
      while read -r rank host pid node; do
        [ "$host" != "$(uname -n)" ] || kill -USR1 "$pid" 2>/dev/null || true
      done < <(running_ranks)
      ;;
  esac
}

end_ranks() {
  local group=$started
  kill -TERM -- "-$group" 2>/dev/null || true
  # Those that do not listen are killed after ten seconds.
  (
    for _ in {1..50}; do
      kill -0 -- "-$group" 2>/dev/null || exit 0
      sleep 0.2
    done
    kill_ranks "$group"
  ) >/dev/null 2>&1 &
}

# Not even a stopped process outlives this. The ranks are in groups of their own, which mpirun and rank.sh make.
kill_ranks() {
  local rank host pid node
  set +e # what has ended by itself is no failure here
  if [ "$launcher" = srun ]; then scancel --signal=KILL "$SLURM_JOB_ID"; fi
  kill -KILL -- "-$1"
  while read -r rank host pid node; do
    [ "$host" = "$(uname -n)" ] || continue
    kill -KILL "$pid"
    if read -r pid <"$(file_of "$rank" child)"; then kill -KILL -- "-$pid"; fi
  done < <(running_ranks)
}

# Reads what the ranks left: NAME.start (rank host pid node) and NAME.end (rank host code time, a signal they were told).
judge() {
  local status=$1 ends cause
  run_code=$status
  if ! folder_answers "$rank_logs" 10; then
    is_down=1
    say "$launcher ended with code $status, and $rank_logs does not answer: its file system is down. What the ranks said last is above"
    return
  fi
  ends=$(cat "$rank_logs"/*.end 2>/dev/null) || true
  cause=$(first_cause <<<"$ends")
  if [ -n "$cause" ]; then
    # shellcheck disable=SC2086  # three words
    tell_failure $cause
  elif awk '$3 == 75 {found = 1} END {exit !found}' <<<"$ends"; then
    run_code=75
  elif [ "$status" = 0 ]; then
    run_code=0
  else
    tell_lost "$status"
  fi
}

# Prints rank, host and code of the failure from which the others follow; nothing if no rank failed. It is the earliest,
# but ranks hear of a death within milliseconds and may be noted down before it. So among those of the first two seconds
# one killed by a signal that it was not told by the launcher comes first, then one that gave a reason.
first_cause() {
  local rank host code time told certainty
  while read -r rank host code time told; do
    [ "${code:-0}" != 0 ] && [ "$code" != 75 ] || continue
    certainty=3
    if [ "$code" -gt 128 ] && [ -z "$told" ]; then
      certainty=1
    elif grep -qs '^ERROR (rank ' "$(file_of "$rank" log)"; then
      certainty=2
    fi
    echo "$certainty $time $rank $host $code"
  done | sort -k2,2n | awk 'NR == 1 {last = $2 + 2} $2 <= last' | sort -s -k1,1n | awk 'NR == 1 {print $3, $4, $5}'
}

# Among the files of a rank that with this ending.
file_of() { printf '%s/rank-%05d.%s' "$rank_logs" "$1" "$2"; }

tell_failure() {
  local rank=$1 host=$2 code=$3 file reason words last
  run_code=$code
  reason="ended with code $code"
  if [ "$code" -gt 128 ]; then
    reason="was killed by signal $((code - 128)) ($(kill -l $((code - 128)) 2>/dev/null || echo unknown))"
    [ "$code" != 137 ] || reason="$reason; the kernel does that when memory runs out (see dmesg on $host)"
  fi
  file=$(file_of "$rank" log)
  say "rank $rank on $host $reason. Its last lines, from $file:"
  words=$(grep -s -m 1 '^ERROR (rank ' "$file") || true
  last=$(tail -n "${FAILURE_LINES:-20}" "$file" 2>/dev/null) || true
  # The stack of a thread that is cut off may follow its reason.
  [[ -z $words || $last == *"$words"* ]] || last="$words"$'\n...\n'"$last"
  printf '%s\n' "$last" | sed 's/^/  | /' >&2
}

# No rank was noted down as failed: the launcher itself, a whole node with its ranks, or srun was faster.
tell_lost() {
  local lost='' rank host pid node reason
  run_code=$1
  reason=$(cat "$rank_logs"/rank-*.log 2>/dev/null | grep -m 1 '^ERROR (rank ') || true
  if [ -n "$reason" ]; then
    say "$launcher ended with code $1: $reason"
    return
  fi
  while read -r rank host pid node; do lost="$lost rank $rank on $host;"; done < <(running_ranks)
  if [ -n "$lost" ]; then
    say "$launcher ended with code $1, and these ranks vanished without a word:$lost their logs are in $rank_logs"
  else
    say "$launcher ended with code $1 before any rank had started; its message is above"
  fi
}

# Ends the launcher with the code of the run.
leave() {
  if [ "$1" = 75 ]; then
    say "stopped on request (code 75): the same command continues"
    queue_again
  elif [ "$1" != 0 ]; then
    wait_for_replacement
  fi
  exit "$1"
}
