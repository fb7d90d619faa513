"""What all detector families say alike: their task, input, weights, and how commands see them."""

import keras_choice  # noqa: F401  (before TensorFlow)
