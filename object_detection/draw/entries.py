"""Draws COCO's entries, detections or annotations: their masks, or their boxes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from object_detection.draw.draw_masks import draw_masks
from object_detection.draw.palette import Color
from object_detection.draw.visualize import Names, draw_boxes
from object_detection.masks.rle import BadMaskError, decode_mask


def corners(boxes: Any) -> np.ndarray:
    """Returns float64 [n, 4], (y1, x1, y2, x2), of COCO's boxes (x, y, width, height)."""
    x, y, width, height = np.array(boxes, np.float64).reshape(-1, 4).T
    return np.stack([y, x, y + height, x + width], axis=1)


def draw_entries(
    image: np.ndarray,
    entries: Sequence[Mapping[str, Any]],
    classes: np.ndarray,
    *,
    names: Names,
    with_masks: bool,
    all_boxes: bool = False,
    max_objects: int = 100,
    zoom: float = 1.0,
    colors: Sequence[Color] | None = None,
) -> np.ndarray:
    """Draws entries; without scores the labels are names only.

    Args:
      image: uint8 [h, w, 3].
      entries: each with bbox and, where known, score, segmentation (polygons or RLE), iscrowd.
      classes, names: as of `draw_boxes`.
      with_masks: draw segmentations, boxes where there is none; False: boxes only.
      all_boxes: as of `draw_masks`.
      max_objects, zoom, colors: as of `draw_boxes`.

    Returns:
      uint8 [round(h * zoom), round(w * zoom), 3].
    """
    boxes = corners([entry["bbox"] for entry in entries])
    has_scores = bool(entries) and "score" in entries[0]
    how = {
        "scores": np.array([entry["score"] for entry in entries]) if has_scores else None,
        "crowd": np.array([bool(entry.get("iscrowd")) for entry in entries]),
        "names": names,
        "max_objects": max_objects,
        "zoom": zoom,
        "colors": colors,
    }
    if not with_masks:
        return draw_boxes(image, boxes, classes, **how)
    masks = np.array([_mask_of(entry, image.shape[:2]) for entry in entries], bool)
    return draw_masks(image, masks, classes, boxes=boxes, all_boxes=all_boxes, **how)


def _mask_of(entry: Mapping[str, Any], size: tuple[int, int]) -> np.ndarray:
    """Returns the mask [h, w] of an object, empty if it has none."""
    try:
        return decode_mask(entry.get("segmentation"), *size)
    except BadMaskError:
        return np.zeros(size, bool)
