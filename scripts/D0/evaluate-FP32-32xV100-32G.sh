#!/usr/bin/env bash
# Evaluates CKPT=... (a checkpoint or the folder of a run) on COCO val2017 with 32 V100 32 GB, single precision.
# What the reference reports: docs/runs.md.
# For the GPUs of one host NGPU=8, for four nodes: sbatch -N 4 slurm/evaluate-FP32-32xV100-32G.sub
exec "$(dirname "$0")/../launch.sh" "$0" --recipe d0_coco_32xv100_fp32 --gpus 32 -- "$@"
