"""Predicted masks pasted into images and run-length encoded, on the host, with NumPy.

A prediction is a small square of probabilities that covers its box. Only the box is ever
resampled, by two products with interpolation weights, and only the columns it touches are encoded:
the cost follows the box and not the image.

Two conventions say where the square lies, see `MaskRule`. The right one treats coordinates as
continuous, like the rest of the project. The other is that of Detectron and both NVIDIA references.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

CONVENTIONS = ("continuous", "detectron")


class MaskRule(NamedTuple):
    """How a model's masks are pasted.

    threshold: probability from which a pixel belongs to the object.
    convention: 'continuous': the pixel whose middle is at fraction f of the box takes the value at
      fraction f of the square, bilinearly, with 0 outside the square; it is set from `threshold`
      on. 'detectron': the square gets a border of one zero cell, the box grows alike about its
      middle and is truncated to whole pixels, both ends counting; the square is stretched over it,
      and pixels above `threshold` are set.
    """

    threshold: float = 0.5
    convention: str = "continuous"


OUR_RULE = MaskRule()


def paste_mask(
    mask: np.ndarray,
    box: np.ndarray,
    *,
    height: int,
    width: int,
    rule: MaskRule = OUR_RULE,
) -> np.ndarray:
    """Draws one predicted mask into its image; arguments as of `paste_probabilities`.

    Returns:
      uint8 [height, width], 0 or 1.
    """
    image = np.zeros((height, width), np.uint8)
    top, left, region = paste_region(mask, box, height=height, width=width, rule=rule)
    image[top : top + region.shape[0], left : left + region.shape[1]] = region
    return image


def encode_masks(
    masks: np.ndarray,
    boxes: np.ndarray,
    *,
    height: int,
    width: int,
    rule: MaskRule = OUR_RULE,
) -> list[dict[str, Any]]:
    """Pastes predicted masks and encodes them as COCO does.

    Args:
      masks: [n, s, s], probabilities.
      boxes: [n, 4], (y1, x1, y2, x2), pixels of the image.
      height, width: of the image, pixels.
      rule: how they are pasted.

    Returns:
      n compressed RLE dicts, {"size": [height, width], "counts": bytes}.

    Raises:
      ValueError: if the convention is unknown, or masks and boxes differ in number.
    """
    from pycocotools import mask as mask_api  # here: models without masks do without it

    if len(masks) != len(boxes):
        raise ValueError(f"expected one box for each mask, got {len(masks)} and {len(boxes)}")
    if not len(masks):
        return []
    counts = [
        run_lengths(
            *paste_region(mask, box, height=height, width=width, rule=rule),
            height=height,
            width=width,
        )
        for mask, box in zip(masks, boxes)
    ]
    size = [height, width]
    return mask_api.frPyObjects([{"size": size, "counts": runs} for runs in counts], *size)


def run_lengths(top: int, left: int, region: np.ndarray, *, height: int, width: int) -> list[int]:
    """Counts the runs of a mask that is zero outside a region, column by column, zeros first.

    Args:
      top: row of the region's first row.
      left: column of the region's first column.
      region: uint8 [h, w], 0 or 1, inside the image.
      height, width: of the image.

    Returns:
      Lengths of runs that add up to height * width.
    """
    columns = np.zeros((region.shape[1], height), np.uint8)
    columns[:, top : top + region.shape[0]] = region.T
    values = np.pad(columns.ravel(), 1)
    changes = np.flatnonzero(values[1:] != values[:-1]) + left * height
    edges = np.concatenate([[0], changes, [height * width]])
    runs = np.diff(edges).tolist()
    # A run of zeros that would be empty at the end is not written; the one at the start is.
    return runs if runs[-1] or len(runs) == 1 else runs[:-1]


def paste_probabilities(
    mask: np.ndarray,
    box: np.ndarray,
    *,
    height: int,
    width: int,
    rule: MaskRule = OUR_RULE,
) -> tuple[int, int, np.ndarray]:
    """Resamples a mask over the pixels of its box, without deciding what belongs to the object.

    Args:
      mask: [s, s], probabilities.
      box: [4], (y1, x1, y2, x2), pixels of the image; may reach over its border.
      height, width: of the image, pixels.
      rule: its convention says where the mask lies.

    Returns:
      Row and column of the first pixel, and float32 [h, w], inside the image and possibly empty.

    Raises:
      ValueError: if the convention is unknown.
    """
    if rule.convention not in CONVENTIONS:
        raise ValueError(f"unknown convention {rule.convention!r}, expected one of {CONVENTIONS}")
    if not np.isfinite(box).all():
        return 0, 0, np.zeros((0, 0), np.float32)
    mask = np.asarray(mask, np.float32)
    box = np.asarray(box, np.float64)
    if rule.convention == "continuous":
        top, rows = _continuous_axis(box[0], box[2], len(mask), height)
        left, columns = _continuous_axis(box[1], box[3], len(mask), width)
        return top, left, rows @ mask @ columns.T
    padded = np.pad(mask, 1)
    grown = _grow(box, len(padded) / len(mask))
    top, rows = _whole_pixel_axis(grown[0], grown[2], len(padded), height)
    left, columns = _whole_pixel_axis(grown[1], grown[3], len(padded), width)
    return top, left, rows @ padded @ columns.T


def paste_region(
    mask: np.ndarray, box: np.ndarray, *, height: int, width: int, rule: MaskRule = OUR_RULE
) -> tuple[int, int, np.ndarray]:
    """As `paste_probabilities`, but uint8 [h, w]: 1 where the pixel belongs to the object."""
    top, left, region = paste_probabilities(mask, box, height=height, width=width, rule=rule)
    is_continuous = rule.convention == "continuous"
    is_set = region >= rule.threshold if is_continuous else region > rule.threshold
    return top, left, is_set.astype(np.uint8)


def _continuous_axis(low: float, high: float, size: int, limit: int) -> tuple[int, np.ndarray]:
    """Returns the first pixel and float32 [pixels, size] weights of one axis.

    Pixels whose middle is within half a cell of the box are there: beyond, all weights are 0.
    """
    if high <= low:
        return 0, np.zeros((0, size), np.float32)
    cell = (high - low) / size
    first = int(np.clip(np.floor(low - cell / 2), 0, limit))
    last = int(np.clip(np.ceil(high + cell / 2), first, limit))
    positions = (np.arange(first, last) + 0.5 - low) / cell - 0.5
    weights = 1.0 - np.abs(positions[:, np.newaxis] - np.arange(size))
    return first, np.maximum(weights, 0.0).astype(np.float32)


def _whole_pixel_axis(low: int, high: int, size: int, limit: int) -> tuple[int, np.ndarray]:
    """As `_continuous_axis`, for a square stretched over the pixels low..high, both included."""
    length = max(high - low + 1, 1)
    first, last = int(np.clip(low, 0, limit)), int(np.clip(low + length, 0, limit))
    positions = (np.arange(first, last) - low + 0.5) * (size / length) - 0.5
    positions = np.clip(positions, 0, size - 1)
    weights = 1.0 - np.abs(positions[:, np.newaxis] - np.arange(size))
    return first, np.maximum(weights, 0.0).astype(np.float32)


def _grow(box: np.ndarray, factor: float) -> Sequence[int]:
    """Scales a box about its middle and truncates it to whole pixels, towards zero."""
    middle, half = (box[:2] + box[2:]) / 2, (box[2:] - box[:2]) / 2 * factor
    return np.trunc(np.concatenate([middle - half, middle + half])).astype(np.int64).tolist()
