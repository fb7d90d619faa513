# shellcheck shell=bash disable=SC2034,SC2154
# Chooses the stack, finds a Python that its TensorFlow supports, and makes the virtual environment. Sourced by
# setup_env.sh.

# The stack of a new environment where a Python of it is there: see docs/stacks.md.
readonly default_stack=new

# Prints major.minor.patch of a Python that starts; fails otherwise (a version manager's shim may exist and not start).
python_version() {
  "$1" -c 'import sys; print("%d.%d.%d" % sys.version_info[:3])' 2>/dev/null
}

# True when the Python of version $1 is one of the stack's, or of stack $2.
is_supported() {
  case ${2:-$stack}-$1 in
    old-3.9.* | old-3.10.* | old-3.11.* | new-3.10.* | new-3.11.* | new-3.12.*) return 0 ;;
    *) return 1 ;;
  esac
}

# The stack of the environment in place; those made before there were two are old.
identity_stack() {
  local value
  [ -e "$state/identity" ] || return 0
  value=$(identity_value stack)
  printf '%s' "${value:-old}"
}

# NVIDIA's image says what it is; its TensorFlow has an old or a new Keras inside.
is_old_ngc_image() {
  [ -n "${NVIDIA_TENSORFLOW_VERSION:-}" ] &&
    python3 -c 'import importlib.metadata as m; raise SystemExit(not m.version("tensorflow").startswith("2.15."))' 2>/dev/null
}

# True when a Python of stack $1 is the one asked for, or is in PATH.
has_python_of() {
  local candidate version
  for candidate in ${python_wish:-python3.11 python3.12 python3.10 python3.9 python3 python}; do
    version=$(python_version "$candidate") && is_supported "$version" "$1" && return
  done
  return 1
}

# Sets `stack`, and with it the lock files and which Pythons will do.
choose_stack() {
  local other
  stack=$stack_wish
  if [ "$stack" = auto ]; then stack=$(identity_stack); fi
  if [ -z "$stack" ]; then
    stack=$default_stack
    other=new
    [ "$stack" = old ] || other=old
    if is_old_ngc_image; then
      stack=old
    elif ! has_python_of "$stack" && has_python_of "$other"; then
      stack=$other
    fi
  fi
  readonly stack lock_dir=$root/requirements/$stack
  if [ "$stack" = old ]; then
    readonly pythons="python3.11 python3.10 python3.9" range='>=3.9,<3.12'
    readonly needs="TensorFlow 2.15.1 (the old stack) needs Python 3.9, 3.10 or 3.11"
  else
    readonly pythons="python3.11 python3.12 python3.10" range='>=3.10,<3.13'
    readonly needs="TensorFlow 2.19.1 (the new stack) needs Python 3.10, 3.11 or 3.12"
  fi
}

# Sets `python` to a supported interpreter, or ends with the way to get one.
find_python() {
  local candidate version seen=
  if [ -n "$python_wish" ]; then
    version=$(python_version "$python_wish") || fail "--python $python_wish does not start."
    is_supported "$version" || fail "--python $python_wish is Python $version, but $needs."
    python=$(command -v "$python_wish")
    return
  fi
  for candidate in $pythons python3 python; do
    command -v "$candidate" >/dev/null || continue
    version=$(python_version "$candidate") || continue
    if is_supported "$version"; then
      python=$(command -v "$candidate")
      return
    fi
    case $version in 3.*) newer=$candidate ;; esac
    seen="$seen${seen:+, }$candidate is $version"
  done
  obtain_python "${seen:-no Python found}"
}

