#!/usr/bin/env bash
# Draws the detections of MODEL_DIR=... (a checkpoint or the folder of a run) on IMAGE_PATH (testdata/img1.jpg).
set -euo pipefail
exec "$(dirname "${BASH_SOURCE[0]}")/../launch.sh" efficientdet inference --name inference -- "$@"
