#!/usr/bin/env bash
# Times 500 training steps of Mask R-CNN on NGPU (8) V100 32 GB, mixed precision, BS (12) images per GPU.
# What the PyTorch reference reports: docs/runs.md.
exec "$(dirname "$0")/../launch.sh" "$0" --recipe e2e_mask_rcnn_R_50_FPN_1x --gpus 8 -- "$@"
