#!/usr/bin/env bash
# Times 3665 training steps of Mask R-CNN on NGPU (8) V100 16 GB, single precision, BS (4) images per GPU.
# What the PyTorch reference reports: docs/runs.md.
exec "$(dirname "$0")/../launch.sh" "$0" --recipe e2e_mask_rcnn_R_50_FPN_1x_2019 --gpus 8 -- --benchmark_steps=3665 "$@"
