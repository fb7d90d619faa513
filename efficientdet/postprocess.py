"""From the heads' outputs to detections in the original image, on the device, in fixed shapes.

The candidates are the best (anchor, class) pairs by logit. Sorting all pairs (4.4 million per image
for D0) is the costly way to them: here anchors are chosen by their best class, then pairs among
theirs (see `object_detection.boxes.top_k` for why that is exact).
"""

from __future__ import annotations

from collections.abc import Sequence

import tensorflow as tf

from efficientdet.settings import NmsConfig
from object_detection.boxes.box_coder import anchor_rows, decode_boxes
from object_detection.boxes.box_ops import at_least_float32
from object_detection.boxes.nms import batched_nms, with_best_refused
from object_detection.boxes.top_k import exact_top_k
from object_detection.input import geometry as geometry_lib
from object_detection.serve.detections import Detections


def postprocess(
    class_logits: Sequence[tf.Tensor],
    box_deltas: Sequence[tf.Tensor],
    anchors: tf.Tensor,
    geometry: tf.Tensor,
    *,
    num_classes: int,
    network_size: tuple[int, int],
    nms: NmsConfig,
) -> Detections:
    """Selects, decodes and suppresses boxes, and moves them to the original image.

    Suppression happens in network pixels, before clipping. Scores and boxes are computed in
    float32 whatever the outputs' dtype.

    Args:
      class_logits: per level [B, h, w, anchors_per_position * num_classes], any float dtype.
      box_deltas: per level [B, h, w, anchors_per_position * 4], (ty, tx, th, tw).
      anchors: [A, 4], (y1, x1, y2, x2), network pixels, in the order of the levels.
      geometry: [B, GEOMETRY_SIZE], packed as in HostExample.
      num_classes: of the foreground.
      network_size: (height, width) of the network input, pixels.
      nms: what enters the suppression, how it works and what it leaves. With 0 `max_nms_inputs`
        every anchor enters with its best class.
    """
    level_logits = anchor_rows(class_logits, num_classes)
    deltas = tf.concat(anchor_rows(box_deltas, 4), axis=1)
    if nms.max_nms_inputs:
        logits, classes, anchor_index = select_candidates(
            level_logits, max_candidates=nms.max_nms_inputs
        )
        boxes = decode_boxes(
            tf.gather(deltas, anchor_index, batch_dims=1), tf.gather(anchors, anchor_index)
        )
    else:
        logits = _best_logits(level_logits)
        best = [tf.argmax(rows, axis=-1, output_type=tf.int32) for rows in level_logits]
        classes = tf.concat(best, axis=1)
        boxes = decode_boxes(deltas, anchors)
    boxes, scores, classes, num_valid = batched_nms(
        boxes,
        tf.sigmoid(logits),
        classes,
        max_output_size=nms.max_output_size,
        method=nms.method,
        iou_threshold=nms.iou_thresh,
        sigma=0.5 if nms.sigma is None else nms.sigma,
        score_threshold=nms.least_score,
        class_agnostic=nms.class_agnostic,
        pixel_offset=nms.pixel_offset,
    )
    scores = with_best_refused(scores, num_valid, tf.sigmoid(logits))
    places = geometry_lib.unpack(geometry)
    boxes = geometry_lib.network_to_original(boxes, places, network_width=network_size[1])
    if nms.clip_boxes:
        boxes = geometry_lib.clip_to_original(boxes, places)
    boxes = tf.where((classes >= 0)[..., tf.newaxis], boxes, 0.0)
    return Detections(boxes=boxes, scores=scores, classes=classes, num_valid=num_valid)


def decode_all(
    class_logits: Sequence[tf.Tensor],
    box_deltas: Sequence[tf.Tensor],
    anchors: tf.Tensor,
    *,
    num_classes: int,
) -> dict[str, tf.Tensor]:
    """Decodes every anchor and suppresses none; arguments as of `postprocess`.

    Returns:
      boxes [B, A, 4], (y1, x1, y2, x2), network pixels; scores [B, A, num_classes].
    """
    logits = tf.concat(anchor_rows(class_logits, num_classes), axis=1)
    deltas = tf.concat(anchor_rows(box_deltas, 4), axis=1)
    return {
        "boxes": decode_boxes(deltas, anchors),
        "scores": tf.sigmoid(at_least_float32(logits)),
    }


def select_candidates(
    level_logits: Sequence[tf.Tensor], *, max_candidates: int
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Finds the (anchor, class) pairs of highest logit.

    Args:
      level_logits: per level [B, n, C], any float dtype.
      max_candidates: pairs wanted.

    Returns:
      (logits, class_ids, anchor_index), each [B, k], best first, float32 and int32, with k the
      smaller of `max_candidates` and the number of pairs. The anchor index runs over all levels.
    """
    num_anchors = sum(rows.shape[1] for rows in level_logits)
    num_classes = level_logits[0].shape[2]
    _, best_anchors = tf.math.top_k(_best_logits(level_logits), min(max_candidates, num_anchors))
    # XLA reads the chosen rows through this concatenation; it would write all of it if the
    # maximum above were taken from it as well (100 of 150 ms at batch 4 on a CPU).
    rows = tf.gather(tf.concat(level_logits, axis=1), best_anchors, batch_dims=1)
    num_pairs = rows.shape[1] * num_classes
    pairs = tf.reshape(at_least_float32(rows), [-1, num_pairs])
    values, pair_index = exact_top_k(pairs, min(max_candidates, num_pairs))
    anchor_index = tf.gather(best_anchors, pair_index // num_classes, batch_dims=1)
    return values, pair_index % num_classes, anchor_index


def _best_logits(level_logits: Sequence[tf.Tensor]) -> tf.Tensor:
    """Takes the highest logit of each anchor: [B, A] float32. A maximum is exact in any dtype."""
    best = tf.concat([tf.reduce_max(rows, axis=-1) for rows in level_logits], axis=1)
    return at_least_float32(best)
