#!/usr/bin/env bash
# Builds the image: docker/build.sh [gpu|cuda|cpu]. gpu is NVIDIA's TensorFlow image with the old stack, cuda a plain
# CUDA image with the new one. DOCKER names it (effdet_tf2:latest, effdet_tf2:cuda, effdet_tf2:cpu). With
# ENROOT_FILE=FILE.sqsh it is also imported for enroot, which is what CONTAINER_IMAGE of a Slurm job takes.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)

case ${1:-gpu} in
  gpu) file=Dockerfile image=${DOCKER:-effdet_tf2:latest} ;;
  cuda) file=Dockerfile.cuda image=${DOCKER:-effdet_tf2:cuda} ;;
  cpu) file=Dockerfile.cpu image=${DOCKER:-effdet_tf2:cpu} ;;
  *)
    echo "build.sh: '$1': expected gpu, cuda or cpu" >&2
    exit 2
    ;;
esac
run=(command)
[ "${DRY_RUN:-0}" != 1 ] || run=(echo)

"${run[@]}" docker build --rm -t "$image" -f "$root/docker/$file" "$root"
if [ -n "${ENROOT_FILE:-}" ]; then "${run[@]}" enroot import -o "$ENROOT_FILE" "dockerd://$image"; fi
