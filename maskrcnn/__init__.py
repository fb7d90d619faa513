"""Mask R-CNN: model, losses, targets, input pipeline and configuration."""
