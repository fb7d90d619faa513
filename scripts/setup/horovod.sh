# shellcheck shell=bash disable=SC2034,SC2154
# Builds, keeps and checks Horovod. Sourced by setup_env.sh.
#
# pip would keep a wheel it built and hand it to an environment with another TensorFlow, where it cannot load. Here a
# wheel is kept under a key of everything it was built against, and whatever is installed must first pass a real
# two-rank reduction.

readonly horovod_version=0.28.1

# True when NCCL operations can be built: they need the CUDA compiler, which the CUDA packages of TensorFlow lack.
wants_nccl() {
  [ "$device" = gpu ] && { command -v nvcc >/dev/null || [ -x "${HOROVOD_CUDA_HOME:-/usr/local/cuda}/bin/nvcc" ]; }
}

wheel_key() {
  {
    echo "recipe 1 horovod $horovod_version $device"
    "$venv/bin/python" - <<'FACTS'
import importlib.metadata, sys
facts = [sys.implementation.cache_tag]
for name in ("tensorflow-cpu", "tensorflow", "numpy"):
    try:
        facts.append(name + " " + importlib.metadata.version(name))
    except importlib.metadata.PackageNotFoundError:
        pass
print(facts)
FACTS
    "$cxx" --version | head -n 1
    mpi_version
    uname -m
    getconf GNU_LIBC_VERSION || true
    grep -m 1 '^flags' /proc/cpuinfo | tr ' ' '\n' | grep -xE 'avx|fma|f16c' || true
    if wants_nccl; then run_nvcc --version | tail -n 1; fi
    env | grep '^HOROVOD_' | sort || true
  } | sha256sum | cut -c1-16
}

run_nvcc() {
  local nvcc
  nvcc=$(command -v nvcc || true)
  "${nvcc:-${HOROVOD_CUDA_HOME:-/usr/local/cuda}/bin/nvcc}" "$@"
}

# Prints the folder of the CUDA toolkit. nvcc in PATH may be a link or a script elsewhere, beside which CMake finds no CUDA.
cuda_home() {
  local top
  top=$(run_nvcc --dryrun any.cu 2>&1 | sed -n 's/^#\$ TOP=//p' | head -n 1 || true)
  if [ -n "$top" ] && [ -d "$top" ]; then (cd "$top" && pwd -P); else echo /usr/local/cuda; fi
}

# Two ranks reduce a tensor through Horovod and gather an object through mpi4py.
horovod_works() {
  local flags
  flags=$(mpirun_flags "$venv/bin/mpirun")
  # shellcheck disable=SC2086  # the flags are words
  run_logged "checking Horovod" env "PYTHONPATH=$root" TF_CPP_MIN_LOG_LEVEL=2 RINGDET_NEED_NCCL="$(wants_nccl && echo 1 || echo 0)" \
    timeout 240 "$venv/bin/mpirun" -np 2 $flags "$venv/bin/python" "$root/scripts/setup/check_horovod.py"
}

# The first line in which the failed check names its reason.
reason() {
  last_output | grep -m 1 -E '(Error|error|expected|differently|without)' | cut -c1-160 || true
}

# Prints the folder of the unpacked source, ready to build.
horovod_source() {
  printf '%s' "$state/source/horovod-$horovod_version"
}

# Downloads and unpacks the source.
#
# For the new stack one line of it is taken out: horovod/tensorflow/xla_mpi_ops.cc, collectives inside XLA programs,
# includes headers of LLVM that TensorFlow's packages have not had since 2.16. Ringdet keeps its collectives outside of
# compiled programs and does not use them.
unpack_horovod() {
  local list folder
  folder=$(horovod_source)
  list=$folder/horovod/tensorflow/CMakeLists.txt
  rm -rf "$state/source"
  mkdir -p "$state/source"
  run_logged "downloading Horovod" "$venv/bin/python" -m pip download --no-input --no-deps --no-build-isolation \
    --no-binary horovod --disable-pip-version-check --progress-bar off --dest "$state/source" \
    "horovod==$horovod_version" || fail_from_log "Downloading Horovod"
  "$venv/bin/python" -m tarfile -e "$state/source/horovod-$horovod_version.tar.gz" "$state/source" >>"$log" 2>&1 ||
    fail "the source of Horovod could not be unpacked in $state/source; see $log."
  [ "$stack" = new ] || return 0
  if [ "$(grep -cE '^list\(APPEND TF_SOURCES .*/xla_mpi_ops\.cc"\)$' "$list")" != 1 ]; then
    fail "Horovod $horovod_version's horovod/tensorflow/CMakeLists.txt has not the one line that names xla_mpi_ops.cc, \
which does not compile with TensorFlow 2.19 and has to be taken out. Is another source of Horovod behind the package \
index? Look at $list, or use --stack old."
  fi
  sed -i '/\/xla_mpi_ops\.cc")$/d' "$list"
}

