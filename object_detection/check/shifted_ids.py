"""Finds annotations that hang on the wrong image: those of the next one, or of the one before.

Two traces: boxes that leave their image but fit the neighbour's, and pixels, as the inside of a box
differs from what lies around it only where the box belongs.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from object_detection.check.findings import CheckFinding
from object_detection.check.split_table import SplitTable
from outside_data.picture_file import open_picture, read_regular_file

_SHIFTS = (1, -1, 2, -2)
_FEWEST_IMAGES = 4
_TOLERANCE_PX = 2.0
_SAMPLED_IMAGES = 60
_THUMBNAIL_PX = 192
_FEWEST_BOXES = 20
_CERTAIN = 5.0  # standard errors


def shifted_ids(table: SplitTable) -> Iterator[CheckFinding]:
    """Yields at most one finding."""
    if len(table.annotations.images) < _FEWEST_IMAGES or not len(table.boxes):
        return
    told = _by_size(table) or _by_pixels(table)
    if told is None:
        return
    shift, reason, examples = told
    where = "the next image" if shift == 1 else "the image before"
    if abs(shift) > 1:
        where = f"the image {abs(shift)} places {'further on' if shift > 0 else 'before'}"
    yield CheckFinding(
        "error",
        "shifted_ids",
        table.name,
        f"annotations look like those of {where}: {reason}",
        "Compare the image_id of a few annotations with their pictures, and number both alike "
        "(from 0 or from 1, in one order)",
        count=1,
        examples=examples,
    )


def _by_size(table: SplitTable) -> tuple[int, str, list[str]] | None:
    """Returns the shift after which no box leaves its image, if many do without it."""
    far = table.boxes[:, :2] + table.boxes[:, 2:]
    leaves = (far > table.sizes + _TOLERANCE_PX).any(axis=1)
    if leaves.sum() < max(2, 0.02 * len(leaves)):
        return None
    for shift in _SHIFTS:
        place = (table.image + shift) % len(table.image_sizes)
        left = (far > table.image_sizes[place] + _TOLERANCE_PX).any(axis=1).sum()
        if left <= 0.1 * leaves.sum():
            reason = (
                f"{leaves.sum()} of {len(leaves)} boxes leave their image, {left} would leave that"
            )
            return shift, reason, table.places(leaves)
    return None


def _by_pixels(table: SplitTable) -> tuple[int, str, list[str]] | None:
    """Returns the shift under which boxes stand out from their surroundings, if they do not here.

    Compared are neighbours of one size. A box stands out by the distance of its mean colour from
    that of a frame around it.
    """
    if len(table.boxes) < _FEWEST_BOXES:
        return None
    count = len(table.facts)
    chosen = range(0, count, max(1, count // _SAMPLED_IMAGES))
    gains: dict[int, list[float]] = {1: [], -1: []}
    thumbnails: dict[int, np.ndarray | None] = {}

    def pixels(index: int) -> np.ndarray | None:
        if index not in thumbnails:
            thumbnails[index] = _thumbnail(table.facts[index].path)
        return thumbnails[index]

    by_image: dict[int, list[int]] = {}
    for box, image in enumerate(table.image.tolist()):
        by_image.setdefault(image, []).append(box)
    for index in chosen:
        own = pixels(index) if index in by_image else None
        if own is None:
            continue
        boxes = table.boxes[by_image[index]] / np.tile(table.image_sizes[index], 2)
        here = _contrast(own, boxes)
        for shift, found in gains.items():
            other = pixels((index + shift) % count)
            if other is not None and other.shape == own.shape:
                difference = _contrast(other, boxes) - here
                difference = difference[np.isfinite(difference)]
                if len(difference):
                    found.append(float(difference.mean()))
        for passed in [key for key in thumbnails if key < index - 1]:
            del thumbnails[passed]
    for shift, found in gains.items():
        if len(found) >= _FEWEST_IMAGES * 2:
            error = np.std(found, ddof=1) / math.sqrt(len(found))
            if np.mean(found) > _CERTAIN * error > 0:
                reason = (
                    f"boxes stand out from their surroundings more there (by {np.mean(found):.1f} "
                    f"grey levels, {np.mean(found) / error:.0f} standard errors)"
                )
                return shift, reason, [table.image_name(index) for index in list(chosen)[:3]]
    return None


def _thumbnail(path: str) -> np.ndarray | None:
    try:
        image = open_picture(read_regular_file(path), whole=False).image
        image.draft("RGB", (_THUMBNAIL_PX, _THUMBNAIL_PX))
        small = image.convert("RGB").resize((_THUMBNAIL_PX, _THUMBNAIL_PX))
        return np.asarray(small, np.float32)
    except (OSError, ValueError, SyntaxError):
        return None


def _contrast(pixels: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Returns [n], how far the mean colour in each box is from that of a frame around it.

    Args:
      pixels: float32 [height, width, 3].
      boxes: float64 [n, 4], x, y, width, height as shares of the image.
    """
    height, width, _ = pixels.shape
    sums = np.zeros((height + 1, width + 1, 3))
    sums[1:, 1:] = pixels.cumsum(axis=0, dtype=np.float64).cumsum(axis=1)

    def total(low: np.ndarray, high: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        limits = np.array([width, height])
        x1, y1 = np.clip(np.floor(low * limits), 0, limits).astype(int).T
        x2, y2 = np.clip(np.ceil(high * limits), 0, limits).astype(int).T
        area = np.maximum(x2 - x1, 0) * np.maximum(y2 - y1, 0)
        return sums[y2, x2] - sums[y1, x2] - sums[y2, x1] + sums[y1, x1], area

    low, high = boxes[:, :2], boxes[:, :2] + boxes[:, 2:]
    margin = boxes[:, 2:] / 4
    inner, inner_area = total(low, high)
    outer, outer_area = total(low - margin, high + margin)
    frame = outer_area - inner_area
    usable = (inner_area > 0) & (frame > 0)
    means = inner / np.maximum(inner_area, 1)[:, None]
    around = (outer - inner) / np.maximum(frame, 1)[:, None]
    return np.where(usable, np.abs(means - around).mean(axis=1), np.nan)
