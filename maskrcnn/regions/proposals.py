"""From the RPN's outputs to region proposals, on the device, in fixed shapes.

Per level: the best anchors by logit, decoded, clipped, suppressed; then the best of all levels for
each image (Faster R-CNN, arXiv 1506.01497, section 3.3; FPN, arXiv 1612.03144, section 4.1). All
levels of all images are suppressed at once.

The reference for PyTorch chooses its training proposals among all images of a rank together, so
that one image may starve another and results depend on the batch; here each image has its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import tensorflow as tf

from maskrcnn.settings import MaskRcnnConfig
from object_detection.boxes.box_coder import decode_boxes
from object_detection.boxes.box_ops import at_least_float32, clip_boxes
from object_detection.boxes.large_nms import suppress_sorted
from object_detection.boxes.top_k import exact_top_k

# Stands for logits that are not numbers; finite, so that sorting stays exact.
_WORST = -1e30


class Proposals(NamedTuple):
    """Boxes that may hold an object, best first, padded to K.

    Attributes:
      boxes: [B, K, 4], (y1, x1, y2, x2), network pixels; 0 in padding.
      scores: [B, K] in [0, 1], descending; 0 in padding.
      is_valid: [B, K] bool, False for padding.
    """

    boxes: tf.Tensor
    scores: tf.Tensor
    is_valid: tf.Tensor


class _Candidates(NamedTuple):
    """Decoded boxes of one level, best first: [B, k, 4], [B, k] logits, [B, k] bool."""

    boxes: tf.Tensor
    logits: tf.Tensor
    is_candidate: tf.Tensor


def propose_regions(
    rpn_logits: Sequence[tf.Tensor],
    rpn_deltas: Sequence[tf.Tensor],
    anchors: tf.Tensor,
    image_sizes: tf.Tensor,
    *,
    config: MaskRcnnConfig,
    training: bool,
) -> Proposals:
    """Chooses proposals. Everything is float32 whatever the outputs' dtype; no gradient.

    Boxes without area are always left out. At most as many boxes leave a level as an image has in
    all.

    Args:
      rpn_logits: per level [B, h, w, anchors_per_position], any float dtype.
      rpn_deltas: per level [B, h, w, anchors_per_position * 4], (ty, tx, th, tw).
      anchors: [A, 4], (y1, x1, y2, x2), network pixels, in the order of the levels.
      image_sizes: [B, 2] (height, width) to which boxes are clipped, network pixels: the part of
        the network's input that is image.
      config: `rpn` says how many and which, `model` how boxes are coded and compared.
      training: whether the counts and the threshold of training hold.
    """
    rpn, model = config.rpn, config.model
    if training:
        before, after = rpn.train_rpn_pre_nms_topn, rpn.train_rpn_post_nms_topn
        of_level, threshold = rpn.train_rpn_level_topn, rpn.train_rpn_nms_threshold
    else:
        before, after = rpn.test_rpn_pre_nms_topn, rpn.test_rpn_post_nms_topn
        of_level, threshold = rpn.test_rpn_level_topn, rpn.test_rpn_nms_thresh
    of_level = min(of_level or after, after)
    candidates, start = [], 0
    for logits, deltas in zip(rpn_logits, rpn_deltas):
        _, height, width, per_position = logits.shape
        end = start + height * width * per_position
        level = _decode_best(
            tf.reshape(tf.stop_gradient(logits), [-1, end - start]),
            tf.reshape(tf.stop_gradient(deltas), [-1, end - start, 4]),
            anchors[start:end],
            image_sizes,
            count=min(before, end - start),
            min_size=rpn.rpn_min_size,
            coding_offset=model.coding_offset,
        )
        candidates.append(level)
        start = end
    most = max(level.logits.shape[1] for level in candidates)
    boxes, logits, is_candidate = (
        tf.concat([_pad_columns(field, most) for field in fields], axis=1)
        for fields in zip(*candidates)
    )
    # One row of suppression per level and image: [B * levels, most].
    kept = suppress_sorted(
        tf.reshape(boxes, [-1, most, 4]),
        tf.reshape(is_candidate, [-1, most]),
        iou_threshold=threshold,
        max_kept=of_level,
        pixel_offset=model.iou_offset,
    )
    order = tf.cumsum(tf.cast(kept, tf.int32), axis=-1)
    kept = tf.reshape(kept & (order <= of_level), tf.shape(logits))
    return _best_of_levels(boxes, logits, kept, count=after)


def _decode_best(
    logits: tf.Tensor,
    deltas: tf.Tensor,
    anchors: tf.Tensor,
    image_sizes: tf.Tensor,
    *,
    count: int,
    min_size: float,
    coding_offset: float,
) -> _Candidates:
    """Decodes the best anchors of one level: [B, n], [B, n, 4], [n, 4], [B, 2]."""
    logits = at_least_float32(logits)
    logits = tf.where(tf.math.is_finite(logits), logits, _WORST)
    top_logits, index = exact_top_k(logits, count)
    boxes = decode_boxes(
        tf.gather(deltas, index, batch_dims=1),
        tf.gather(anchors, index),
        pixel_offset=coding_offset,
    )
    is_finite = tf.reduce_all(tf.math.is_finite(boxes), axis=-1)
    height, width = (image_sizes[:, axis, tf.newaxis] - coding_offset for axis in (0, 1))
    boxes = tf.where(is_finite[..., tf.newaxis], boxes, 0.0)
    boxes = clip_boxes(boxes, height=height, width=width)
    sides = boxes[..., 2:] - boxes[..., :2] + coding_offset
    shortest = tf.reduce_min(sides, axis=-1)
    is_candidate = is_finite & (top_logits > _WORST) & (shortest >= min_size) & (shortest > 0.0)
    return _Candidates(boxes, top_logits, is_candidate)


def _best_of_levels(
    boxes: tf.Tensor, logits: tf.Tensor, kept: tf.Tensor, *, count: int
) -> Proposals:
    """Takes the best kept boxes of each image; [B, n, 4], [B, n], [B, n]."""
    missing = max(count - logits.shape[1], 0)
    keys = tf.pad(tf.where(kept, logits, _WORST), [[0, 0], [0, missing]], constant_values=_WORST)
    top_logits, index = tf.math.top_k(keys, count)
    is_valid = top_logits > _WORST
    chosen = tf.gather(boxes, tf.minimum(index, logits.shape[1] - 1), batch_dims=1)
    return Proposals(
        boxes=tf.where(is_valid[..., tf.newaxis], chosen, 0.0),
        scores=tf.sigmoid(top_logits),
        is_valid=is_valid,
    )


def _pad_columns(values: tf.Tensor, columns: int) -> tf.Tensor:
    """Pads [B, n, ...] to [B, columns, ...] with zeros, which are no candidates."""
    missing = [[0, 0], [0, columns - values.shape[1]], *[[0, 0]] * (values.shape.rank - 2)]
    if values.dtype == tf.bool:  # TensorFlow Lite pads numbers only
        return tf.pad(tf.cast(values, tf.int32), missing) > 0
    return tf.pad(values, missing)
