#!/usr/bin/env bash
# A shell in the image, or a command, with the documented folders: docker/interactive.sh [COMMAND]
#
#   DATA           required   folder with train-*, val-*, annotations/       -> /workspace/coco
#   BACKBONE_CKPT  optional   EfficientNet-B0 to start from                  -> /workspace/checkpoints/efficientnet-b0-joc
#   checkpointdir  optional   in its place: folder of any weights to start from, as of Mask R-CNN  -> /workspace/checkpoints
#   CKPT           optional   folder of trained detectors                    -> /workspace/checkpoints/efficientdet-tf2
#   RESULTS        ./results  where runs write                               -> /workspace/results
#   DOCKER         effdet_tf2:latest      name    interactive      PORT    6007
# DRY_RUN=1 prints the command.
set -euo pipefail

fail() {
  echo "interactive.sh: $1" >&2
  exit 2
}

# Adds a folder of the host under its documented name.
mount() {
  local variable=$1 path=$2 target=$3
  [ -e "$path" ] || fail "$variable=$path does not exist"
  options+=(-v "$(realpath "$path"):$target${4:-}")
}

[ -n "${DATA:-}" ] || fail "DATA is not set: the folder with the records, as in DATA=/data/coco docker/interactive.sh"
port=${PORT:-6007}
results=${RESULTS:-$PWD/results}
options=(
  --rm --name "${name:-interactive}" --shm-size=30g --ulimit memlock=-1 --ulimit stack=67108864 --ipc=host
  -p "$port:$port" -i
)
if [ -t 0 ]; then options+=(-t); fi
if command -v nvidia-smi >/dev/null; then options+=(--gpus all); fi
mount DATA "$DATA" /workspace/coco
if [ -n "${BACKBONE_CKPT:-}" ]; then mount BACKBONE_CKPT "$BACKBONE_CKPT" /workspace/checkpoints/efficientnet-b0-joc :ro; fi
if [ -n "${checkpointdir:-}" ]; then
  [ -z "${BACKBONE_CKPT:-}${CKPT:-}" ] || fail "checkpointdir holds all weights: leave BACKBONE_CKPT and CKPT out"
  mount checkpointdir "$checkpointdir" /workspace/checkpoints :ro
fi
if [ -n "${CKPT:-}" ]; then mount CKPT "$CKPT" /workspace/checkpoints/efficientdet-tf2; fi
mkdir -p "$results"
mount RESULTS "$results" /workspace/results

run=(exec)
[ "${DRY_RUN:-0}" != 1 ] || run=(echo)
"${run[@]}" docker run "${options[@]}" "${DOCKER:-effdet_tf2:latest}" "$@"
