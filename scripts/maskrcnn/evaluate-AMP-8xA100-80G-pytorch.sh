#!/usr/bin/env bash
# Evaluates CKPT=... (a checkpoint or the folder of a run) on COCO val2017 with 8 A100 80 GB, mixed precision.
# The PyTorch reference reports AP 0.3763, mask AP 0.3417 for the run that this belongs to. 1 image per GPU, as there.
set -euo pipefail
export AMP=${AMP:-True}
exec "$(dirname "${BASH_SOURCE[0]}")/../launch.sh" maskrcnn evaluate \
  --name maskrcnn-evaluate-AMP-8xA100-80G-pytorch --recipe e2e_mask_rcnn_R_50_FPN_1x --gpus 8 -- "$@"
