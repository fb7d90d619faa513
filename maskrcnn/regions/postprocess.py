"""From the heads' outputs to detections in the original image, on the device, in fixed shapes.

Two steps, for the mask head runs in between, on the boxes found: `detect_boxes` in network pixels,
`to_original` with the masks. Pasting masks into images is the host's work
(`object_detection.masks.mask_paste`).
"""

from __future__ import annotations

from typing import NamedTuple

import tensorflow as tf

from maskrcnn.settings import MaskRcnnConfig
from object_detection.boxes.box_coder import decode_boxes
from object_detection.boxes.box_ops import at_least_float32, clip_boxes
from object_detection.boxes.nms import batched_nms, with_best_refused
from object_detection.boxes.top_k import exact_top_k
from object_detection.input import geometry as geometry_lib
from object_detection.serve.detections import Detections, MaskDetections

# (Proposal, class) pairs of an image that enter the suppression.
_MOST_PAIRS = 5000


class NetworkDetections(NamedTuple):
    """Detections before they leave the network's frame, best first, padded to K.

    Attributes:
      boxes: [B, K, 4] float32, (y1, x1, y2, x2), network pixels; 0 in padding.
      scores: [B, K] float32 in [0, 1], descending; 0 in padding.
      classes: [B, K] int32, class_id; -1 in padding.
      num_valid: [B] int32.
    """

    boxes: tf.Tensor
    scores: tf.Tensor
    classes: tf.Tensor
    num_valid: tf.Tensor


def detect_boxes(
    class_logits: tf.Tensor,
    box_deltas: tf.Tensor,
    proposals: tf.Tensor,
    is_valid: tf.Tensor,
    image_sizes: tf.Tensor,
    *,
    config: MaskRcnnConfig,
) -> NetworkDetections:
    """Decodes the best (proposal, class) pairs and suppresses overlaps within each class.

    A proposal may give several detections of different classes (Mask R-CNN, section 3.1; both
    references). Only pairs chosen by score are decoded.

    Args:
      class_logits: [B * R, num_classes + 1] or with B and R apart, background last, any float
        dtype.
      box_deltas: [B * R, num_classes, 4] or with B and R apart, (ty, tx, th, tw).
      proposals: [B, R, 4], (y1, x1, y2, x2), network pixels.
      is_valid: [B, R] bool, False for padding.
      image_sizes: [B, 2] (height, width) to which boxes are clipped, network pixels.
      config: `test` and `eval` say what is kept, `roi` and `model` how boxes are coded.

    Returns:
      `NetworkDetections`, float32, without gradient.
    """
    test, coding_offset = config.test, config.model.coding_offset
    num_proposals, num_classes = proposals.shape[1], box_deltas.shape[-2]
    num_pairs = num_proposals * num_classes
    logits = tf.reshape(class_logits, [-1, num_proposals, num_classes + 1])
    scores = tf.nn.softmax(at_least_float32(tf.stop_gradient(logits)), axis=-1)[..., :num_classes]
    # Written so that a NaN score counts as dropped.
    is_known = is_valid[..., tf.newaxis] & (scores >= 0.0)
    all_scores = tf.reshape(tf.where(is_known, scores, -1.0), [-1, num_pairs])
    scores, pairs = exact_top_k(all_scores, min(_MOST_PAIRS, num_pairs))
    deltas = tf.reshape(tf.stop_gradient(box_deltas), [-1, num_pairs, 4])
    boxes = decode_boxes(
        tf.gather(deltas, pairs, batch_dims=1),
        tf.gather(tf.stop_gradient(proposals), pairs // num_classes, batch_dims=1),
        weights=config.roi.bbox_reg_weights,
        pixel_offset=coding_offset,
    )
    height, width = (image_sizes[:, axis, tf.newaxis] - coding_offset for axis in (0, 1))
    boxes = clip_boxes(boxes, height=height, width=width)
    has_area = tf.reduce_all(boxes[..., 2:] + coding_offset > boxes[..., :2], axis=-1)
    classes = tf.where(has_area & (scores >= 0.0), pairs % num_classes, -1)
    boxes, scores, classes, num_valid = batched_nms(
        boxes,
        scores,
        classes,
        max_output_size=config.eval.most_detections(test.test_detections_per_image),
        method="hard",
        iou_threshold=test.test_nms,
        sigma=0.5,
        score_threshold=test.test_score_thresh,
        pixel_offset=config.model.iou_offset,
    )
    scores = with_best_refused(scores, num_valid, all_scores)
    return NetworkDetections(boxes, scores, classes, num_valid)


def to_original(
    detections: NetworkDetections,
    geometry: tf.Tensor,
    *,
    network_width: int,
    masks: tf.Tensor | None = None,
    pixel_offset: float = 0.0,
) -> Detections | MaskDetections:
    """Moves detections to the original image and clips them to it.

    Args:
      detections: in network pixels.
      geometry: [B, GEOMETRY_SIZE], packed as in HostExample.
      network_width: of the network input, pixels.
      masks: [B, K, s, s] probabilities within the boxes; none for a model without masks. They are
        not mirrored: detection sees images as they are.
      pixel_offset: added to the far corners first; 1.0 where these are the last pixel of a box, as
        in models trained with the PyTorch reference's boxes.

    Returns:
      `MaskDetections` if there are masks, else `Detections`.
    """
    places = geometry_lib.unpack(geometry)
    boxes = detections.boxes + tf.constant([0.0, 0.0, pixel_offset, pixel_offset])
    boxes = geometry_lib.network_to_original(boxes, places, network_width=network_width)
    boxes = geometry_lib.clip_to_original(boxes, places)
    boxes = tf.where((detections.classes >= 0)[..., tf.newaxis], boxes, 0.0)
    moved = Detections(*detections)._replace(boxes=boxes)
    return moved if masks is None else MaskDetections(*moved, masks=masks)
