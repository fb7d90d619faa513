"""Coding of boxes against anchors (Faster R-CNN, arXiv 1506.01497, section 3.1.2, eq. 2).

    ty = wy * (yc - yc_a) / h_a        th = wh * ln(h / h_a)
    tx = wx * (xc - xc_a) / w_a        tw = ww * ln(w / w_a)

The order is (ty, tx, th, tw), that of the box corners. EfficientDet uses weights of 1; the box
head of Mask R-CNN uses (10, 10, 5, 5). Everything is float32 even when a network computes in half
precision: float16 has 0.8 px of error at 512 and overflows above exp(11).
"""

import math
from collections.abc import Sequence

import tensorflow as tf

from object_detection.boxes.box_ops import at_least_float32, split_corners

BoxWeights = tuple[float, float, float, float]

UNIT_WEIGHTS: BoxWeights = (1.0, 1.0, 1.0, 1.0)

# Largest th, tw before exp: a box 62.5 times its anchor (Detectron's 1000 px over 16 px).
MAX_LOG_RATIO = math.log(1000.0 / 16.0)

# Heights and widths are floored here before the logarithm, pixels.
_MIN_SIZE = 1e-8


def encode_boxes(
    boxes: tf.Tensor,
    anchors: tf.Tensor,
    *,
    weights: BoxWeights = UNIT_WEIGHTS,
    pixel_offset: float = 0.0,
) -> tf.Tensor:
    """Turns boxes into regression targets.

    Args:
      boxes: [..., 4], (y1, x1, y2, x2), pixels. Empty boxes give large finite values.
      anchors: [..., 4], same order and frame; broadcasts against `boxes`.
      weights: factors of (ty, tx, th, tw).
      pixel_offset: added to heights and widths; 1.0 takes the far corner of boxes and anchors for
        the last pixel they contain, as Detectron does.

    Returns:
      [..., 4] deltas (ty, tx, th, tw), unitless.
    """
    yc, xc, height, width = _centers_and_sizes(boxes, pixel_offset)
    yc_a, xc_a, height_a, width_a = _centers_and_sizes(anchors, pixel_offset)
    height, width = tf.maximum(height, _MIN_SIZE), tf.maximum(width, _MIN_SIZE)
    height_a, width_a = tf.maximum(height_a, _MIN_SIZE), tf.maximum(width_a, _MIN_SIZE)
    ty = weights[0] * (yc - yc_a) / height_a
    tx = weights[1] * (xc - xc_a) / width_a
    th = weights[2] * tf.math.log(height / height_a)
    tw = weights[3] * tf.math.log(width / width_a)
    return tf.stack((ty, tx, th, tw), axis=-1)


def decode_boxes(
    deltas: tf.Tensor,
    anchors: tf.Tensor,
    *,
    weights: BoxWeights = UNIT_WEIGHTS,
    pixel_offset: float = 0.0,
) -> tf.Tensor:
    """Turns regression output into boxes: the inverse of `encode_boxes` up to the clamp.

    Args:
      deltas: [..., 4], (ty, tx, th, tw), unitless.
      anchors: [..., 4], (y1, x1, y2, x2), pixels; broadcasts against `deltas`.
      weights: divisors of (ty, tx, th, tw), those of the encoding.
      pixel_offset: that of the encoding.

    Returns:
      [..., 4] boxes (y1, x1, y2, x2), pixels, not clipped.
    """
    ty, tx, th, tw = tf.unstack(at_least_float32(deltas), axis=-1)
    yc_a, xc_a, height_a, width_a = _centers_and_sizes(anchors, pixel_offset)
    half_height = height_a * tf.exp(tf.minimum(th / weights[2], MAX_LOG_RATIO)) / 2.0
    half_width = width_a * tf.exp(tf.minimum(tw / weights[3], MAX_LOG_RATIO)) / 2.0
    yc = ty / weights[0] * height_a + yc_a
    xc = tx / weights[1] * width_a + xc_a
    y2, x2 = yc + half_height, xc + half_width
    if pixel_offset:
        y2, x2 = y2 - pixel_offset, x2 - pixel_offset
    return tf.stack((yc - half_height, xc - half_width, y2, x2), axis=-1)


def _centers_and_sizes(
    boxes: tf.Tensor, pixel_offset: float
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor]:
    y1, x1, y2, x2 = split_corners(boxes)
    if pixel_offset:
        y2, x2 = y2 + pixel_offset, x2 + pixel_offset
    return (y1 + y2) / 2.0, (x1 + x2) / 2.0, y2 - y1, x2 - x1


def anchor_rows(outputs: Sequence[tf.Tensor], values_per_anchor: int) -> list[tf.Tensor]:
    """Views the output of each level as [batch, anchors, values_per_anchor], cell by cell."""
    return [
        tf.reshape(x, [-1, math.prod(x.shape[1:]) // values_per_anchor, values_per_anchor])
        for x in outputs
    ]
