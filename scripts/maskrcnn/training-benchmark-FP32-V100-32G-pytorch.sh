#!/usr/bin/env bash
# Times 500 training steps of Mask R-CNN on NGPU (8) V100 32 GB, single precision, BS (12) images per GPU.
# The PyTorch reference reports in images/s, by number of GPUs:
#   BS=4: 9.06 on 1, 32.87 on 4, 62.93 on 8
#   BS=8: 9.35 on 1, 33.38 on 4, 71.85 on 8
#   BS=12: 12 on 1, 44 on 4, 85 on 8
export AMP=${AMP:-False}
exec "$(dirname "$0")/../launch.sh" "$0" --recipe e2e_mask_rcnn_R_50_FPN_1x --gpus 8 -- "$@"
