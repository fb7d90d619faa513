#!/usr/bin/env bash
# Times 200 training steps of Mask R-CNN on NGPU (8) V100 16 GB, mixed precision, BS (4) images per GPU.
# The TF2 reference reports in images/s, by number of GPUs:
#   BS=2: 14.47 on 1, 53.40 on 8
#   BS=4: 19.35 on 1, 58.33 on 8
exec "$(dirname "$0")/../launch.sh" "$0" --recipe tf2_coco_8xv100_amp --gpus 8 -- "$@"
