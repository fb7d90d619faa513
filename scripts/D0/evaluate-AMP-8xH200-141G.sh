#!/usr/bin/env bash
# Evaluates CKPT=... (a checkpoint or the folder of a run) on COCO val2017 with 8 H200 141 GB, mixed precision.
# Ours, not from the references.
set -euo pipefail
export PRESET=${PRESET-}
exec "$(dirname "${BASH_SOURCE[0]}")/../launch.sh" efficientdet evaluate \
  --name evaluate-AMP-8xH200-141G --recipe d0_coco_8xh200_amp --gpus 8 -- "$@"
