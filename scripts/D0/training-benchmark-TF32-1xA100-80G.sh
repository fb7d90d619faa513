#!/usr/bin/env bash
# Times 500 training steps of EfficientDet-D0 on one A100 80 GB, TF32, with the data of the training. Not for NGPU.
# The reference reports: 162 images/s.
set -euo pipefail
export NGPU=1
exec "$(dirname "${BASH_SOURCE[0]}")/../launch.sh" efficientdet training-benchmark \
  --name training-benchmark-TF32-1xA100-80G --recipe d0_coco_8xa100_tf32 --gpus 1 -- --enable_map_parallelization=False "$@"
