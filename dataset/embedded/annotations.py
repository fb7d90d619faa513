"""COCO annotations of exact masks: polygons where they can be exact, else run-length codes."""

from __future__ import annotations

from typing import Any

import numpy as np
from pycocotools import mask as mask_api
from skimage.measure import find_contours

from dataset.instance_masks import mask_annotation
from object_detection.masks.mask_paste import run_lengths

MOST_POLYGON_POINTS = 240
"""Longer outlines are stored as RLE, which is shorter then."""


def annotation_of(
    mask: np.ndarray, *, annotation_id: int, image_id: int, category_id: int, is_crowd: bool
) -> dict[str, Any]:
    """Returns the COCO annotation of a visible mask, bool [h, w] with at least one pixel set.

    `bbox` (x, y, w, h) is tight around the mask and `area` its number of pixels. Crowd regions have
    uncompressed RLE, as COCO's; objects polygons that rasterise to the very same mask or, with
    holes or long outlines, compressed RLE.
    """
    return {
        "id": annotation_id,
        "image_id": image_id,
        "category_id": category_id,
        "iscrowd": int(is_crowd),
        **mask_annotation(mask),
        "segmentation": uncompressed_rle(mask) if is_crowd else segmentation_of(mask),
    }


def segmentation_of(mask: np.ndarray) -> list[list[float]] | dict[str, Any]:
    """Returns polygons, or compressed RLE where polygons are long or would not be exact."""
    height, width = mask.shape
    # Between the middles of the pixels, which COCO has at halves; the padding moves them by one.
    outlines = find_contours(np.pad(mask, 1).astype(np.float64), 0.5, fully_connected="low")
    polygons = []
    for ring in (outline[:-1] for outline in outlines):
        steps = ring - np.roll(ring, 1, axis=0)
        is_corner = (np.roll(steps, -1, axis=0) != steps).any(axis=1)
        polygons.append((ring[is_corner, ::-1] - 0.5).ravel().tolist())
    if sum(map(len, polygons)) <= 2 * MOST_POLYGON_POINTS:
        parts: Any = mask_api.frPyObjects(polygons, height, width)  # pyright: ignore
        if np.array_equal(mask_api.decode(mask_api.merge(parts)), mask):
            return polygons
    return mask_annotation(mask)["segmentation"]


def uncompressed_rle(mask: np.ndarray) -> dict[str, Any]:
    """Returns run lengths down the columns, the first one of pixels that are not set."""
    height, width = mask.shape
    counts = run_lengths(0, 0, mask, height=height, width=width)
    return {"size": [height, width], "counts": counts}
