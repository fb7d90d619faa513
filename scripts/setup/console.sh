# shellcheck shell=bash disable=SC2034,SC2154
# Progress lines, the log, errors, and the checks of the machine. Sourced by scripts/setup_env.sh.

log=/dev/null
child=

say() {
  printf '[setup %4ds] %s\n' "$SECONDS" "$1"
  printf '[setup %4ds] %s\n' "$SECONDS" "$1" >>"$log"
}

# Ends the set-up with one paragraph: what is wrong and what to do.
fail() {
  printf '\nsetup_env.sh: %s\n' "$1" >&2
  printf 'FAILED: %s\n' "$1" >>"$log"
  exit 1
}

open_log() {
  if ! mkdir -p "$venv" 2>/dev/null || ! touch "$venv/setup.log" 2>/dev/null; then
    fail "cannot write to $venv. Make the folder writable, or name another one with --venv DIR."
  fi
  log=$venv/setup.log
  printf '\n===== %s =====\n' "$(date '+%Y-%m-%d %H:%M:%S')" >>"$log"
  trap 'stop_child; exit 130' INT TERM HUP
  trap 'stop_child' EXIT
}

stop_child() {
  [ -z "$child" ] || kill -TERM -- "-$child" 2>/dev/null || true
  child=
}

# One set-up at a time: a second one waits, then finds the work done.
lock_against_others() {
  command -v flock >/dev/null || return 0
  exec 9>"$venv/.setup-lock"
  if ! flock --nonblock 9; then
    say "another set-up of $venv is running: waiting for it"
    flock 9
  fi
}

# Runs a command with its output in the log and a line of progress every 15 seconds.
# The command gets a process group of its own, so that Ctrl-C ends its compilers and downloads too.
run_logged() {
  local label=$1 started=$SECONDS status=0 shown=$SECONDS note
  shift
  log_mark=$(wc -c <"$log")
  printf '+ %s\n' "$*" >>"$log"
  setsid "$@" >>"$log" 2>&1 </dev/null 9>&- &
  child=$!
  while kill -0 "$child" 2>/dev/null; do
    sleep 0.2
    if [ $((SECONDS - shown)) -ge 15 ]; then
      shown=$SECONDS
      note=$(last_output | tail -n 500 | sed -nE -e 's/^ *(\[[0-9]+\/[0-9]+\]).*/\1/p' \
        -e 's/^ *(Collecting [^ ]+|Downloading [^ ]{1,50}|Installing collected packages).*/\1/p' | tail -n 1)
      say "$label: $((SECONDS - started)) s${note:+, $note}"
    fi
  done
  wait "$child" || status=$?
  child=
  return "$status"
}

# What the last run_logged command printed.
last_output() {
  tail -c +"$((log_mark + 1))" "$log"
}

# Turns the output of a failed command into an error that says what to do.
fail_from_log() {
  local what=$1 output
  output=$(last_output)
  if grep -qiE 'No space left on device|Errno 28' <<<"$output"; then
    fail "$what failed because the disk is full ($(df -Ph "$venv" | awk 'NR==2 {print $4 " left on " $6}')). Free space, \
or set RINGDET_VENV, TMPDIR and PIP_CACHE_DIR to folders on a larger disk, and run the same command again."
  fi
  local no_network='Name or service not known|name resolution|Network is unreachable|Connection refused|ProxyError'
  no_network="$no_network|Max retries exceeded|Read timed out|ConnectTimeout|No matching distribution found"
  if grep -qiE "$no_network" <<<"$output"; then
    fail "$what failed because packages could not be downloaded. Check that this machine reaches the Python package \
index (behind a proxy set HTTPS_PROXY, with a mirror set PIP_INDEX_URL) and run the same command again: what is already \
there is kept. The last words of pip: $(grep -iE '^ *ERROR|Max retries' <<<"$output" | tail -n 1 | cut -c1-200)"
  fi
  if grep -qiE 'Killed signal|internal compiler error: Killed|Cannot allocate memory' <<<"$output"; then
    fail "$what ran out of memory. Close other programs, or set RINGDET_JOBS=1, and run the same command again."
  fi
  echo "Last lines of the log:" >&2
  tail -n 15 <<<"$output" | cut -c1-200 | sed 's/^/  | /' >&2
  fail "$what failed. The whole output is in $log."
}

check_platform() {
  if [ "$(uname -s)" != Linux ] || [ "$(uname -m)" != x86_64 ]; then
    fail "this is $(uname -s) on $(uname -m). The pinned packages and Horovod are for Linux on x86_64: use such a \
machine, a container or a virtual machine."
  fi
}

# Horovod is C++17: a compiler that cannot build and link a small program would fail minutes later.
find_compiler() {
  local candidate source output=
  source='#include <optional>
int main() { return std::optional<int>(0).value(); }'
  cxx=
  for candidate in ${CXX:+"$CXX"} g++ c++ clang++; do
    command -v "$candidate" >/dev/null || continue
    if output=$("$candidate" -std=c++17 -x c++ -o /dev/null - <<<"$source" 2>&1); then
      cxx=$candidate
      return
    fi
  done
  if [ -n "$output" ]; then
    fail "the C++ compiler does not build a small C++17 program, and Horovod needs one. It said: \
$(head -n 2 <<<"$output" | tr '\n' ' ' | cut -c1-300) On Debian or Ubuntu: sudo apt-get install g++"
  fi
  fail "no C++ compiler found (looked for ${CXX:+$CXX, }g++, c++, clang++), and Horovod has to be built here. On Debian \
or Ubuntu: sudo apt-get install g++; on Red Hat: sudo dnf install gcc-c++; with conda: conda install gxx. \
Then run the same command again."
}

check_disk() {
  local need_mb=4000 free_mb
  [ "$device" = cpu ] || need_mb=10000
  [ ! -s "$state/packages" ] || need_mb=800
  free_mb=$(df -Pm "$venv" | awk 'NR==2 {print $4}')
  if [ "$free_mb" -lt "$need_mb" ]; then
    fail "only $free_mb MB are free on the disk of $venv, and the environment needs about $need_mb MB. Free space, or \
put the environment on another disk with --venv DIR (RINGDET_VENV=DIR for quickstart.sh and run_tests.sh)."
  fi
  free_mb=$(df -Pm "${TMPDIR:-/tmp}" | awk 'NR==2 {print $4}')
  if [ "$free_mb" -lt 800 ]; then
    fail "only $free_mb MB are free in ${TMPDIR:-/tmp}, and downloads and the build of Horovod need about 800 MB there. \
Free space, or set TMPDIR to a folder on another disk."
  fi
}

# Stamps are written aside and renamed, each after its step has been checked.
write_stamp() {
  mkdir -p "$state"
  printf '%s\n' "$2" >"$state/.new"
  mv "$state/.new" "$state/$1"
}

stamp_matches() {
  [ "$(cat "$state/$1" 2>/dev/null || true)" = "$2" ]
}

# Where downloads and wheels are kept between environments.
cache_dir() {
  printf '%s' "${RINGDET_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/ringdet}"
}
