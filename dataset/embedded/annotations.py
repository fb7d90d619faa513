"""COCO annotations of exact masks: polygons where they can be exact, else run-length codes."""

from __future__ import annotations

from typing import Any

import numpy as np
from pycocotools import mask as mask_api

MOST_POLYGON_POINTS = 240
"""Longer outlines are stored as RLE, which is shorter then."""


def annotation_of(
    mask: np.ndarray, *, annotation_id: int, image_id: int, category_id: int, is_crowd: bool
) -> dict[str, Any]:
    """Returns the COCO annotation of a visible mask.

    Args:
      mask: bool [h, w], with at least one pixel set.

    Returns:
      `bbox` (x, y, w, h) is tight around the mask and `area` its number of pixels. Crowd regions
      have uncompressed RLE, as COCO's; objects polygons along the pixel borders that rasterise to
      the very same mask or, with holes or long outlines, compressed RLE.
    """
    rows = np.nonzero(mask.any(axis=1))[0]
    columns = np.nonzero(mask.any(axis=0))[0]
    box = (columns[0], rows[0], columns[-1] + 1 - columns[0], rows[-1] + 1 - rows[0])
    return {
        "id": annotation_id,
        "image_id": image_id,
        "category_id": category_id,
        "iscrowd": int(is_crowd),
        "bbox": [float(value) for value in box],
        "area": float(mask.sum()),
        "segmentation": uncompressed_rle(mask) if is_crowd else segmentation_of(mask),
    }


def segmentation_of(mask: np.ndarray) -> list[list[float]] | dict[str, Any]:
    """Returns polygons, or compressed RLE where polygons are long or would not be exact."""
    polygons = outline_polygons(mask)
    if polygons is not None and sum(len(p) for p in polygons) <= 2 * MOST_POLYGON_POINTS:
        height, width = mask.shape
        parts: Any = mask_api.frPyObjects(polygons, height, width)  # pyright: ignore
        drawn = mask_api.decode(mask_api.merge(parts))
        if np.array_equal(drawn.astype(bool), mask):
            return polygons
    rle = mask_api.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": [int(side) for side in rle["size"]], "counts": rle["counts"].decode("ascii")}


def uncompressed_rle(mask: np.ndarray) -> dict[str, Any]:
    """Returns run lengths down the columns, the first one of pixels that are not set."""
    flat = mask.flatten(order="F")
    changes = np.nonzero(np.diff(flat))[0] + 1
    runs = np.diff(np.concatenate([[0], changes, [flat.size]]))
    counts = [0, *runs.tolist()] if flat[0] else runs.tolist()
    return {"size": list(mask.shape), "counts": counts}


def outline_polygons(mask: np.ndarray) -> list[list[float]] | None:
    """Returns polygons x1, y1, x2, y2, ... along pixel borders, None if the mask has holes.

    Every border between a set and an unset pixel is a directed step with the set pixel on its
    right, so outlines run clockwise (y down) and holes anticlockwise.
    """
    padded = np.pad(mask, 1)
    steps: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for (dy, dx), (sy, sx), (ey, ex) in (
        ((-1, 0), (0, 0), (0, 1)),
        ((0, 1), (0, 1), (1, 1)),
        ((1, 0), (1, 1), (1, 0)),
        ((0, -1), (1, 0), (0, 0)),
    ):
        neighbour = np.roll(padded, (-dy, -dx), axis=(0, 1))
        for y, x in zip(*np.nonzero(padded & ~neighbour)):
            steps.setdefault((int(y + sy), int(x + sx)), []).append((int(y + ey), int(x + ex)))
    polygons = []
    while steps:
        corners = _follow(steps)
        ys, xs = np.array(corners, np.float64).T - 1
        if np.sum(xs * np.roll(ys, -1) - ys * np.roll(xs, -1)) < 0:
            return None
        polygons.append(np.column_stack([xs, ys]).ravel().tolist())
    return polygons


def _follow(steps: dict[tuple[int, int], list[tuple[int, int]]]) -> list[tuple[int, int]]:
    """Takes one closed path out of the steps and returns its corners.

    Where two set pixels touch at a corner only, the path turns right, staying with its pixel.
    """
    start = next(iter(steps))
    path, heading = [start], None
    while True:
        here = path[-1]
        choices = steps[here]
        chosen = 0
        if heading is not None and len(choices) > 1:
            right = (here[0] + heading[1], here[1] - heading[0])
            chosen = choices.index(right) if right in choices else 0
        there = choices.pop(chosen)
        if not choices:
            del steps[here]
        heading = (there[0] - here[0], there[1] - here[1])
        if there == start:
            break
        path.append(there)
    ring = np.array(path)
    before, after = ring - np.roll(ring, 1, axis=0), np.roll(ring, -1, axis=0) - ring
    return [tuple(point) for point in ring[(before != after).any(axis=1)].tolist()]
