#!/usr/bin/env bash
# Evaluates CKPT=... (a checkpoint or the folder of a run) on COCO val2017 with 8 A100 80 GB, TF32.
# The TF2 reference reports AP 0.3796, mask AP 0.3444 for the run that this belongs to. It evaluates on one GPU: NGPU=1.
exec "$(dirname "$0")/../launch.sh" "$0" --recipe tf2_coco_8xa100_tf32 --gpus 8 -- "$@"
