#!/usr/bin/env bash
# Installs what the tests need and runs them: all that need no GPU. Arguments go to pytest.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd -P)

usage() {
  cat <<'USAGE'
Usage: ./run_tests.sh [pytest arguments]

  ./run_tests.sh                          everything that needs no GPU
  ./run_tests.sh -m 'not slow and not gpu and not multi'   the quick part, for use while writing
  ./run_tests.sh tests/unit/engine -x     one folder, up to the first failure
  ./run_tests.sh -n 8                     on eight processes, on a machine with the cores for it
  ./run_tests.sh -m gpu                   only what needs a GPU

Markers: slow (over ten seconds), multi (several ranks), gpu. DETECTION_TEST_DATA names the folder with real data sets
(default: ../shared/data); without it the tests that read them are skipped. Environment: scripts/setup_env.sh --help.
USAGE
}

if [ "${1:-}" = --help ] || [ "${1:-}" = -h ]; then
  usage
  exit 0
fi

"$root/scripts/setup_env.sh" --extra dev --extra eval
cd "$root"
python=${RINGDET_VENV:-$root/.venv}/bin/python
if [ $# -gt 0 ]; then
  exec "$python" -m pytest --durations=15 "$@"
fi
# Those that start ranks and clusters come second, two files at a time: each takes two cores by itself.
cores=$(nproc)
status=0
"$python" -m pytest --durations=15 -n "$((cores < 8 ? cores : 8))" tests/unit tests/reference || status=$?
"$python" -m pytest --durations=15 -n 2 --dist loadfile --no-loadscope-reorder tests/integration || status=$?
exit "$status"
