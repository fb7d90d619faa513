#!/usr/bin/env bash
# Evaluates CKPT=... (a checkpoint or the folder of a run) on COCO val2017 with 8 V100 32 GB, mixed precision.
# What the reference reports: docs/runs.md.
exec "$(dirname "$0")/../launch.sh" "$0" --recipe d0_coco_8xv100_amp --gpus 8 -- "$@"
