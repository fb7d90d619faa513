"""Assignment of ground-truth boxes to anchors by overlap (Faster R-CNN, section 3.1.2).

One function, whole batches, no gradient. The IoU of every box with every anchor (100 x 49,104 per
image for EfficientDet-D0) is worked through in chunks of a few boxes and never kept: the loop
carries three values per anchor, and it ends after the last real box of the batch, so that padding
costs nothing.
"""

from typing import NamedTuple

import tensorflow as tf

from object_detection.boxes.box_ops import corner_iou, split_corners

POSITIVE = 1
NEGATIVE = 0
IGNORED = -1

# Boxes per round of the loop: few enough to be cheap when images hold 5 to 10 objects, many enough
# that an accelerator has work in each round. 4, 8 and 16 cost about the same per box on a CPU.
_BOXES_PER_ROUND = 8

_UNFORCED = -1

# Overlaps of one box closer to its best than this share of it are ties: equal but for rounding.
_TIE_TOLERANCE = 1e-6


class Matches(NamedTuple):
    """What each anchor stands for.

    Attributes:
      gt_index: [B, A] int32, the box an anchor overlaps most, or that forces it. Always a valid
        index into the boxes; it means something only where the anchor is positive.
      labels: [B, A] int32, 1 positive, 0 negative, -1 ignored.
    """

    gt_index: tf.Tensor
    labels: tf.Tensor


def match_anchors(
    anchors: tf.Tensor,
    gt_boxes: tf.Tensor,
    gt_valid: tf.Tensor,
    *,
    positive_threshold: float,
    negative_threshold: float,
    force_ties: bool = False,
) -> Matches:
    """Matches every anchor to at most one box.

    An anchor takes the box it overlaps most, the first one on ties. It is positive from
    `positive_threshold` of IoU on, negative below `negative_threshold`, ignored in between. Each
    box also takes the anchor that overlaps it most (the first on ties) whatever the IoU, which
    overrides the former; an anchor wanted by several boxes goes to the first of them. A box that
    no anchor overlaps forces nothing. With `force_ties` a box makes all anchors
    positive that share its largest IoU, and each of them keeps the box that it overlaps most
    (Detectron; a small box inside dozens of anchors has as many positives).

    Args:
      anchors: [A, 4], (y1, x1, y2, x2), pixels.
      gt_boxes: [B, M, 4], same order and frame, M at least 1.
      gt_valid: [B, M] bool, False for padding. Boxes without area, or with a coordinate that is
        not a number, are treated as padding.
      positive_threshold: least IoU of a positive anchor, above 0.
      negative_threshold: IoU below which an anchor is background.
      force_ties: whether a box makes all its best anchors positive.

    Returns:
      `Matches` for all B * A anchors. Without boxes all are negative.

    Raises:
      ValueError: if the thresholds are out of order.
    """
    if not 0.0 < positive_threshold <= 1.0 or not 0.0 <= negative_threshold <= positive_threshold:
        raise ValueError(
            "expected 0 <= negative_threshold <= positive_threshold <= 1 and positive_threshold "
            f"> 0, got negative_threshold={negative_threshold}, "
            f"positive_threshold={positive_threshold}"
        )
    anchor_corners = split_corners(tf.stop_gradient(anchors))
    box_corners, num_rounds = _arrange_in_rounds(tf.stop_gradient(gt_boxes), gt_valid)
    batch_size, num_anchors = tf.shape(gt_boxes)[0], tf.shape(anchors)[0]

    def match_round(
        index: tf.Tensor, best_iou: tf.Tensor, best_box: tf.Tensor, forcing_box: tf.Tensor
    ) -> tuple[tf.Tensor, ...]:
        # [B, _BOXES_PER_ROUND, 1] each, against the anchors' [A].
        boxes = [corner[index][..., tf.newaxis] for corner in box_corners]
        if force_ties:
            highest = tf.reduce_max(corner_iou(boxes, anchor_corners), axis=-1)
        else:
            wanted = _best_anchors(corner_iou(boxes, anchor_corners))
        # One box after another, elementwise over [B, A]: exact tie order, and no reduction.
        for slot in range(_BOXES_PER_ROUND):
            box = index * _BOXES_PER_ROUND + slot
            overlaps = corner_iou([corner[:, slot] for corner in boxes], anchor_corners)
            is_better = overlaps > best_iou
            best_iou = tf.where(is_better, overlaps, best_iou)
            best_box = tf.where(is_better, box, best_box)
            if force_ties:
                highest_here = highest[:, slot, tf.newaxis]
                is_tied = overlaps >= highest_here * (1.0 - _TIE_TOLERANCE)
                forcing_box = tf.where(is_tied & (highest_here > 0.0), box, forcing_box)
            else:
                is_wanted = tf.range(num_anchors) == wanted[:, slot, tf.newaxis]
                is_first = forcing_box == _UNFORCED
                forcing_box = tf.where(is_wanted & is_first, box, forcing_box)
        return index + 1, best_iou, best_box, forcing_box

    shape = [batch_size, num_anchors]
    _, best_iou, best_box, forcing_box = tf.while_loop(
        lambda index, *_: index < num_rounds,
        match_round,
        (
            tf.constant(0),
            tf.zeros(shape, anchor_corners[0].dtype),
            tf.zeros(shape, tf.int32),
            tf.fill(shape, _UNFORCED),
        ),
    )
    is_forced = forcing_box != _UNFORCED
    labels = tf.where(best_iou < negative_threshold, NEGATIVE, IGNORED)
    labels = tf.where((best_iou >= positive_threshold) | is_forced, POSITIVE, labels)
    gt_index = best_box if force_ties else tf.where(is_forced, forcing_box, best_box)
    return Matches(gt_index=gt_index, labels=labels)


