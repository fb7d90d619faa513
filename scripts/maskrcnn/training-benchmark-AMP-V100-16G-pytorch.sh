#!/usr/bin/env bash
# Times 3665 training steps of Mask R-CNN on NGPU (8) V100 16 GB, mixed precision, BS (4) images per GPU.
# The PyTorch reference reports in images/s, by number of GPUs:
#   BS=2: 10.77 on 1, 36.88 on 4, 70.45 on 8
#   BS=4: 12.73 on 1, 44.95 on 4, 82.9 on 8
export AMP=${AMP:-True}
exec "$(dirname "$0")/../launch.sh" "$0" --recipe e2e_mask_rcnn_R_50_FPN_1x_2019 --gpus 8 -- --benchmark_steps=3665 "$@"
