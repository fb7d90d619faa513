#!/usr/bin/env bash
# Times 200 training steps of Mask R-CNN on NGPU (8) A100 80 GB, mixed precision, BS (4) images per GPU.
# What the TF2 reference reports: docs/runs.md.
exec "$(dirname "$0")/../launch.sh" "$0" --recipe tf2_coco_8xa100_amp --gpus 8 -- "$@"