def _arrange_in_rounds(
    gt_boxes: tf.Tensor, gt_valid: tf.Tensor
) -> tuple[list[tf.Tensor], tf.Tensor]:
    """Cuts the boxes into rounds.

    Returns:
      Four corner tensors [rounds, B, _BOXES_PER_ROUND], all zero (which overlaps nothing) for
      padding, and the scalar number of rounds up to the last valid box of the batch.
    """
    batch_size, max_boxes = tf.shape(gt_boxes)[0], tf.shape(gt_boxes)[1]
    y1, x1, y2, x2 = split_corners(gt_boxes)
    # Comparisons with NaN are False.
    is_real = gt_valid & (y2 > y1) & (x2 > x1)
    ends = tf.where(is_real, tf.range(1, max_boxes + 1), 0)
    num_rounds = -(-tf.reduce_max(ends) // _BOXES_PER_ROUND)
    padding = -max_boxes % _BOXES_PER_ROUND

    def arrange(corner: tf.Tensor) -> tf.Tensor:
        corner = tf.pad(tf.where(is_real, corner, 0.0), [[0, 0], [0, padding]])
        return tf.transpose(tf.reshape(corner, [batch_size, -1, _BOXES_PER_ROUND]), [1, 0, 2])

    return [arrange(corner) for corner in (y1, x1, y2, x2)], num_rounds


def _best_anchors(overlaps: tf.Tensor) -> tf.Tensor:
    """Finds the anchor that overlaps each box most.

    The bits of a non-negative float order like the float, so one integer maximum over (IoU,
    reversed index) gives the first best anchor. It costs less than an argmax on a CPU and, unlike a
    comparison of each IoU with the maximum, cannot fail when the compiler computes the IoU twice
    with different rounding.

    Args:
      overlaps: [..., A] IoU, at least 0.

    Returns:
      [...] int32; -1 where the largest overlap is 0.
    """
    num_anchors = tf.shape(overlaps)[-1]
    bits = tf.cast(tf.bitcast(tf.cast(overlaps, tf.float32), tf.int32), tf.int64)
    shift = tf.constant(32, tf.int64)
    reversed_index = tf.cast(tf.range(num_anchors - 1, -1, -1), tf.int64)
    best = tf.reduce_max(tf.bitwise.left_shift(bits, shift) + reversed_index, axis=-1)
    best_bits = tf.bitwise.right_shift(best, shift)
    best_index = num_anchors - 1 - tf.cast(best - tf.bitwise.left_shift(best_bits, shift), tf.int32)
    return tf.where(best_bits > 0, best_index, -1)
