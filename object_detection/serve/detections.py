"""The forms in which detections leave a model: with masks or without."""

from typing import NamedTuple

import tensorflow as tf


class Detections(NamedTuple):
    """Detections of a batch, best first, padded to K rows per image.

    Attributes:
      boxes: [B, K, 4] float32, (y1, x1, y2, x2), pixels of the original image; 0 in padding.
      scores: [B, K] float32 in [0, 1], descending; 0 in padding.
      classes: [B, K] int32, contiguous class_id of the model; -1 in padding.
      num_valid: [B] int32, rows before the padding.
    """

    boxes: tf.Tensor
    scores: tf.Tensor
    classes: tf.Tensor
    num_valid: tf.Tensor


class MaskDetections(NamedTuple):
    """Detections with masks: the fields of `Detections` and one more.

    masks: [B, K, s, s] float32, probabilities within each box, see `mask_paste`; 0 in padding.
    """

    boxes: tf.Tensor
    scores: tf.Tensor
    classes: tf.Tensor
    num_valid: tf.Tensor
    masks: tf.Tensor
