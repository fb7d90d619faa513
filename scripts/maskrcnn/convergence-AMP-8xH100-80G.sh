#!/usr/bin/env bash
# Trains Mask R-CNN R-50-FPN on COCO 2017 with 8 H100 80 GB, mixed precision.
# Ours, not from the references: batch and schedule of the PyTorch reference's recipe of 96 images. Not run yet.
exec "$(dirname "$0")/../launch.sh" "$0" --recipe coco_8xh100_amp --gpus 8 -- "$@"
