#!/usr/bin/env bash
# Trains Mask R-CNN R-50-FPN on COCO 2017 with 8 V100 16 GB, single precision.
# What the PyTorch reference reports: docs/runs.md.
# Its revision of 2019: 4 images per GPU; the APs are means of five seeds.
exec "$(dirname "$0")/../launch.sh" "$0" --recipe e2e_mask_rcnn_R_50_FPN_1x_2019 --gpus 8 -- "$@"
