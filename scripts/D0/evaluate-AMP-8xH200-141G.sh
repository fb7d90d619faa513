#!/usr/bin/env bash
# Evaluates CKPT=... (a checkpoint or the folder of a run) on COCO val2017 with 8 H200 141 GB, mixed precision.
# Ours, not from the references.
exec "$(dirname "$0")/../launch.sh" "$0" --recipe d0_coco_8xh200_amp --gpus 8 -- "$@"
