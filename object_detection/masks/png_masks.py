"""Masks stored as PNG images of the whole picture, as the TF model garden's converter writes them.

They are packed while records are read: Python runs for each such record and decodes every mask of
it, in every epoch. This is for records of others; own sets are converted with packed masks, which
cost nothing here.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import tensorflow as tf

from object_detection.masks.rle import crop_png
from object_detection.records import schema


def packed_from_png(fields: Mapping[str, tf.Tensor], image_size: tf.Tensor) -> tf.Tensor:
    """Returns the packed masks of a record, made from PNG ones if it has no packed ones.

    Args:
      fields: a parsed record, with both fields of masks and the boxes.
      image_size: float32 [2] (height, width), pixels.

    Returns:
      string [n], 1568 bytes each; see `rle.crop_png`.
    """

    def pack(pngs, boxes, size):
        if len(pngs) != len(boxes):
            raise ValueError(
                f"expected one {schema.MASK_PNG} for each box, got {len(pngs)} for {len(boxes)}"
            )
        height, width = (int(side) for side in size)
        boxes = boxes.astype(np.float64) * [height, width, height, width]
        packed = [crop_png(png, box, height=height, width=width) for png, box in zip(pngs, boxes)]
        return np.array(packed, object)

    def from_png():
        boxes = tf.stack([fields[name] for name in schema.CORNERS], axis=-1)
        made = tf.numpy_function(pack, [fields[schema.MASK_PNG], boxes, image_size], tf.string)
        return tf.ensure_shape(made, [None])

    packed = fields[schema.MASK_112]
    is_needed = (tf.size(packed) == 0) & (tf.size(fields[schema.MASK_PNG]) > 0)
    return tf.cond(is_needed, from_png, lambda: packed)
