#!/usr/bin/env bash
# Trains Mask R-CNN five times (SEEDS) with 8 A100 80 GB, mixed precision, and reports how the AP varies.
# The PyTorch reference reports in its revision of 2022:
#   boxes 0.3764 0.3766 0.3767 0.3752 0.3768, mean 0.3763, deviation 0.0006
#   masks 0.3414 0.3411 0.3410 0.3407 0.3415, mean 0.3411, deviation 0.0003
# For which GPUs and precision it does not say.
exec "$(dirname "${BASH_SOURCE[0]}")/../stability.sh" maskrcnn/convergence-AMP-8xA100-80G-pytorch.sh "$@"
