#!/usr/bin/env bash
# Evaluates CKPT=... (a checkpoint or the folder of a run) on COCO val2017 with 8 A100 80 GB, TF32.
# The PyTorch reference reports AP 0.3765, mask AP 0.3408 for the run that this belongs to. 1 image per GPU, as there.
set -euo pipefail
export AMP=${AMP:-False}
exec "$(dirname "${BASH_SOURCE[0]}")/../launch.sh" maskrcnn evaluate \
  --name maskrcnn-evaluate-TF32-8xA100-80G-pytorch --recipe e2e_mask_rcnn_R_50_FPN_1x --gpus 8 -- "$@"
