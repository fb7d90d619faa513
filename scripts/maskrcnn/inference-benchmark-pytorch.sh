#!/usr/bin/env bash
# Times Mask R-CNN at inference on one GPU: BS (1) images per call, AMP=True or False, random weights or CKPT=...
# The PyTorch reference reports for BS=1, 2, 4, 8 in images/s: A100 23, 26, 31, 31 (FP16), 25, 28, 29, 30 (TF32);
# V100 19, 21, 22, 22 (FP16), 16, 17, 17, 18 (FP32). docs/runs.md has the latencies.
export PRESET=${PRESET-nvidia_pytorch} BS=${BS:-1}
exec "$(dirname "$0")/../launch.sh" "$0" -- "$@"
