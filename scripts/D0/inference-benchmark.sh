#!/usr/bin/env bash
# Times EfficientDet-D0 at inference on one GPU: BS (8) images per call, AMP=True or False, random weights or CKPT=...
# The reference reports for BS=8: 153 images/s (A100, FP16), 144 (A100, TF32), 146 (V100, FP16), 135 (V100, FP32); docs/runs.md has all.
exec "$(dirname "$0")/../launch.sh" "$0" -- "$@"
