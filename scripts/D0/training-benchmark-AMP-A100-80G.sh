#!/usr/bin/env bash
# Times 500 training steps of EfficientDet-D0 on NGPU (8) A100 80 GB, mixed precision, with the data of the training.
# The reference reports: 2711 images/s on 8 GPUs, 397 on one (NGPU=1).
set -euo pipefail
exec "$(dirname "${BASH_SOURCE[0]}")/../launch.sh" efficientdet training-benchmark \
  --name training-benchmark-AMP-A100-80G --recipe d0_coco_8xa100_amp --gpus 8 -- "$@"
