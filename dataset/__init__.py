"""Commands that make and inspect record sets; `object_detection.convert` does the work."""

import ctrl_c  # noqa: F401  (before what takes seconds to import)
import keras_choice  # noqa: F401  (before TensorFlow)
