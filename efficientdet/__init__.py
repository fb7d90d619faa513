"""EfficientDet: model, losses, targets, input pipeline and configuration."""
