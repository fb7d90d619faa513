#!/usr/bin/env bash
# Times Mask R-CNN at inference on one GPU: BS (6) images per call, AMP=True or False, random weights or CKPT=...
# The TF2 reference reports for BS=6, 12, 24 in images/s: A100 60.79, 76.23, 80.67 (FP16), 39.23, 42.55, 47.92 (TF32);
# V100 35.46, 41.44, 42.53 (FP16), 18.56, 20.50, out of memory (FP32). docs/runs.md has the latencies.
export PRESET=${PRESET-nvidia_tf2} BS=${BS:-6}
exec "$(dirname "$0")/../launch.sh" "$0" -- "$@"
