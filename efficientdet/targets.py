"""What the heads should answer at each anchor, built inside the compiled step.

The host sends padded boxes only; matching and coding run on the device, in float32.
"""

from typing import NamedTuple

import tensorflow as tf

from object_detection.boxes.box_coder import encode_boxes
from object_detection.boxes.matcher import POSITIVE, match_anchors

IGNORED_CLASS = -1
"""Class of the anchors of images that only fill up a batch."""
_THRESHOLD = 0.5


class Targets(NamedTuple):
    """Targets of a batch.

    Attributes:
      class_targets: [B, A] int32, class_id of positive anchors, num_classes for background, -1
        where the class loss is to ignore the anchor.
      box_targets: [B, A, 4], (ty, tx, th, tw); 0 where not positive.
      positives: [B, A] bool, anchors matched to a box.
      num_positives: [B].
    """

    class_targets: tf.Tensor
    box_targets: tf.Tensor
    positives: tf.Tensor
    num_positives: tf.Tensor


def assign_targets(
    anchors: tf.Tensor,
    gt_boxes: tf.Tensor,
    gt_classes: tf.Tensor,
    *,
    num_classes: int,
) -> Targets:
    """Assigns ground truth to anchors (RetinaNet, arXiv 1708.02002, section 4, with one threshold).

    EfficientDet as published ignores no anchor: both thresholds are 0.5, and each box also takes
    its best anchor.

    Args:
      anchors: [A, 4], (y1, x1, y2, x2), network pixels.
      gt_boxes: [B, M, 4], same order and frame.
      gt_classes: [B, M] int32, class_id; -1 for padding and for boxes to leave out.
      num_classes: of the foreground; its value marks background.

    Returns:
      `Targets`, without gradient. An image without boxes is all background.
    """
    gt_classes = tf.cast(gt_classes, tf.int32)
    matches = match_anchors(
        anchors,
        gt_boxes,
        gt_classes >= 0,
        positive_threshold=_THRESHOLD,
        negative_threshold=_THRESHOLD,
    )
    positives = matches.labels == POSITIVE
    matched_classes = tf.gather(gt_classes, matches.gt_index, batch_dims=1)
    class_targets = tf.where(positives, matched_classes, num_classes)
    matched_boxes = tf.gather(tf.stop_gradient(gt_boxes), matches.gt_index, batch_dims=1)
    box_targets = encode_boxes(matched_boxes, anchors)
    return Targets(
        class_targets=class_targets,
        box_targets=tf.where(positives[..., tf.newaxis], box_targets, 0.0),
        positives=positives,
        num_positives=tf.reduce_sum(tf.cast(positives, tf.float32), axis=-1),
    )
