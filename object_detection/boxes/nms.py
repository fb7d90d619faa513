"""Non-maximum suppression of whole batches as one loop of fixed shape.

Greedy suppression per class, then the best over all classes, is the same as one greedy pass over
all classes in which boxes of different classes do not touch each other: a class's picks have
falling scores (suppression only lowers what remains), so the pass picks from every class in that
class's own order. The pass needs `max_output_size` rounds of work on [B, N], whatever the number
of classes. The number of rounds is fixed on purpose: a compiled counted loop runs on a GPU
without asking the host after each round, which costs more than the rounds an early end would save.

Where N and the output are both in the thousands (region proposals), reduce N by top-k first.
"""

from __future__ import annotations

import tensorflow as tf

from object_detection.boxes.box_ops import (
    Corners,
    at_least_float32,
    corner_distance_penalty,
    corner_iou,
    split_corners,
)

# Overlap from which a box is suppressed when none is given (defaults of the reference).
DEFAULT_IOU_THRESHOLDS = {"hard": 0.5, "linear": 0.3, "gaussian": None, "diou": 0.5}


def batched_nms(
    boxes: tf.Tensor,
    scores: tf.Tensor,
    classes: tf.Tensor,
    *,
    max_output_size: int,
    method: str,
    iou_threshold: float | None,
    sigma: float,
    score_threshold: float,
    class_agnostic: bool = False,
    pixel_offset: float = 0.0,
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor]:
    """Picks boxes greedily by score, lowering or removing those that overlap a picked one.

    `hard` removes what overlaps by more than the threshold, `diou` does so by DIoU (arXiv
    1911.08287, section 3.4), `linear` and `gaussian` multiply the score by `1 - iou` above the
    threshold or by `exp(-iou^2 / sigma)` (Soft-NMS, arXiv 1704.04503, eq. 2 and 3). Of equal scores
    the first candidate is picked.

    Args:
      boxes: [B, N, 4], (y1, x1, y2, x2), pixels.
      scores: [B, N]; not negative for the two soft methods.
      classes: [B, N] int32; negative for padding, which is never picked.
      max_output_size: K, the number of rounds.
      method: 'hard', 'linear', 'gaussian' or 'diou'.
      iou_threshold: overlap that suppresses; none takes the method's default. Not used by
        'gaussian'.
      sigma: width of 'gaussian'.
      score_threshold: candidates are dropped when their score is, or falls, below this; not
        negative. (The reference lets the best box of each class pass whatever its score.)
      class_agnostic: whether boxes of different classes suppress each other.
      pixel_offset: added to lengths in the IoU; 1.0 is the convention of the reference.

    Returns:
      boxes [B, K, 4], scores [B, K] decayed and descending, classes [B, K] int32 and num_valid [B]
      int32; rows from num_valid on are zero boxes of score 0 and class -1. Scores have no gradient.

    Raises:
      ValueError: if the method is unknown.
    """
    if method not in DEFAULT_IOU_THRESHOLDS:
        raise ValueError(
            f"unknown NMS method {method!r}, expected one of {sorted(DEFAULT_IOU_THRESHOLDS)}"
        )
    if iou_threshold is None:
        iou_threshold = DEFAULT_IOU_THRESHOLDS[method]
    corners = split_corners(tf.stop_gradient(boxes))
    scores = at_least_float32(tf.stop_gradient(scores))
    batch_size, num_candidates = tf.shape(scores)[0], tf.shape(scores)[1]
    # Written so that a NaN score counts as dropped.
    # Finite, for -inf * 0 is NaN, which an exported program may keep where this one drops it.
    dropped = tf.constant(-1e30, scores.dtype)
    remaining = tf.where((scores >= score_threshold) & (classes >= 0), scores, dropped)

    def pick(
        turn: tf.Tensor, remaining: tf.Tensor, indices: tf.Tensor, picked_scores: tf.Tensor
    ) -> tuple[tf.Tensor, ...]:
        best = tf.argmax(remaining, axis=-1, output_type=tf.int32)[:, tf.newaxis]
        best_score = tf.gather(remaining, best, batch_dims=1)
        best_corners = [tf.gather(corner, best, batch_dims=1) for corner in corners]
        factors = _score_factors(
            best_corners,
            corners,
            method=method,
            iou_threshold=iou_threshold,
            sigma=sigma,
            pixel_offset=pixel_offset,
        )
        if not class_agnostic:
            factors = tf.where(classes == tf.gather(classes, best, batch_dims=1), factors, 1.0)
        lowered = remaining * factors
        stays = (factors > 0.0) & (lowered >= score_threshold) & (tf.range(num_candidates) != best)
        remaining = tf.where(stays, lowered, dropped)
        is_turn = tf.range(max_output_size) == turn
        indices = tf.where(is_turn, tf.where(best_score > dropped, best, -1), indices)
        return turn + 1, remaining, indices, tf.where(is_turn, best_score, picked_scores)

    shape = [batch_size, max_output_size]
    _, _, indices, picked_scores = tf.while_loop(
        lambda turn, *_: turn < max_output_size,
        pick,
        (tf.constant(0), remaining, tf.fill(shape, -1), tf.fill(shape, dropped)),
    )
    is_valid = indices >= 0
    rows = tf.maximum(indices, 0)
    picked_boxes = tf.gather(at_least_float32(boxes), rows, batch_dims=1)
    return (
        tf.where(is_valid[..., tf.newaxis], picked_boxes, 0.0),
        tf.where(is_valid, picked_scores, 0.0),
        tf.where(is_valid, tf.gather(classes, rows, batch_dims=1), -1),
        tf.reduce_sum(tf.cast(is_valid, tf.int32), axis=-1),
    )


def with_best_refused(
    scores: tf.Tensor, num_valid: tf.Tensor, candidate_scores: tf.Tensor
) -> tf.Tensor:
    """Puts the best score below the threshold where an image has no detection.

    Such a score stands in a slot that `num_valid` does not count; it tells how far from a detection
    the model was.

    Args:
      scores: [B, K] of the detections, 0 for padding.
      num_valid: int32 [B].
      candidate_scores: [B, N] before the threshold; NaN and what is below 0 count as 0.

    Returns:
      [B, K].
    """
    candidate_scores = at_least_float32(candidate_scores)
    candidate_scores = tf.where(candidate_scores >= 0.0, candidate_scores, 0.0)
    best = tf.reduce_max(candidate_scores, axis=-1, keepdims=True)
    is_first = tf.range(tf.shape(scores)[1])[tf.newaxis] == 0
    return tf.where(is_first & (num_valid == 0)[:, tf.newaxis], best, scores)


def _score_factors(
    picked: Corners,
    others: Corners,
    *,
    method: str,
    iou_threshold: float | None,
    sigma: float,
    pixel_offset: float,
) -> tf.Tensor:
    """Computes what the scores of other boxes are multiplied by: [B, N] in [0, 1], 0 removes."""
    overlaps = corner_iou(picked, others, pixel_offset=pixel_offset)
    if method == "gaussian":
        return tf.exp(-tf.square(overlaps) / sigma)
    if method == "linear":
        return tf.where(overlaps > iou_threshold, 1.0 - overlaps, 1.0)
    if method == "diou":
        overlaps -= corner_distance_penalty(picked, others)
    return tf.where(overlaps > iou_threshold, 0.0, tf.ones_like(overlaps))
