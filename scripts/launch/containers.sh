# shellcheck shell=bash disable=SC2034,SC2154
# Runs the ranks of a Slurm job in a container when CONTAINER_IMAGE names one: by Pyxis (srun's --container-image), or by
# enroot where Pyxis is not installed. Sourced by scripts/launch.sh.
#
# The repository and the results are mounted at their own paths, so that the code that was submitted is what runs and
# names of files mean the same on both sides. Data and checkpoints are mounted read-only at the documented places.

has_pyxis() { srun --help 2>/dev/null | grep -q -- --container-image; }

# Sets mounts: source:target[:options], separated by commas.
compose_mounts() {
  local data=${datadir:-${DATA_DIR:-}} checkpoints=${checkpointdir:-}
  [ -n "$data" ] || fail "datadir is not set: the folder with the records (train-*, val-*, annotations/)"
  [ -n "$checkpoints" ] || fail "checkpointdir is not set: the folder that holds $backbone_name"
  mounts=$root:$root,$results_dir:$results_dir,$data:/workspace/coco:ro,$checkpoints:/workspace/checkpoints:ro
  case $output/ in "$results_dir"/*) ;; *) mounts=$mounts,$output:$output ;; esac
  [ -z "${CONTAINER_MOUNTS:-}" ] || mounts=$mounts,$CONTAINER_MOUNTS
}

# Adds to start what moves a rank into the container.
add_container() {
  local mount variable
  [ -n "${CONTAINER_IMAGE:-}" ] || return 0
  if [ "$launcher" != srun ]; then
    fail "CONTAINER_IMAGE is for Slurm jobs started by srun; elsewhere start the container first (docker/interactive.sh)"
  fi
  compose_mounts
  if [ "${DRY_RUN:-0}" = 1 ] && ! command -v srun >/dev/null || has_pyxis; then
    start+=(
      "--container-image=$CONTAINER_IMAGE" "--container-mounts=$mounts" "--container-workdir=$root"
      --no-container-entrypoint --no-container-mount-home
    )
    return
  fi
  [ "${DRY_RUN:-0}" = 1 ] || command -v enroot >/dev/null || fail "CONTAINER_IMAGE is set, but srun has no --container-image (Pyxis) and there is no enroot"
  start+=(enroot start)
  for mount in ${mounts//,/ }; do start+=(--mount "$mount"); done
  for variable in $(exported_names); do
    case $variable in PATH | LD_LIBRARY_PATH) ;; *) start+=(--env "$variable") ;; esac
  done
  start+=("ringdet-${SLURM_JOB_ID:-0}")
}

# enroot alone: unpacks the image once on every node.
prepare_container() {
  [ -n "${CONTAINER_IMAGE:-}" ] && ! has_pyxis || return 0
  [ -f "$CONTAINER_IMAGE" ] || fail "CONTAINER_IMAGE=$CONTAINER_IMAGE: without Pyxis this is a .sqsh file that all nodes \
see (enroot import -o FILE docker://IMAGE)"
  srun --nodes="$nodes" --ntasks="$nodes" --ntasks-per-node=1 --mpi=none \
    enroot create --force --name "ringdet-$SLURM_JOB_ID" "$CONTAINER_IMAGE" || fail "enroot could not unpack $CONTAINER_IMAGE"
}
