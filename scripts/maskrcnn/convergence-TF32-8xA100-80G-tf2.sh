#!/usr/bin/env bash
# Trains Mask R-CNN R-50-FPN on COCO 2017 with 8 A100 80 GB, TF32.
# What the TF2 reference reports: docs/runs.md.
# 4 images per GPU, as the reference's command and curves; its table says 2 (BS=2).
exec "$(dirname "$0")/../launch.sh" "$0" --recipe tf2_coco_8xa100_tf32 --gpus 8 -- "$@"
