#!/usr/bin/env bash
# Evaluates CKPT=... (a checkpoint or the folder of a run) on COCO val2017 with 8 H200 141 GB, mixed precision.
# Ours, not from the references.
set -euo pipefail
exec "$(dirname "${BASH_SOURCE[0]}")/../launch.sh" maskrcnn evaluate \
  --name maskrcnn-evaluate-AMP-8xH200-141G --recipe coco_8xh200_amp --gpus 8 -- "$@"
