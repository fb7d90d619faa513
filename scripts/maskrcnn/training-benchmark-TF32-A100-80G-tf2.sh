#!/usr/bin/env bash
# Times 200 training steps of Mask R-CNN on NGPU (8) A100 80 GB, TF32, BS (4) images per GPU.
# The TF2 reference reports in images/s, by number of GPUs:
#   BS=2: 13.44 on 1, 84.29 on 8
#   BS=4: 18.41 on 1, 103.80 on 8
exec "$(dirname "$0")/../launch.sh" "$0" --recipe tf2_coco_8xa100_tf32 --gpus 8 -- "$@"
