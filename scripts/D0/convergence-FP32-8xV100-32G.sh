#!/usr/bin/env bash
# Trains EfficientDet-D0 on COCO 2017 with 8 V100 32 GB, single precision.
# The reference reports: AP 0.3442, 16.9 hours, 645 images/s (of its training benchmark).
exec "$(dirname "$0")/../launch.sh" "$0" --recipe d0_coco_8xv100_fp32 --gpus 8 -- "$@"
