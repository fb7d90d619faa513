#!/usr/bin/env bash
# Draws the detections of MODEL_DIR=... (a checkpoint or the folder of a run) on IMAGE_PATH (testdata/img1.jpg).
exec "$(dirname "$0")/../launch.sh" "$0" -- "$@"
