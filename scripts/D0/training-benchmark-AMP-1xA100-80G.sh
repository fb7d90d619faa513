#!/usr/bin/env bash
# Times 500 training steps of EfficientDet-D0 on one A100 80 GB, mixed precision, with the data of the training. Not for NGPU.
# What the reference reports: docs/runs.md.
export NGPU=1
exec "$(dirname "$0")/../launch.sh" "$0" --recipe d0_coco_8xa100_amp --gpus 1 -- --enable_map_parallelization=False "$@"
