"""Finds annotation files whose boxes are all fractions or corners instead of x, y, width, height.

Such a file trains without an error and scores 0. It is refused, not corrected: a guess about every
box of a set is the owner's to make.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

_FEWEST_BOXES = 3
_LEAST_SHARE = 0.95  # of the boxes that must fit the mistake
_LEAST_OVERHANG = 0.2  # of the boxes that must leave the image as x, y, width, height
_TOLERANCE_PX = 1.5
_REMEDY = "COCO wants x, y, width, height in pixels: convert the boxes, or export the set again"


def frame_problem(
    boxes: np.ndarray, sizes: np.ndarray, outlines: np.ndarray, places: Sequence[str]
) -> str:
    """Says why the boxes of a file cannot be x, y, width and height in pixels; '' if they can.

    Args:
      boxes: float64 [n, 4], as the file has them.
      sizes: float64 [n, 2], (width, height) of their images, NaN where the file does not say.
      outlines: float64 [n, 4], (x1, y1, x2, y2) around their polygons, NaN without polygons.
      places: [n] names of image and annotation.
    """
    if not len(boxes):
        return ""
    is_fraction = (boxes >= 0).all(axis=1) & (boxes <= 1).all(axis=1) & (boxes % 1 > 0).any(axis=1)
    if is_fraction.mean() >= _LEAST_SHARE:
        first = int(np.argmax(is_fraction))
        return (
            f"{is_fraction.sum()} of {len(boxes)} boxes lie within 0 and 1, for example "
            f"{boxes[first].tolist()} of {places[first]}: they are fractions of the image's sides. "
            f"Multiply x and width by the image's width, y and height by its height. {_REMEDY}"
        )
    looks_corner = (boxes[:, 2:] > boxes[:, :2]).all(axis=1)
    looks_corner &= ~(boxes[:, 2:] > sizes + _TOLERANCE_PX).any(axis=1)
    leaves_image = (boxes[:, :2] + boxes[:, 2:] > sizes + _TOLERANCE_PX).any(axis=1)
    outlined = np.isfinite(outlines).all(axis=1)
    as_corners = np.abs(boxes - outlines).max(axis=1) <= _TOLERANCE_PX
    as_sides = np.abs(boxes[:, :2] + boxes[:, 2:] - outlines[:, 2:]).max(axis=1) <= _TOLERANCE_PX
    speaks = outlined & (as_corners != as_sides)
    is_outlined_so = speaks.any() and as_corners[speaks].mean() >= _LEAST_SHARE
    is_out_so = (
        len(boxes) >= _FEWEST_BOXES
        and looks_corner.mean() >= _LEAST_SHARE
        and leaves_image.mean() >= _LEAST_OVERHANG
    )
    if is_outlined_so or (is_out_so and not (speaks.any() and not as_corners[speaks].any())):
        first = int(np.argmax(as_corners & speaks if is_outlined_so else leaves_image))
        return (
            f"the boxes are corners (x1, y1, x2, y2), for example {boxes[first].tolist()} of "
            f"{places[first]}, "
            + (
                "which are those of its polygons"
                if is_outlined_so
                else f"while {leaves_image.sum()} of {len(boxes)} would leave their image as x, y, "
                "width, height"
            )
            + f". Subtract x1 from x2 and y1 from y2. {_REMEDY}"
        )
    return ""
