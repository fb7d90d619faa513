"""Commands that make and inspect record sets; `object_detection.convert` does the work."""

import keras_choice  # noqa: F401  (before TensorFlow)
