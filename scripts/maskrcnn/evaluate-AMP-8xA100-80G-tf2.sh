#!/usr/bin/env bash
# Evaluates CKPT=... (a checkpoint or the folder of a run) on COCO val2017 with 8 A100 80 GB, mixed precision.
# The TF2 reference reports AP 0.3795, mask AP 0.3443 for the run that this belongs to. It evaluates on one GPU: NGPU=1.
exec "$(dirname "$0")/../launch.sh" "$0" --recipe tf2_coco_8xa100_amp --gpus 8 -- "$@"
