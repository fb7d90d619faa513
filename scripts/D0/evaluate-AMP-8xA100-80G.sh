#!/usr/bin/env bash
# Evaluates CKPT=... (a checkpoint or the folder of a run) on COCO val2017 with 8 A100 80 GB, mixed precision.
# What the reference reports: docs/runs.md.
exec "$(dirname "$0")/../launch.sh" "$0" --recipe d0_coco_8xa100_amp --gpus 8 -- "$@"
