#!/usr/bin/env bash
# Times 500 training steps of Mask R-CNN on NGPU (8) A100 80 GB, TF32, BS (12) images per GPU.
# The PyTorch reference reports in images/s, by number of GPUs:
#   BS=12: 23 on 1, 104 on 4, 193 on 8
set -euo pipefail
export AMP=${AMP:-False}
exec "$(dirname "${BASH_SOURCE[0]}")/../launch.sh" maskrcnn training-benchmark \
  --name maskrcnn-training-benchmark-TF32-A100-80G-pytorch --recipe e2e_mask_rcnn_R_50_FPN_1x --gpus 8 \
  -- "$@"
