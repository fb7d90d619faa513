#!/usr/bin/env bash
# Trains EfficientDet-D0 on COCO 2017 with 8 H100 80 GB, mixed precision.
# Ours, not from the references: as large a batch as on the A100 of equal memory, so its settings. Not run yet.
exec "$(dirname "$0")/../launch.sh" "$0" --recipe d0_coco_8xh100_amp --gpus 8 -- "$@"
