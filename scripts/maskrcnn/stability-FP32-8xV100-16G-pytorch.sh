#!/usr/bin/env bash
# Trains Mask R-CNN five times (SEEDS) with 8 V100 16 GB, single precision, and reports how the AP varies.
# The PyTorch reference reports in its revision of 2019:
#   boxes 0.377 0.377 0.376 0.378 0.378, mean 0.377
#   masks 0.344 0.342 0.343 0.343 0.343, mean 0.342
exec "$(dirname "${BASH_SOURCE[0]}")/../stability.sh" maskrcnn/convergence-FP32-8xV100-16G-pytorch.sh "$@"
