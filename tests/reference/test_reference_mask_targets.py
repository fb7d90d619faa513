"""Mask targets against pycocotools drawing the polygon in the region itself.

The NVIDIA PyTorch reference moves the polygon into the region's grid and draws it there; here the
polygon is drawn in the image, stored as a crop of 112 x 112 cells, and resampled.
"""

import numpy as np
import pytest
import tensorflow as tf
from pycocotools import mask as mask_api

from object_detection.masks.mask_ops import mask_targets
from object_detection.masks.rle import crop_to_box

HEIGHT, WIDTH = 240, 320


def star(rng, *, radius):
    """A star-shaped polygon [x1, y1, x2, y2, ...] inside the image and its box (y1, x1, y2, x2)."""
    angles = np.sort(rng.uniform(0, 2 * np.pi, 14))
    radii = radius * rng.uniform(0.6, 1.0, 14)
    center = rng.uniform([radius, radius], [WIDTH - radius, HEIGHT - radius])
    points = center + radii[:, None] * np.stack([np.cos(angles), np.sin(angles)], -1)
    low, high = points.min(0), points.max(0)
    return points.ravel().tolist(), np.array([low[1], low[0], high[1], high[0]])


def drawn_in_region(polygon, box, size):
    points = np.reshape(polygon, (-1, 2))
    scale = size / np.array([box[3] - box[1], box[2] - box[0]])
    moved = (points - [box[1], box[0]]) * scale
    return mask_api.decode(
        mask_api.merge(mask_api.frPyObjects([moved.ravel().tolist()], size, size))
    )


@pytest.mark.parametrize(("size", "least"), [(28, 0.95), (14, 0.9)])
def test_targets_meet_the_polygon_drawn_in_the_region(size, least):
    rng = np.random.default_rng(0)
    overlaps = []
    for _ in range(30):
        polygon, frame = star(rng, radius=rng.uniform(30, 110))
        lengths = np.tile(frame[2:] - frame[:2], 2)
        box = frame + 0.1 * lengths * rng.uniform(-1, 1, 4)
        packed = crop_to_box([polygon], frame, height=HEIGHT, width=WIDTH)
        target = mask_targets(
            tf.constant(np.frombuffer(packed, np.uint8)),
            tf.constant(frame, tf.float32),
            tf.constant(box, tf.float32),
            output_size=size,
        ).numpy()
        expected = drawn_in_region(polygon, box, size)
        overlaps.append((target * expected).sum() / np.maximum(target, expected).sum())
    assert np.mean(overlaps) > least
    assert np.min(overlaps) > least - 0.12
