"""How a run is run: distribution, steps, loops, checkpoints, logs and weight files."""

import keras_choice  # noqa: F401  (before TensorFlow)
