#!/usr/bin/env bash
# Times 500 training steps of EfficientDet-D0 on NGPU (8) V100 32 GB, mixed precision, with the data of the training.
# What the reference reports: docs/runs.md.
exec "$(dirname "$0")/../launch.sh" "$0" --recipe d0_coco_8xv100_amp --gpus 8 -- "$@"
