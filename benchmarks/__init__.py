"""Measurements: not tests. Each module prints a table and appends a row to a CSV."""

import keras_choice  # noqa: F401  (before TensorFlow)
