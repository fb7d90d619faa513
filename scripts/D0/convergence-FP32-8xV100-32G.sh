#!/usr/bin/env bash
# Trains EfficientDet-D0 on COCO 2017 with 8 V100 32 GB, single precision.
# What the reference reports: docs/runs.md.
exec "$(dirname "$0")/../launch.sh" "$0" --recipe d0_coco_8xv100_fp32 --gpus 8 -- "$@"
