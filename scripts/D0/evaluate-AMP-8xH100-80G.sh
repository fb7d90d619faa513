#!/usr/bin/env bash
# Evaluates CKPT=... (a checkpoint or the folder of a run) on COCO val2017 with 8 H100 80 GB, mixed precision.
# Ours, not from the references.
exec "$(dirname "$0")/../launch.sh" "$0" --recipe d0_coco_8xh100_amp --gpus 8 -- "$@"
