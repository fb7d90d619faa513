#!/usr/bin/env bash
# Trains Mask R-CNN five times (SEEDS) with 8 A100 80 GB, mixed precision, and reports how the AP varies.
# What the PyTorch reference reports: docs/runs.md. For which GPUs and precision it does not say.
exec "$(dirname "${BASH_SOURCE[0]}")/../stability.sh" maskrcnn/convergence-AMP-8xA100-80G-pytorch.sh "$@"
