#!/usr/bin/env bash
# Times Mask R-CNN at inference on one GPU: BS (6) images per call, AMP=True or False, random weights or CKPT=...
# What the TF2 reference reports: docs/runs.md.
export PRESET=${PRESET-nvidia_tf2} BS=${BS:-6}
exec "$(dirname "$0")/../launch.sh" "$0" -- "$@"
