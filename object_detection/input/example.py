"""The HostExample: what leaves the host for each image, in training and in evaluation alike.

A plain dict of batched tensors:

  image: uint8 [batch, canvas_height, canvas_width, 3], the decoded region at the top left, zeros
    elsewhere; not yet resampled.
  geometry: [batch, GEOMETRY_SIZE], packed `geometry.Geometry`: how pixels and boxes map into the
    network frame, which `preprocess` does on the device.
  boxes: [batch, max_instances, 4], (y1, x1, y2, x2), original pixels, within the image; zeros for
    padding.
  classes: int32 [batch, max_instances], class_id; -1 for padding, which may stand between others.
  is_crowd: bool [batch, max_instances].
  areas: [batch, max_instances], square original pixels; of the mask where the data set has it.
  masks: uint8 [batch, max_instances, MASK_BYTES], bit-packed crop within the box as stored (not
    clipped, not mirrored), see `mask_ops`; all zero where unknown. Only if asked for.
  mixing: bool [batch], whether the device may still mix the image with others. Only in training
    with an end of mixing.
  valid: bool [batch], False for padding examples of the last evaluation batches.
  record_index: int64 [batch], position of the record in the set; -1 for padding examples.
  source_id: string [batch], the data set's image id as text.

Also here: how a record's objects become the fixed number of rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import tensorflow as tf

from object_detection.records.schema import MASK_BYTES

HOST_ONLY = ("source_id",)
"""Fields that cannot go to an accelerator."""


_PADDING = {tf.float32: 0.0, tf.int32: -1, tf.bool: False, tf.string: ""}


COLUMN_PADDING = {
    "boxes_norm": 0.0,
    "category_ids": tf.int64.min,
    "is_crowd": 0,
    "areas": -1.0,
    "masks": "",
}
"""What fills up the columns of records with fewer objects than others, or without the column."""


class ObjectRows(NamedTuple):
    """The objects of a batch in a fixed number of rows, and what was wrong with them."""

    boxes: tf.Tensor  # [batch, max_instances, 4]
    classes: tf.Tensor  # int32 [batch, max_instances]
    is_crowd: tf.Tensor  # bool [batch, max_instances]
    areas: tf.Tensor  # [batch, max_instances]
    masks: tf.Tensor  # uint8 [batch, max_instances, 1568], or 0 in place of 1568
    num_usable: tf.Tensor  # int64 [batch] boxes that asked for a row
    num_unusable: tf.Tensor  # int64 [batch] boxes not finite or without area inside the image
    unknown_category: tf.Tensor  # int64 [batch] a category id without class, or the least int64


def object_rows(
    columns: Mapping[str, tf.Tensor],
    *,
    original_size: tf.Tensor,
    class_of_category: Mapping[int, int],
    max_instances: int,
    drop_crowd: bool,
) -> ObjectRows:
    """Turns the objects of a batch of records into rows of fixed number.

    Boxes are brought to pixels and clipped to the image. Where an image has more usable boxes than
    rows, crowds go first and then the smallest.

    Args:
      columns: of the records, padded with COLUMN_PADDING to their longest in the batch:
        boxes_norm [batch, n, 4], (y1, x1, y2, x2), fractions of the image; category_ids int64
        [batch, m]; is_crowd int64 [batch, k]; areas [batch, l], square pixels, -1 for "as the box";
        and, if asked for, masks string [batch, j], 1568 bytes or none each.
      original_size: [batch, 2] (height, width), pixels.
      class_of_category: the data set's category_id -> class_id.
      max_instances: number of rows.
      drop_crowd: leave crowd regions out, so that they take no rows.
    """
    limits = tf.concat([original_size, original_size], axis=-1)[:, tf.newaxis, :]
    boxes = tf.clip_by_value(columns["boxes_norm"] * limits, 0.0, limits)
    num_columns = tf.shape(boxes)[1]
    category_ids, is_crowd, areas = (
        _with_columns(columns[name], num_columns, COLUMN_PADDING[name])
        for name in ("category_ids", "is_crowd", "areas")
    )
    is_object = category_ids > tf.int64.min
    classes, is_known = _look_up(category_ids, class_of_category)
    is_crowd = is_crowd > 0

    # Asked before clipping, which may turn NaN into a number.
    is_finite = tf.reduce_all(tf.math.is_finite(columns["boxes_norm"]), axis=-1)
    has_area = (boxes[..., 2] > boxes[..., 0]) & (boxes[..., 3] > boxes[..., 1])
    is_sound = is_object & is_finite & has_area
    is_usable = is_sound & ~is_crowd if drop_crowd else is_sound

    box_areas = (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])
    priority = tf.where(is_usable, tf.where(is_crowd, box_areas * 1e-9, box_areas), -1.0)
    rows = (
        tf.where(is_usable[..., tf.newaxis], boxes, 0.0),
        tf.where(is_usable & is_known, classes, -1),
        is_usable & is_crowd,
        tf.where(is_usable, tf.where(areas < 0.0, box_areas, areas), 0.0),
    )
    if "masks" in columns:
        masks = _with_columns(columns["masks"], num_columns, COLUMN_PADDING["masks"])
        rows += (tf.where(is_usable, masks, ""),)
    unknown = tf.where(is_object & ~is_known, category_ids, tf.int64.min)
    fixed = _fixed_rows(rows, priority, max_instances)
    if "masks" in columns:
        masks = tf.io.decode_raw(fixed[4], tf.uint8, fixed_length=MASK_BYTES)
    else:
        masks = tf.zeros(tf.concat([tf.shape(fixed[1]), [0]], axis=0), tf.uint8)
    return ObjectRows(
        *fixed[:4],
        masks=masks,
        num_usable=tf.reduce_sum(tf.cast(is_usable, tf.int64), axis=-1),
        num_unusable=tf.reduce_sum(tf.cast(is_object & ~is_sound, tf.int64), axis=-1),
        unknown_category=tf.reduce_max(unknown, axis=-1),
    )


def _with_columns(values: tf.Tensor, num_columns: tf.Tensor, padding: float) -> tf.Tensor:
    """Pads or cuts [batch, n] to [batch, num_columns]."""
    missing = tf.maximum(num_columns - tf.shape(values)[1], 0)
    return tf.pad(values, [[0, 0], [0, missing]], constant_values=padding)[:, :num_columns]


def _look_up(
    category_ids: tf.Tensor, class_of_category: Mapping[int, int]
) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns (int32 class ids, whether the category has one), both of the argument's shape."""
    known = sorted(class_of_category)
    keys = tf.constant(known, tf.int64)
    values = tf.constant([class_of_category[category] for category in known], tf.int32)
    flat = tf.reshape(category_ids, [-1])
    place = tf.minimum(tf.searchsorted(keys, flat), len(known) - 1)
    shape = tf.shape(category_ids)
    is_known = tf.reshape(tf.equal(tf.gather(keys, place), flat), shape)
    return tf.reshape(tf.gather(values, place), shape), is_known


def _fixed_rows(
    columns: tuple[tf.Tensor, ...], priority: tf.Tensor, max_instances: int
) -> list[tf.Tensor]:
    """Pads (classes with -1) or cuts [batch, n, ...] columns to max_instances rows, in order."""

    def padded():
        after = [0, max_instances - tf.shape(priority)[1]]
        return [
            tf.pad(
                column,
                [[0, 0], after, *[[0, 0]] * (column.shape.rank - 2)],
                constant_values=_PADDING[column.dtype],
            )
            for column in columns
        ]

    def cut():
        kept = tf.sort(tf.math.top_k(priority, max_instances).indices, axis=-1)
        return [tf.gather(column, kept, batch_dims=1) for column in columns]

    rows = tf.cond(tf.shape(priority)[1] > max_instances, cut, padded)
    for row, column in zip(rows, columns):
        row.set_shape([priority.shape[0], max_instances, *column.shape[2:]])
    return rows
