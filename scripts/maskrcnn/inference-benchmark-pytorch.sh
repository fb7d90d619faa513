#!/usr/bin/env bash
# Times Mask R-CNN at inference on one GPU: BS (1) images per call, AMP=True or False, random weights or CKPT=...
# What the PyTorch reference reports: docs/runs.md.
export PRESET=${PRESET-nvidia_pytorch} BS=${BS:-1}
exec "$(dirname "$0")/../launch.sh" "$0" -- "$@"
