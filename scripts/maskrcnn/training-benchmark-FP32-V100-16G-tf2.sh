#!/usr/bin/env bash
# Times 200 training steps of Mask R-CNN on NGPU (8) V100 16 GB, single precision, BS (2) images per GPU.
# What the TF2 reference reports: docs/runs.md.
# It also lists 8 GPUs with BS=4 among what runs out of memory.
exec "$(dirname "$0")/../launch.sh" "$0" --recipe tf2_coco_8xv100_fp32 --gpus 8 -- "$@"
