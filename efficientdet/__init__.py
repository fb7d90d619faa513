"""EfficientDet: model, losses, targets, input pipeline and configuration."""

import keras_choice  # noqa: F401  (before TensorFlow)
