#!/usr/bin/env bash
# Times EfficientDet-D0 at inference on one GPU: BS (8) images per call, AMP=True or False, random weights or CKPT=...
# What the reference reports: docs/runs.md.
exec "$(dirname "$0")/../launch.sh" "$0" -- "$@"
