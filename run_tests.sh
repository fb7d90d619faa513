#!/usr/bin/env bash
# Installs what the tests need and runs them: all that need no GPU. Arguments go to pytest.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd -P)

usage() {
  cat <<'USAGE'
Usage: ./run_tests.sh [pytest arguments]

  ./run_tests.sh                          everything that needs no GPU, and a seventh of the nightly tests
  ./run_tests.sh -m quick                 the quick part: about three minutes, most of what can break
  ./run_tests.sh tests/unit/engine -x     one folder, up to the first failure
  ./run_tests.sh -n 8                     on eight processes, on a machine with the cores for it
  ./run_tests.sh -m nightly               all nightly tests
  ./run_tests.sh -m gpu                   only what needs a GPU
  RINGDET_TESTS=all ./run_tests.sh        everything that needs no GPU

Ends with what took longest. Markers: quick; slow (over ten seconds); multi (several ranks); nightly (further variants of
what another test shows: each day another seventh of them is run, the day being RINGDET_TESTS_DAY or today's); gpu.
Without -n one process runs what arguments name; the plain run and the quick part use all cores, at most eight.
DETECTION_TEST_DATA names the folder with real data sets (default: ../shared/data); without it the tests that read them
are skipped. Environment: scripts/setup_env.sh --help.
USAGE
}

if [ "${1:-}" = --help ] || [ "${1:-}" = -h ]; then
  usage
  exit 0
fi

"$root/scripts/setup_env.sh" --extra dev --extra eval --extra export
cd "$root"
python=${RINGDET_VENV:-$root/.venv}/bin/python
cores=$(nproc)
((cores < 8)) || cores=8
options=(--durations=25 --durations-min=5)
case $* in
  # One process more than there are cores: starting ranks and clusters is waiting for the most part. The tests of a
  # file share what they have made, so a file stays in one process; the longest come first.
  "") options+=(-n "$((cores + 1))" --dist loadfile --no-loadscope-reorder) ;;
  "-m quick") options+=(-n "$cores" --dist loadfile) ;;
esac
exec "$python" -m pytest "${options[@]}" "$@"
