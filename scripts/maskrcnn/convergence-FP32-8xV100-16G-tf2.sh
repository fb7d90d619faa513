#!/usr/bin/env bash
# Trains Mask R-CNN R-50-FPN on COCO 2017 with 8 V100 16 GB, single precision.
# What the TF2 reference reports: docs/runs.md.
# 2 images per GPU: 4 are out of memory in single precision.
exec "$(dirname "$0")/../launch.sh" "$0" --recipe tf2_coco_8xv100_fp32 --gpus 8 -- "$@"
