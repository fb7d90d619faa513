#!/usr/bin/env bash
# Times 500 training steps of EfficientDet-D0 on NGPU (8) A100 80 GB, TF32, with the data of the training.
# What the reference reports: docs/runs.md.
export TF_GPU_HOST_MEM_LIMIT_IN_MB=${TF_GPU_HOST_MEM_LIMIT_IN_MB:-131072}
exec "$(dirname "$0")/../launch.sh" "$0" --recipe d0_coco_8xa100_tf32 --gpus 8 -- "$@"
