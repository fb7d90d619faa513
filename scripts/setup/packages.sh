# shellcheck shell=bash disable=SC2034,SC2154
# Installs the locked packages and repairs what is missing or damaged. Sourced by setup_env.sh.

# Names of the lock files of every environment, without the extras.
base_locks() {
  if [ "$mpi_kind" = pip ]; then echo "$device build mpi"; else echo "$device build"; fi
}

# One hash over the lock files named in $1, separated by spaces.
lock_hash() {
  local name
  for name in $1; do cat "$lock_dir/$name.txt"; done | sha256sum | cut -c1-16
}

# Prints what the environment lacks of the files' requirements.
unmet_of() { "$venv/bin/python" "$root/scripts/setup/unmet_requirements.py" "$@" 2>>"$log"; }

# Installs what the named lock files ask for and the environment does not have exactly so.
# A package whose files do not match its own record (an interrupted installation) counts as missing.
install_locks() {
  local label=$1 name unmet count
  local files=()
  for name in $2; do files+=("$lock_dir/$name.txt"); done
  remove_debris
  unmet=$(unmet_of "${files[@]}") ||
    fail "$venv/bin/python could not compare the packages with the lock files; see $log."
  [ -n "$unmet" ] || return 0
  count=$(wc -l <<<"$unmet")
  say "$label: installing $count packages"
  mkdir -p "$state"
  printf '%s\n' "$unmet" >"$state/to-install.txt"
  run_logged "$label" "$venv/bin/python" -m pip install --no-input --disable-pip-version-check --progress-bar off \
    --no-deps --force-reinstall -r "$state/to-install.txt" || fail_from_log "Installing packages"
  rm -f "$state/to-install.txt"
  unmet=$(unmet_of "${files[@]}")
  [ -z "$unmet" ] || fail "after installation these packages are still missing or damaged: $(tr '\n' ' ' <<<"$unmet"). \
Remove $venv and run the same command again."
}

# What pip leaves when it is killed: renamed folders, and metadata without the list of files.
remove_debris() {
  local path
  for path in "$venv"/lib/python3*/site-packages/~*; do
    [ ! -e "$path" ] || rm -rf "$path"
  done
  for path in "$venv"/lib/python3*/site-packages/*.dist-info; do
    [ ! -d "$path" ] || [ -e "$path/RECORD" ] || rm -rf "$path"
  done
}

install_packages() {
  local extra hash
  hash=$(lock_hash "$(base_locks)")
  if ! stamp_matches packages "$hash"; then
    # What Horovod was built against is about to change: it is looked at again afterwards.
    [ ! -e "$state/horovod" ] || mv "$state/horovod" "$state/horovod.before"
    install_locks "packages" "$(base_locks)"
    write_stamp packages "$hash"
  fi
  for extra in "${extras[@]}"; do
    hash=$(lock_hash "$extra")
    stamp_matches "extra-$extra" "$hash" && continue
    install_locks "extra '$extra'" "$extra"
    write_stamp "extra-$extra" "$hash"
  done
}
