#!/usr/bin/env bash
# Times 500 training steps of Mask R-CNN on NGPU (8) V100 32 GB, mixed precision, BS (12) images per GPU.
# The PyTorch reference reports in images/s, by number of GPUs:
#   BS=4: 13.14 on 1, 50.70 on 4, 82.30 on 8
#   BS=8: 13.05 on 1, 46.69 on 4, 87.10 on 8
#   BS=12: 16 on 1, 71 on 4, 135 on 8
#   BS=16: 13.82 on 1, 48.41 on 4, 89.33 on 8
export AMP=${AMP:-True}
exec "$(dirname "$0")/../launch.sh" "$0" --recipe e2e_mask_rcnn_R_50_FPN_1x --gpus 8 -- "$@"
