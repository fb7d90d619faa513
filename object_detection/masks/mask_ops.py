"""Instance masks on the device: stored crops unpacked and resampled into boxes.

A stored crop is the mask inside its instance's box, 112 x 112 cells as bits (`rle`). It
belongs to the whole box: where training crops or clips the image, the crop's frame is the box moved
with the pixels but not clipped. Pasting predictions into images is the host's work, see
`mask_paste`.
"""

from __future__ import annotations

import tensorflow as tf

from object_detection.boxes.box_ops import split_corners
from object_detection.records.schema import MASK_SIZE

_BITS = 8
# Least height and width of a crop's frame, pixels; where it matters the mask is of no instance.
_MIN_SIZE = 1e-3


def unpack_masks(packed: tf.Tensor) -> tf.Tensor:
    """Unpacks bit-packed crops.

    Args:
      packed: uint8 [..., 1568], row by row, most significant bit first.

    Returns:
      [..., 112, 112] float32, 0 or 1.
    """
    shifts = tf.cast(tf.range(_BITS - 1, -1, -1), tf.uint8)
    bits = tf.bitwise.right_shift(packed[..., tf.newaxis], shifts) & tf.constant(1, tf.uint8)
    shape = tf.concat([tf.shape(packed)[:-1], [MASK_SIZE, MASK_SIZE]], axis=0)
    masks = tf.reshape(tf.cast(bits, tf.float32), shape)
    return tf.ensure_shape(masks, [*packed.shape[:-1], MASK_SIZE, MASK_SIZE])


def is_mask_known(packed: tf.Tensor) -> tf.Tensor:
    """Tells which instances have a mask: uint8 [..., 1568] gives bool [...].

    A crop without a single bit means that the mask is unknown, not that it is empty.
    """
    return tf.reduce_any(packed > 0, axis=-1)


def crop_masks(
    masks: tf.Tensor,
    frames: tf.Tensor,
    boxes: tf.Tensor,
    *,
    output_size: int,
    is_mirrored: tf.Tensor | None = None,
) -> tf.Tensor:
    """Resamples masks, given within frames, into boxes.

    Bilinear samples at the middles of the output's cells, between the middles of the mask's cells;
    0 outside the frame. Done as two products with interpolation weights, for each box of
    [o, s] x [s, s] x [s, o]: 0.44 million multiplications for o = 28, s = 112.

    Args:
      masks: [..., s, s], 0..1.
      frames: [..., 4], (y1, x1, y2, x2), where each mask lies, pixels.
      boxes: [..., 4], same order and frame of reference: what to cover.
      output_size: o.
      is_mirrored: bool [...], whether the image, and with it frames and boxes, was mirrored left
        to right while the mask was not; none: nowhere.

    Returns:
      [..., o, o] float32, 0..1.
    """
    size = masks.shape[-1]
    frame_y1, frame_x1, frame_y2, frame_x2 = split_corners(frames)
    y1, x1, y2, x2 = split_corners(boxes)
    positions_y = _positions((frame_y1, frame_y2), (y1, y2), size=size, count=output_size)
    positions_x = _positions((frame_x1, frame_x2), (x1, x2), size=size, count=output_size)
    if is_mirrored is not None:
        positions_x = tf.where(is_mirrored[..., tf.newaxis], size - 1.0 - positions_x, positions_x)
    rows, columns = (_weights(positions, size) for positions in (positions_y, positions_x))
    resampled = tf.linalg.matmul(rows, tf.cast(masks, tf.float32))
    return tf.linalg.matmul(resampled, columns, transpose_b=True)


def mask_targets(
    packed: tf.Tensor,
    frames: tf.Tensor,
    boxes: tf.Tensor,
    *,
    output_size: int,
    is_mirrored: tf.Tensor | None = None,
) -> tf.Tensor:
    """Makes the binary mask that the mask head should answer in each box.

    The arguments are those of `crop_masks`, but `packed` uint8 [..., 1568] for the masks.

    Returns:
      [..., o, o] float32, 1 where the resampled mask is at least 1/2, else 0; without gradient.
    """
    masks = crop_masks(
        unpack_masks(packed), frames, boxes, output_size=output_size, is_mirrored=is_mirrored
    )
    return tf.stop_gradient(tf.cast(masks >= 0.5, tf.float32))


def _positions(
    frame: tuple[tf.Tensor, tf.Tensor],
    box: tuple[tf.Tensor, tf.Tensor],
    *,
    size: int,
    count: int,
) -> tf.Tensor:
    """Returns [..., count], the middles of a box's cells along one axis, in mask cells.

    Position i is the middle of the mask's cell i.
    """
    middles = (tf.range(count, dtype=tf.float32) + 0.5) / count
    low, high = (side[..., tf.newaxis] for side in box)
    frame_low, frame_high = (side[..., tf.newaxis] for side in frame)
    length = tf.maximum(frame_high - frame_low, _MIN_SIZE)
    return (low + middles * (high - low) - frame_low) / length * size - 0.5


def _weights(positions: tf.Tensor, size: int) -> tf.Tensor:
    """Returns [..., count, size], the weight of each mask cell for each position."""
    cells = tf.range(size, dtype=tf.float32)
    return tf.maximum(1.0 - tf.abs(positions[..., tf.newaxis] - cells), 0.0)
