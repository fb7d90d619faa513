#!/usr/bin/env bash
# Times 200 training steps of Mask R-CNN on NGPU (8) H100 80 GB, mixed precision, BS images per GPU.
# Ours, not from the references. Not run yet.
set -euo pipefail
exec "$(dirname "${BASH_SOURCE[0]}")/../launch.sh" maskrcnn training-benchmark \
  --name maskrcnn-training-benchmark-AMP-H100-80G --recipe coco_8xh100_amp --gpus 8 -- "$@"
