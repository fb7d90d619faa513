#!/usr/bin/env bash
# Times 200 training steps of Mask R-CNN on NGPU (8) V100 16 GB, single precision, BS (2) images per GPU.
# The TF2 reference reports in images/s, by number of GPUs:
#   BS=2: 7.57 on 1, 44.55 on 8
#   BS=4: 8.51 on 1, 50.56 on 8
# It also lists 8 GPUs with BS=4 among what runs out of memory.
exec "$(dirname "$0")/../launch.sh" "$0" --recipe tf2_coco_8xv100_fp32 --gpus 8 -- "$@"
