#!/usr/bin/env bash
# Draws the masks that MODEL_DIR=... (a checkpoint or the folder of a run) finds on IMAGE_PATH (testdata/img1.jpg).
exec "$(dirname "$0")/../launch.sh" "$0" -- "$@"
