#!/usr/bin/env bash
# Trains Mask R-CNN five times (SEEDS) with 8 V100 16 GB, mixed precision, and reports how the AP varies.
# What the PyTorch reference reports: docs/runs.md.
exec "$(dirname "${BASH_SOURCE[0]}")/../stability.sh" maskrcnn/convergence-AMP-8xV100-16G-pytorch.sh "$@"
