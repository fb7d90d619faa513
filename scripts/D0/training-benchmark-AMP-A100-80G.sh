#!/usr/bin/env bash
# Times 500 training steps of EfficientDet-D0 on NGPU (8) A100 80 GB, mixed precision, with the data of the training.
# The reference reports: 2711 images/s on 8 GPUs, 397 on one (NGPU=1).
exec "$(dirname "$0")/../launch.sh" "$0" --recipe d0_coco_8xa100_amp --gpus 8 -- "$@"
