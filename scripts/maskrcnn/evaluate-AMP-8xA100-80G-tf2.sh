#!/usr/bin/env bash
# Evaluates CKPT=... (a checkpoint or the folder of a run) on COCO val2017 with 8 A100 80 GB, mixed precision.
# What the TF2 reference reports: docs/runs.md. It evaluates on one GPU: NGPU=1.
exec "$(dirname "$0")/../launch.sh" "$0" --recipe tf2_coco_8xa100_amp --gpus 8 -- "$@"
