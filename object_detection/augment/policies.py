"""The policies of "Learning Data Augmentation Strategies for Object Detection" (arXiv 1906.11172).

`v0` is the one of the paper's results, `v1` to `v3` are further ones of google/automl under
these names. An image gets one line of a policy, its operations in order, each with its probability;
the last number is the magnitude, 0..10.
"""

from __future__ import annotations

import numpy as np

OPERATIONS = (
    # nothing; of grey levels
    *("none", "autocontrast", "equalize", "posterize", "solarize", "solarize_add", "brightness"),
    *("contrast", "color", "sharpness"),
    # of places
    *("rotate", "shear_x", "shear_y", "translate_x", "translate_y"),
    # of a rectangle anywhere, or in an object
    *("cutout", "box_cutout"),
    # within the boxes of objects, each with a third of the probability
    *("only_equalize", "only_shear_x", "only_shear_y", "only_translate_y", "only_flip"),
    "only_cutout",
)
"""What a policy may do; an operation's number is its place."""

_V0 = """
translate_x 0.6 4, equalize 0.8 10
only_translate_y 0.2 2, cutout 0.8 8
sharpness 0.0 8, shear_x 0.4 0
shear_y 1.0 2, only_translate_y 0.6 6
rotate 0.6 10, color 1.0 6
"""
_TEXTS = {
    "v0": _V0,
    "v1": _V0
    + """
color 0.0 0, only_shear_x 0.8 4
only_shear_y 0.8 2, only_flip 0.0 10
equalize 0.6 10, translate_x 0.2 2
color 1.0 10, only_translate_y 0.4 6
rotate 0.8 10, contrast 0.0 10
cutout 0.2 2, brightness 0.8 10
color 1.0 6, equalize 1.0 2
only_cutout 0.4 6, only_translate_y 0.8 2
color 0.2 8, rotate 0.8 10
sharpness 0.4 4, only_translate_y 0.0 4
sharpness 1.0 4, solarize_add 0.4 4
rotate 1.0 8, sharpness 0.2 8
shear_y 0.6 10, only_equalize 0.6 8
shear_x 0.2 6, only_translate_y 0.2 10
solarize_add 0.6 8, brightness 0.8 10
""",
    "v2": """
color 0.0 6, cutout 0.6 8, sharpness 0.4 8
rotate 0.4 8, sharpness 0.4 2, rotate 0.8 10
translate_y 1.0 8, autocontrast 0.8 2
autocontrast 0.4 6, shear_x 0.8 8, brightness 0.0 10
solarize_add 0.2 6, contrast 0.0 10, autocontrast 0.6 0
cutout 0.2 0, solarize 0.8 8, color 1.0 4
translate_y 0.0 4, equalize 0.6 8, solarize 0.0 10
translate_y 0.2 2, shear_y 0.8 8, rotate 0.8 8
cutout 0.8 8, brightness 0.8 8, cutout 0.2 2
color 0.8 4, translate_y 1.0 6, rotate 0.6 6
rotate 0.6 10, box_cutout 1.0 4, cutout 0.2 8
rotate 0.0 0, equalize 0.6 6, shear_y 0.6 8
brightness 0.8 8, autocontrast 0.4 2, brightness 0.2 2
translate_y 0.4 8, solarize 0.4 6, solarize_add 0.2 10
contrast 1.0 10, solarize_add 0.2 8, equalize 0.2 4
""",
    "v3": """
posterize 0.8 2, translate_x 1.0 8
box_cutout 0.2 10, sharpness 1.0 8
rotate 0.6 8, rotate 0.8 10
equalize 0.8 10, autocontrast 0.2 10
solarize_add 0.2 2, translate_y 0.2 8
sharpness 0.0 2, color 0.4 8
equalize 1.0 8, translate_y 1.0 8
posterize 0.6 2, rotate 0.0 10
autocontrast 0.6 0, rotate 1.0 6
equalize 0.0 4, cutout 0.8 10
brightness 1.0 2, translate_y 1.0 6
contrast 0.0 2, shear_y 0.8 0
autocontrast 0.8 10, contrast 0.2 10
rotate 1.0 10, cutout 1.0 10
solarize_add 0.8 6, equalize 0.8 8
""",
}


def policy(name: str) -> np.ndarray:
    """Returns float32 [lines, operations, 3]: number of the operation, probability, magnitude.

    Args:
      name: v0, v1, v2 or v3.
    """
    lines = [
        [step.split() for step in line.split(",")] for line in _TEXTS[name].split("\n") if line
    ]
    table = np.zeros((len(lines), max(map(len, lines)), 3), np.float32)
    for i, steps in enumerate(lines):
        for j, (operation, probability, magnitude) in enumerate(steps):
            table[i, j] = OPERATIONS.index(operation), float(probability), float(magnitude)
    return table
