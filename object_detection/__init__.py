"""What every detector here shares: box maths, data, metrics and drawing.

The modules know TensorFlow and NumPy. They know no model family and no distributed runtime, and
nothing here is a public shortcut: import the module that holds what is needed.
"""

import keras_choice  # noqa: F401  (before TensorFlow)
