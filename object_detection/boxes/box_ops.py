"""Areas, overlaps, clipping and format changes of boxes.

Here: geometry of axis-aligned boxes `(y1, x1, y2, x2)` in continuous pixels. Not here: coding of
boxes against anchors (`box_coder`), the mapping between image frames (`geometry`).

A box from 10 to 20 is 10 pixels wide. The convention that counts both border pixels (11 wide) is
reached through `pixel_offset=1.0` where it matters for agreeing with another implementation.

All results are float32 whatever the input: in half precision one unit in the last place is half a
pixel at 512 and a whole one above 1024. Only float64 is left as it is, for numerical checks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import tensorflow as tf

# Smallest denominator of a ratio of areas or squared lengths, square pixels. It only matters where
# the numerator is zero as well.
_TINY_AREA = 1e-12

Corners = Sequence[tf.Tensor]


def at_least_float32(values: tf.Tensor) -> tf.Tensor:
    """Casts to float32, leaving float64 alone."""
    values = tf.convert_to_tensor(values)
    return values if values.dtype == tf.float64 else tf.cast(values, tf.float32)


def split_corners(boxes: tf.Tensor) -> Corners:
    """Splits [..., 4] boxes into the four tensors (y1, x1, y2, x2), each [...]."""
    return tf.unstack(at_least_float32(boxes), axis=-1)


def corner_areas(corners: Corners, *, pixel_offset: float = 0.0) -> tf.Tensor:
    """Computes areas from split corners; an inverted or empty box has area 0."""
    y1, x1, y2, x2 = corners
    height = tf.maximum(y2 - y1 + pixel_offset, 0.0)
    return height * tf.maximum(x2 - x1 + pixel_offset, 0.0)


def corner_overlaps(
    a: Corners, b: Corners, *, pixel_offset: float = 0.0
) -> tuple[tf.Tensor, tf.Tensor]:
    """Computes intersections and unions from split corners, by broadcasting.

    Args:
      a: four tensors (y1, x1, y2, x2).
      b: the same, of shapes that broadcast against those of `a`.
      pixel_offset: added to every length; 1.0 counts both border pixels.

    Returns:
      (intersection, union), square pixels, of the broadcast shape.
    """
    top, left = tf.maximum(a[0], b[0]), tf.maximum(a[1], b[1])
    bottom, right = tf.minimum(a[2], b[2]), tf.minimum(a[3], b[3])
    intersection = corner_areas((top, left, bottom, right), pixel_offset=pixel_offset)
    areas = corner_areas(a, pixel_offset=pixel_offset) + corner_areas(b, pixel_offset=pixel_offset)
    return intersection, areas - intersection


def corner_iou(a: Corners, b: Corners, *, pixel_offset: float = 0.0) -> tf.Tensor:
    """Computes intersection over union from split corners, by broadcasting; 0 for empty boxes."""
    intersection, union = corner_overlaps(a, b, pixel_offset=pixel_offset)
    return intersection / tf.maximum(union, _TINY_AREA)


def box_areas(boxes: tf.Tensor, *, pixel_offset: float = 0.0) -> tf.Tensor:
    """Computes areas as `corner_areas`: boxes [..., 4] give [...], square pixels."""
    return corner_areas(split_corners(boxes), pixel_offset=pixel_offset)


def pairwise_iou(a: tf.Tensor, b: tf.Tensor, *, pixel_offset: float = 0.0) -> tf.Tensor:
    """Computes the IoU of each box of one set with each box of another.

    Args:
      a: [..., N, 4], (y1, x1, y2, x2), pixels.
      b: [..., M, 4], same frame; leading dimensions broadcast.
      pixel_offset: added to every length.

    Returns:
      [..., N, M] in [0, 1]; 0 where both boxes are empty.
    """
    rows = [corner[..., :, tf.newaxis] for corner in split_corners(a)]
    columns = [corner[..., tf.newaxis, :] for corner in split_corners(b)]
    return corner_iou(rows, columns, pixel_offset=pixel_offset)


def iou(a: tf.Tensor, b: tf.Tensor) -> tf.Tensor:
    """Computes the IoU of corresponding boxes: two [..., 4] of equal shape give [...]."""
    return corner_iou(split_corners(a), split_corners(b))


def giou(a: tf.Tensor, b: tf.Tensor) -> tf.Tensor:
    """Computes the generalised IoU (arXiv 1902.09630, algorithm 1) of corresponding boxes.

    Two [..., 4] give [...] in (-1, 1]: the IoU less the empty share of the enclosing box.
    """
    corners_a, corners_b = split_corners(a), split_corners(b)
    intersection, union = corner_overlaps(corners_a, corners_b)
    enclosing = corner_areas(_enclosing_corners(corners_a, corners_b))
    empty_share = (enclosing - union) / tf.maximum(enclosing, _TINY_AREA)
    return intersection / tf.maximum(union, _TINY_AREA) - empty_share


def diou(a: tf.Tensor, b: tf.Tensor) -> tf.Tensor:
    """Computes the distance IoU (arXiv 1911.08287, section 3.2) of corresponding boxes.

    Two [..., 4] give [...] in (-1, 1]: the IoU less `corner_distance_penalty`.
    """
    corners_a, corners_b = split_corners(a), split_corners(b)
    return corner_iou(corners_a, corners_b) - corner_distance_penalty(corners_a, corners_b)


def ciou(a: tf.Tensor, b: tf.Tensor) -> tf.Tensor:
    """Computes the complete IoU (arXiv 1911.08287, section 3.3) of corresponding boxes.

    The trade-off factor alpha carries no gradient, as in the paper. The aspect term has its true
    gradient; the paper replaces the denominator `h^2 + w^2` of it by 1, which is meant for boxes
    in [0, 1] and would be far too large a step in pixels.

    Args:
      a: [..., 4], (y1, x1, y2, x2), pixels; the predicted boxes.
      b: [..., 4], same frame; the true boxes.

    Returns:
      [...]: the DIoU less `alpha * v`, v comparing the aspect ratios.
    """
    corners_a, corners_b = split_corners(a), split_corners(b)
    overlap = corner_iou(corners_a, corners_b)
    aspect_difference = _aspect_angle(corners_b) - _aspect_angle(corners_a)
    v = (4.0 / math.pi**2) * tf.square(aspect_difference)
    # 1 - iou + v is 0 only for two equal boxes, where v is 0 too.
    alpha = tf.stop_gradient(v / tf.maximum(1.0 - overlap + v, _TINY_AREA))
    return overlap - corner_distance_penalty(corners_a, corners_b) - alpha * v


def corner_distance_penalty(a: Corners, b: Corners) -> tf.Tensor:
    """Computes squared centre distance over squared enclosing diagonal (DIoU), by broadcasting."""
    center_gap_y = (a[0] + a[2] - b[0] - b[2]) / 2.0
    center_gap_x = (a[1] + a[3] - b[1] - b[3]) / 2.0
    y1, x1, y2, x2 = _enclosing_corners(a, b)
    diagonal = tf.square(y2 - y1) + tf.square(x2 - x1)
    distance = tf.square(center_gap_y) + tf.square(center_gap_x)
    return distance / tf.maximum(diagonal, _TINY_AREA)


def clip_boxes(boxes: tf.Tensor, *, height: float, width: float) -> tf.Tensor:
    """Clips boxes to [0, height] x [0, width].

    Args:
      boxes: [..., 4], (y1, x1, y2, x2), pixels.
      height: of the image, pixels; a number or a tensor that broadcasts against [...].
      width: the same.

    Returns:
      [..., 4]; a box wholly outside becomes an empty one on the border.
    """
    y1, x1, y2, x2 = split_corners(boxes)
    height, width = tf.cast(height, y1.dtype), tf.cast(width, x1.dtype)

    def clip(values: tf.Tensor, limit: tf.Tensor) -> tf.Tensor:
        return tf.minimum(tf.maximum(values, 0.0), limit)

    corners = (clip(y1, height), clip(x1, width), clip(y2, height), clip(x2, width))
    return tf.stack(corners, axis=-1)


def _enclosing_corners(a: Corners, b: Corners) -> Corners:
    low = (tf.minimum(a[0], b[0]), tf.minimum(a[1], b[1]))
    return (*low, tf.maximum(a[2], b[2]), tf.maximum(a[3], b[3]))


def _aspect_angle(corners: Corners) -> tf.Tensor:
    """Returns arctan(width / height), radians, in [0, pi/2]; 0 for an empty box."""
    y1, x1, y2, x2 = corners
    height, width = y2 - y1, x2 - x1
    return tf.atan2(width, tf.maximum(height, _TINY_AREA))
