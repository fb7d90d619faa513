#!/usr/bin/env bash
# Trains EfficientDet-D0 on COCO 2017 with 8 H100 80 GB, mixed precision.
# Ours, not from the references: as large a batch as on the A100 of equal memory, so its settings. Not run yet.
set -euo pipefail
export PRESET=${PRESET-}
exec "$(dirname "${BASH_SOURCE[0]}")/../launch.sh" efficientdet convergence \
  --name convergence-AMP-8xH100-80G --recipe d0_coco_8xh100_amp --gpus 8 -- "$@"
