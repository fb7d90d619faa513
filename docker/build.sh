#!/usr/bin/env bash
# Builds the image: docker/build.sh [gpu|cpu]. DOCKER names it (effdet_tf2:latest, or effdet_tf2:cpu). With
# ENROOT_FILE=FILE.sqsh it is also imported for enroot, which is what CONTAINER_IMAGE of a Slurm job takes.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)

case ${1:-gpu} in
  gpu) file=Dockerfile image=${DOCKER:-effdet_tf2:latest} ;;
  cpu) file=Dockerfile.cpu image=${DOCKER:-effdet_tf2:cpu} ;;
  *)
    echo "build.sh: '$1': expected gpu or cpu" >&2
    exit 2
    ;;
esac
run=()
[ "${DRY_RUN:-0}" != 1 ] || run=(echo)

"${run[@]}" docker build --rm -t "$image" -f "$root/docker/$file" "$root"
if [ -n "${ENROOT_FILE:-}" ]; then "${run[@]}" enroot import -o "$ENROOT_FILE" "dockerd://$image"; fi
