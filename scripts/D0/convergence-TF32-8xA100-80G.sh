#!/usr/bin/env bash
# Trains EfficientDet-D0 on COCO 2017 with 8 A100 80 GB, TF32.
# The reference reports: AP 0.3453, 8.5 hours, 1266 images/s (of its training benchmark).
exec "$(dirname "$0")/../launch.sh" "$0" --recipe d0_coco_8xa100_tf32 --gpus 8 -- "$@"
