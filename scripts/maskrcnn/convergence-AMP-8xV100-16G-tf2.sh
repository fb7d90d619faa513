#!/usr/bin/env bash
# Trains Mask R-CNN R-50-FPN on COCO 2017 with 8 V100 16 GB, mixed precision.
# What the TF2 reference reports: docs/runs.md.
# 4 images per GPU, as the reference's command and curves; its table says 2 (BS=2).
exec "$(dirname "$0")/../launch.sh" "$0" --recipe tf2_coco_8xv100_amp --gpus 8 -- "$@"
