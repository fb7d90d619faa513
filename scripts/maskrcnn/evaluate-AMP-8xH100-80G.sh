#!/usr/bin/env bash
# Evaluates CKPT=... (a checkpoint or the folder of a run) on COCO val2017 with 8 H100 80 GB, mixed precision.
# Ours, not from the references.
set -euo pipefail
exec "$(dirname "${BASH_SOURCE[0]}")/../launch.sh" maskrcnn evaluate \
  --name maskrcnn-evaluate-AMP-8xH100-80G --recipe coco_8xh100_amp --gpus 8 -- "$@"