build_horovod() {
  local target=$1 jobs memory_jobs packages cuda rpath=
  jobs=$(nproc)
  memory_jobs=$(($(awk '/^MemAvailable/ {print $2}' /proc/meminfo) / 2000000))
  if [ "$memory_jobs" -lt "$jobs" ]; then jobs=$memory_jobs; fi
  if [ "$jobs" -lt 1 ]; then jobs=1; fi
  jobs=${RINGDET_JOBS:-$jobs}
  packages=$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("platlib"))')
  # The library finds MPI and NCCL by its own place, so that the wheel works in another environment.
  # shellcheck disable=SC2016  # $ORIGIN is for the dynamic linker
  if [ "$mpi_kind" = pip ]; then rpath='$ORIGIN/../../../..'; fi
  local settings=(
    "PATH=$venv/bin:$PATH" "CXX=$cxx" "CMAKE_BUILD_PARALLEL_LEVEL=$jobs"
    "HOROVOD_CMAKE=$root/scripts/setup/cmake_for_horovod.sh" "RINGDET_CMAKE=$venv/bin/cmake"
    HOROVOD_WITH_TENSORFLOW=1 HOROVOD_WITHOUT_PYTORCH=1 HOROVOD_WITHOUT_MXNET=1 HOROVOD_WITH_MPI=1 HOROVOD_WITH_GLOO=1
  )
  if wants_nccl; then
    # The NCCL package has libnccl.so.2 but not the name that the linker looks for.
    mkdir -p "$state/nccl/lib"
    ln -sfn "$packages/nvidia/nccl/include" "$state/nccl/include"
    ln -sfn "$packages/nvidia/nccl/lib/libnccl.so.2" "$state/nccl/lib/libnccl.so"
    # shellcheck disable=SC2016
    rpath="$rpath${rpath:+;}"'$ORIGIN/../../nvidia/nccl/lib'
    cuda=${HOROVOD_CUDA_HOME:-$(cuda_home)}
    settings+=("PATH=$venv/bin:$cuda/bin:$PATH" "HOROVOD_CUDA_HOME=$cuda")
    settings+=(HOROVOD_GPU_OPERATIONS=NCCL HOROVOD_NCCL_LINK=SHARED "HOROVOD_NCCL_HOME=${HOROVOD_NCCL_HOME:-$state/nccl}")
  else
    settings+=(HOROVOD_WITHOUT_NVTX=1)
  fi
  settings+=("RINGDET_RPATH=$rpath")
  say "building Horovod $horovod_version from source with $jobs jobs (2-4 minutes on 2 cores)"
  rm -rf "$target"
  unpack_horovod
  run_logged "building Horovod" env "${settings[@]}" "$venv/bin/python" -m pip wheel --verbose --no-input --no-deps \
    --no-build-isolation --no-cache-dir --disable-pip-version-check --progress-bar off \
    --wheel-dir "$target" "$(horovod_source)" || fail_from_log "Building Horovod"
  rm -rf "$state/source"
}

install_wheel() {
  run_logged "installing Horovod" "$venv/bin/python" -m pip install --no-input --no-index --no-deps --force-reinstall \
    --disable-pip-version-check "$1"/horovod-*.whl || fail_from_log "Installing Horovod"
}

install_horovod() {
  local key kept whose=Horovod
  [ "$rebuild_horovod" = 1 ] || [ ! -s "$state/horovod" ] || return 0
  PATH=$(path_without_environments)
  [ -n "${cxx:-}" ] || find_compiler
  key=$(wheel_key)
  kept=$(cache_dir)/wheels/$key
  if [ "$device" = gpu ] && ! wants_nccl; then
    say "WARNING: a GPU but no nvcc: Horovod is built without NCCL and moves gradients through the host. Install the \
toolkit of CUDA 12 or 13 (nvcc in PATH or HOROVOD_CUDA_HOME) and run scripts/setup_env.sh --rebuild-horovod."
  fi
  obtain_horovod
  say "$whose works: two ranks reduced a tensor ($(last_output | grep -m 1 '^TensorFlow ' || true))"
  write_stamp horovod "$key"
}

# Keeps the installed one unless what it was built against has changed, else takes a kept wheel, else builds. Returns
# when one has passed the check.
obtain_horovod() {
  local before attempt
  if [ "$rebuild_horovod" = 0 ]; then
    before=$(cat "$state/horovod.before" 2>/dev/null || true)
    if [ "${before:-$key}" = "$key" ] && has_pinned_horovod && horovod_works; then
      whose="the Horovod that is installed"
      return
    fi
    if compgen -G "$kept/horovod-*.whl" >/dev/null; then
      say "Horovod: a wheel built for this very combination is kept in $kept"
      install_wheel "$kept"
      if horovod_works; then return; fi
      say "the kept wheel does not work here ($(reason)): building"
    fi
  fi
  rm -f "$state/horovod"
  for attempt in 1 2; do
    build_horovod "$state/wheel"
    install_wheel "$state/wheel"
    if horovod_works; then
      keep_wheel "$kept"
      return
    fi
    [ "$attempt" = 2 ] || say "the Horovod just built does not work ($(reason)): building once more"
  done
  fail_from_log "The check of the Horovod just built"
}

# A full or read-only cache costs the next clone a build, nothing else.
keep_wheel() {
  local staging
  if staging=$(mkdir -p "$(dirname "$1")" && mktemp -d "$1.XXXXXX") 2>>"$log" &&
    mv "$state"/wheel/horovod-*.whl "$staging" 2>>"$log"; then
    rm -rf "$1"
    mv "$staging" "$1"
  else
    say "the wheel could not be kept in $(cache_dir); another clone will build it again"
  fi
  rm -rf "$state/wheel"
}

has_pinned_horovod() {
  local unmet
  unmet=$(unmet_of <(echo "horovod==$horovod_version")) && [ -z "$unmet" ]
}
