"""From a mask of pixels to the smooth outline it stands for, and to distances from it.

The outline passes between the pixels that the mask separates; a light blur only decides where
between them. So staircases become slopes, and what is one pixel wide keeps its place. Distances are
exact distances to that polygon, computed only near it: the cost follows the length of the outline.

Coordinates are continuous. The middle of the pixel in row 3 is at 3.5.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageFilter
from scipy import ndimage
from skimage.measure import find_contours

# Of the blur, pixels of the mask; and how far, at least, a pixel's value stays from the threshold.
_SIGMA = 1.0
_LEAST_GAP = 0.04
# Segments handled at once: bounds the memory.
_CHUNK = 4096


class Field(NamedTuple):
    """Signed distances to a mask's outline in a part of a picture.

    Attributes:
      rows: the part's rows.
      columns: the part's columns.
      distance: float32 [rows, columns], pixels of the picture, positive inside, cut off at +-reach.
    """

    rows: slice
    columns: slice
    distance: np.ndarray


def mask_box(mask: np.ndarray) -> tuple[float, float, float, float]:
    """Returns (y1, x1, y2, x2) around the set pixels, zeros for an empty mask."""
    rows, columns = np.nonzero(mask.any(axis=1))[0], np.nonzero(mask.any(axis=0))[0]
    if not len(rows):
        return 0.0, 0.0, 0.0, 0.0
    return float(rows[0]), float(columns[0]), float(rows[-1] + 1), float(columns[-1] + 1)


def signed_distance(mask: np.ndarray, *, height: int, width: int, reach: float) -> Field | None:
    """Measures how far pixels of a picture are inside or outside a mask.

    Args:
      mask: bool [h, w], stretched over the whole picture.
      height, width: of the picture, pixels.
      reach: pixels of the picture; farther is not told apart.

    Returns:
      Distances around the mask; None for an empty mask.
    """
    scale = np.array([height / mask.shape[0], width / mask.shape[1]])
    y1, x1, y2, x2 = (int(side) for side in mask_box(mask))
    if y2 == y1:
        return None
    margin = math.ceil(reach / scale.min()) + 2
    origin = np.array([max(y1 - margin, 0), max(x1 - margin, 0)])
    part = mask[origin[0] : y2 + margin, origin[1] : x2 + margin]
    # A border of repeated values: the outline leaves the image instead of following its edge.
    field = _smoothed(np.pad(part, margin, mode="edge"))
    start = origin - margin
    low = np.round(origin * scale).astype(int)
    high = np.minimum(np.round((origin + part.shape) * scale).astype(int), (height, width))
    rows, columns = slice(low[0], max(high[0], low[0])), slice(low[1], max(high[1], low[1]))
    shape = (rows.stop - rows.start, columns.stop - columns.start)
    if not shape[0] * shape[1]:
        return None
    segments = (_segments(field) + start) * scale - low
    distance = _distance(segments, shape, reach)
    y = (np.arange(rows.start, rows.stop) + 0.5) / scale[0] - start[0]
    x = (np.arange(columns.start, columns.stop) + 0.5) / scale[1] - start[1]
    places = np.meshgrid(y - 0.5, x - 0.5, indexing="ij")
    is_inside = ndimage.map_coordinates(field, places, order=1, mode="nearest") >= 0.5
    return Field(rows, columns, np.where(is_inside, distance, -distance))


def _smoothed(mask: np.ndarray) -> np.ndarray:
    """Returns float32 [h, w], from 0.5 on where the mask is set and below elsewhere."""
    picture = Image.fromarray(mask.astype(np.uint8) * 255)
    soft = np.asarray(picture.filter(ImageFilter.GaussianBlur(_SIGMA)), np.float32) / 255.0
    inside, outside = np.float32(0.5 + _LEAST_GAP), np.float32(0.5 - _LEAST_GAP)
    return np.where(mask, np.maximum(soft, inside), np.minimum(soft, outside))


def _segments(field: np.ndarray) -> np.ndarray:
    """Returns the lines at 0.5 through the squares between four middles of pixels.

    Each of [n, 2, 2] runs from (y, x) to (y, x), pixels; there is none along the array's border.
    """
    lines = [line + 0.5 for line in find_contours(field, 0.5)]
    pieces = [np.stack([line[:-1], line[1:]], axis=1) for line in lines]
    return np.concatenate([np.empty((0, 2, 2)), *pieces])


def _distance(segments: np.ndarray, shape: tuple[int, int], reach: float) -> np.ndarray:
    """Returns float32 `shape`, the distance of each pixel's middle to the nearest segment."""
    longest = np.abs(segments[:, 1] - segments[:, 0]).max(initial=0.0)
    radius = math.ceil(reach + longest / 2 + 0.5)
    grid = np.arange(-radius, radius + 1)
    offsets = np.stack(np.meshgrid(grid, grid, indexing="ij"), axis=-1).reshape(-1, 2)
    offsets = offsets[np.hypot(*offsets.T) <= reach + longest / 2 + 1]
    # Segments just outside matter too; with this border their surroundings need no test.
    border = 2 * radius
    height, width = shape[0] + 2 * border, shape[1] + 2 * border
    nearest = np.full(height * width, reach, np.float32)
    middles = np.floor(segments.mean(axis=1)).astype(np.int64)
    is_near = ((middles >= -radius) & (middles < np.add(shape, radius))).all(axis=1)
    segments, middles = segments[is_near], middles[is_near]
    for start in range(0, len(segments), _CHUNK):
        ends, pixels = segments[start : start + _CHUNK], middles[start : start + _CHUNK]
        along = (ends[:, 1] - ends[:, 0]).astype(np.float32)
        along /= np.maximum(np.hypot(along[:, 0], along[:, 1]), np.float32(1e-6))[:, np.newaxis]
        length = np.hypot(*(ends[:, 1] - ends[:, 0]).T).astype(np.float32)[:, np.newaxis]
        begin = (pixels + 0.5 - ends[:, 0]).astype(np.float32)
        down = begin[:, :1] + offsets[:, 0].astype(np.float32)
        across = begin[:, 1:] + offsets[:, 1].astype(np.float32)
        ahead = np.clip(down * along[:, :1] + across * along[:, 1:], 0, length)
        down -= ahead * along[:, :1]
        across -= ahead * along[:, 1:]
        first = (pixels[:, 0] + border) * width + pixels[:, 1] + border
        places = first[:, np.newaxis] + (offsets[:, 0] * width + offsets[:, 1])
        np.minimum.at(nearest, places.ravel(), np.sqrt(down * down + across * across).ravel())
    return nearest.reshape(height, width)[border:-border, border:-border]
