"""Boxes (y1, x1, y2, x2) in NumPy, in the precision of what comes: what the tests compare with.

`offset` is what a side has beyond the difference of its ends: 0, or 1 for whole pixels.
"""

from __future__ import annotations

import numpy as np


def random(
    rng: np.random.Generator, *shape: int, low: float = 0, high: float, side: tuple[float, float]
) -> np.ndarray:
    """Returns float32 [*shape, 4], y1 and x1 from `low` to `high`, sides in the range `side`."""
    start = rng.uniform(low, high, (*shape, 2))
    end = start + rng.uniform(*side, (*shape, 2))
    return np.concatenate([start, end], axis=-1).astype(np.float32)


def decode(deltas: np.ndarray, anchors: np.ndarray, offset: float = 0.0) -> np.ndarray:
    """Returns the boxes [n, 4] that `deltas` [n, 4] from `anchors` [n, 4] mean."""
    size = anchors[:, 2:] - anchors[:, :2] + offset
    center = anchors[:, :2] + size / 2 + deltas[:, :2] * size
    half = size * np.exp(deltas[:, 2:]) / 2
    return np.concatenate([center - half, center + half - offset], axis=1)


def overlaps(a: np.ndarray, b: np.ndarray, offset: float = 0.0) -> np.ndarray:
    """Returns the IoU [n, m] of boxes [n, 4] and [m, 4]; of one box [4]: [m]."""
    a = a[..., None, :]
    sides = np.minimum(a[..., 2:], b[:, 2:]) - np.maximum(a[..., :2], b[:, :2]) + offset
    inter = np.prod(np.maximum(sides, 0), axis=-1)
    areas = [np.prod(boxes[..., 2:] - boxes[..., :2] + offset, axis=-1) for boxes in (a, b)]
    return inter / (areas[0] + areas[1] - inter)
