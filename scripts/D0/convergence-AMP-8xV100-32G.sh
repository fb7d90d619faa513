#!/usr/bin/env bash
# Trains EfficientDet-D0 on COCO 2017 with 8 V100 32 GB, mixed precision.
# The reference reports: AP 0.3445, 14.3 hours, 777 images/s (of its training benchmark).
exec "$(dirname "$0")/../launch.sh" "$0" --recipe d0_coco_8xv100_amp --gpus 8 -- "$@"
