#!/usr/bin/env bash
# Times 3665 training steps of Mask R-CNN on NGPU (8) V100 16 GB, single precision, BS (4) images per GPU.
# The PyTorch reference reports in images/s, by number of GPUs:
#   BS=2: 8.47 on 1, 30.23 on 4, 56.35 on 8
#   BS=4: 9.29 on 1, 34.07 on 4, 62.7 on 8
export AMP=${AMP:-False}
exec "$(dirname "$0")/../launch.sh" "$0" --recipe e2e_mask_rcnn_R_50_FPN_1x_2019 --gpus 8 -- --benchmark_steps=3665 "$@"