# Only unsupported versions are here: uv can bring one of its own.
obtain_python() {
  local uv seen=$1
  local advice="On Debian or Ubuntu releases that have it: sudo apt-get install python3.11 python3.11-venv (on Ubuntu \
24.04 python3.12 and python3.12-venv); with conda: conda create -y -n py311 python=3.11 and --python \
\$(conda run -n py311 which python); with pyenv: pyenv install 3.11. Then run the same command again, with --python PATH \
if it is not in PATH."
  uv=$(command -v uv || true)
  if [ -z "$uv" ] && [ -x "$HOME/.local/bin/uv" ]; then uv=$HOME/.local/bin/uv; fi
  if [ -z "$uv" ] && [ -n "${newer:-}" ]; then
    say "$seen: $needs; installing uv to get 3.11"
    if "$newer" -m venv "$(cache_dir)/uv" >>"$log" 2>&1 &&
      run_logged "installing uv" "$(cache_dir)/uv/bin/python" -m pip install --progress-bar off uv; then
      uv=$(cache_dir)/uv/bin/uv
    fi
  fi
  if [ -z "$uv" ]; then
    fail "$seen, but $needs, and uv, which could bring one, could not be \
installed. $advice"
  fi
  if ! python=$("$uv" python find --no-python-downloads "$range" 2>>"$log"); then
    run_logged "downloading Python 3.11 with uv" "$uv" python install 3.11 || fail "$seen, but $needs, \
and uv could not download 3.11 ($(last_output | grep -i cause | tail -n 1 | sed 's/^ *//')). $advice"
    python=$("$uv" python find --no-python-downloads 3.11 2>>"$log") || fail "uv installed Python 3.11 but does not find it. $advice"
  fi
}

# True when the environment in place can be kept: it starts, lies where it was made, and fits what is asked for.
can_keep_venv() {
  local version wanted other_tensorflow
  version=$(python_version "$venv/bin/python") && is_supported "$version" || return 1
  head -n 1 "$venv/bin/pip" 2>/dev/null | grep -qF "$venv/bin/python" || return 1
  if [ -n "$python_wish" ]; then
    wanted=$(python_version "$python_wish") || fail "--python $python_wish does not start."
    [ "$wanted" = "$version" ] || return 1
  fi
  if [ -e "$state/identity" ]; then
    [ "$(identity_stack)" = "$stack" ] || return 1
    [ "$(identity_value venv)" = "$venv" ] && [ "$(identity_value python)" = "$version" ] || return 1
    [ "$(identity_value device)" = "$device" ] && [ "$(identity_value mpi)" = "$mpi_kind" ] || return 1
  fi
  # tensorflow and tensorflow-cpu overwrite one another's files.
  other_tensorflow=tensorflow_cpu
  [ "$device" = gpu ] || other_tensorflow=tensorflow
  ! compgen -G "$venv/lib/python3*/site-packages/$other_tensorflow-[0-9]*.dist-info" >/dev/null
}

# Empties the folder of the environment, but only one that is a virtual environment or that this script began.
empty_venv() {
  local others
  others=$(find "$venv" -mindepth 1 -maxdepth 1 ! -name setup.log ! -name .setup-lock ! -name .ringdet)
  if [ -z "$others" ]; then
    rm -rf "$state"
    return
  fi
  [ -e "$venv/pyvenv.cfg" ] || fail "$venv exists and is not a virtual environment: move it away, or name another \
folder with --venv DIR."
  say "the environment in $venv is unfinished, has moved or was made for something else: making it anew"
  find "$venv" -mindepth 1 -maxdepth 1 ! -name setup.log ! -name .setup-lock -exec rm -rf {} +
}

make_venv() {
  local version
  if can_keep_venv; then
    [ -e "$state/identity" ] || say "found an environment without our stamp: checking it package by package"
  else
    find_python
    empty_venv
    say "creating the environment with $python ($(python_version "$python"))"
    create_venv
  fi
  version=$(python_version "$venv/bin/python") || fail "$venv/bin/python does not start; see $log."
  [ "$mpi_kind" = pip ] || wrap_system_mpirun
  write_stamp identity "venv=$venv
stack=$stack
python=$version
device=$device
mpi=$mpi_kind
mpirun=$mpirun"
}

# Debian's Python has venv but, without the package python3-venv, no pip to put into it.
create_venv() {
  local uv
  run_logged "creating the environment" "$python" -m venv "$venv" && return
  run_logged "creating the environment" "$python" -m venv --without-pip "$venv" &&
    run_logged "installing pip" "$python" -m pip --python "$venv/bin/python" install --progress-bar off pip && return
  uv=$(command -v uv || true)
  if [ -n "$uv" ]; then
    run_logged "creating the environment" "$uv" venv --seed --allow-existing --python "$python" "$venv" && return
  fi
  fail "$python cannot make a virtual environment (its venv or ensurepip module is missing). On Debian or Ubuntu: \
sudo apt-get install python3-venv (or python$(python_version "$python" | cut -d. -f1,2)-venv), then run the same command again."
}
