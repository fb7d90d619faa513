#!/usr/bin/env bash
# Trains Mask R-CNN R-50-FPN on COCO 2017 with 8 A100 80 GB, TF32.
# What the PyTorch reference reports: docs/runs.md.
# Its revision of 2022: 12 images per GPU.
exec "$(dirname "$0")/../launch.sh" "$0" --recipe e2e_mask_rcnn_R_50_FPN_1x --gpus 8 -- "$@"
