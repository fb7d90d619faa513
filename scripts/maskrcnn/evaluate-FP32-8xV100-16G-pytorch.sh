#!/usr/bin/env bash
# Evaluates CKPT=... (a checkpoint or the folder of a run) on COCO val2017 with 8 V100 16 GB, single precision.
# What the PyTorch reference reports: docs/runs.md. 1 image per GPU, as there.
exec "$(dirname "$0")/../launch.sh" "$0" --recipe e2e_mask_rcnn_R_50_FPN_1x_2019 --gpus 8 -- "$@"
