#!/usr/bin/env bash
# Times 500 training steps of Mask R-CNN on NGPU (8) A100 80 GB, mixed precision, BS (12) images per GPU.
# The PyTorch reference reports in images/s, by number of GPUs:
#   BS=12: 24 on 1, 106 on 4, 209 on 8
export AMP=${AMP:-True}
exec "$(dirname "$0")/../launch.sh" "$0" --recipe e2e_mask_rcnn_R_50_FPN_1x --gpus 8 -- "$@"
