#!/usr/bin/env bash
# Times 200 training steps of Mask R-CNN on NGPU (8) A100 80 GB, mixed precision, BS (4) images per GPU.
# The TF2 reference reports in images/s, by number of GPUs:
#   BS=2: 18.26 on 1, 87.31 on 8
#   BS=4: 28.58 on 1, 114.45 on 8
exec "$(dirname "$0")/../launch.sh" "$0" --recipe tf2_coco_8xa100_amp --gpus 8 -- "$@"
