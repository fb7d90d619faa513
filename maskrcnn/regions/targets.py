"""What the heads of Mask R-CNN should answer, built inside the compiled step, in float32.

Three stages: anchors for the RPN, sampled proposals for the box head, masks for the positive ones
among them. Sampled examples come as indices or boxes of fixed number, so that losses and heads
touch nothing else.

The trap: boxes of ground truth are clipped to the network's input, but a stored mask belongs to the
whole box, so that `assign_mask_targets` wants the boxes unclipped.
"""

from __future__ import annotations

from typing import NamedTuple

import tensorflow as tf

from maskrcnn.settings import MaskRcnnConfig
from object_detection.boxes.box_coder import encode_boxes
from object_detection.boxes.box_ops import corner_overlaps, pairwise_iou, split_corners
from object_detection.boxes.matcher import IGNORED, NEGATIVE, POSITIVE, match_anchors
from object_detection.boxes.samplers import sample_balanced
from object_detection.masks.mask_ops import is_mask_known, mask_targets

IGNORED_CLASS = -1

# Share of an example's area from which a crowd that covers it keeps it from being background.
_CROWDED = 0.7


class RpnTargets(NamedTuple):
    """What the RPN should answer at sampled anchors.

    Attributes:
      indices: [B, S] int32 into the anchors of all levels; 0 in padding.
      labels: [B, S] int32, 1 object, 0 background, -1 padding.
      box_targets: [B, S, 4], (ty, tx, th, tw); 0 where not an object.
      is_matched: [B, A] bool, anchors of objects, sampled or not.
      matched_targets: [B, A, 4], their box targets; without meaning elsewhere. Computed apart, so
        that a graph has them only for the loss that looks at them.
    """

    indices: tf.Tensor
    labels: tf.Tensor
    box_targets: tf.Tensor
    is_matched: tf.Tensor
    matched_targets: tf.Tensor


class RoiTargets(NamedTuple):
    """Sampled regions and what the box head should answer: objects first, then background.

    Attributes:
      boxes: [B, S, 4], (y1, x1, y2, x2), network pixels; 0 in padding.
      class_targets: [B, S] int32, class_id, num_classes for background, -1 for padding.
      box_targets: [B, S, 4], (ty, tx, th, tw); 0 where not an object.
      is_positive: [B, S] bool, whether an object.
      gt_index: [B, S] int32, the ground truth of an object; valid, but without meaning elsewhere.
    """

    boxes: tf.Tensor
    class_targets: tf.Tensor
    box_targets: tf.Tensor
    is_positive: tf.Tensor
    gt_index: tf.Tensor


class MaskTargets(NamedTuple):
    """Regions of the mask head and what it should answer.

    Attributes:
      boxes: [B, P, 4], (y1, x1, y2, x2), network pixels.
      classes: [B, P] int32, class_id; -1 where the mask does not count.
      masks: [B, P, s, s] float32, 0 or 1; 0 where the mask does not count.
    """

    boxes: tf.Tensor
    classes: tf.Tensor
    masks: tf.Tensor


def assign_rpn_targets(
    anchors: tf.Tensor,
    gt_boxes: tf.Tensor,
    gt_classes: tf.Tensor,
    *,
    image_sizes: tf.Tensor,
    crowd_boxes: tf.Tensor | None,
    config: MaskRcnnConfig,
    seed: tf.Tensor,
) -> RpnTargets:
    """Matches and samples anchors (Faster R-CNN, arXiv 1506.01497, section 3.1.2).

    Each box also takes the anchor that overlaps it most, if any does; with Detectron's anchors all
    that overlap it equally.

    Args:
      anchors: [A, 4], (y1, x1, y2, x2), network pixels.
      gt_boxes: [B, M, 4], same order and frame.
      gt_classes: [B, M] int32, class_id; -1 for padding and for boxes to leave out.
      image_sizes: [B, 2] (height, width) of the part that is image, network pixels; where the
        configuration bounds anchors, those that leave it are not sampled.
      crowd_boxes: [B, N, 4], same order and frame, zero for padding. Given, background anchors of
        which a crowd covers a large share are taken back after sampling.
      config: `rpn` says what is sampled, `model` how boxes are coded and compared.
      seed: int32 [2], of the sampling.

    Returns:
      `RpnTargets`, without gradient. An image without boxes is all background.
    """
    rpn, model = config.rpn, config.model
    gt_boxes = tf.stop_gradient(gt_boxes)
    matches = match_anchors(
        _extend(anchors, model.iou_offset),
        _extend(gt_boxes, model.iou_offset),
        _has_area(gt_boxes) & (gt_classes >= 0),
        positive_threshold=rpn.rpn_positive_overlap,
        negative_threshold=rpn.rpn_negative_overlap,
        force_ties=model.anchor_convention == "detectron",
    )
    if rpn.rpn_straddle_thresh >= 0.0:
        is_inside = _is_inside(
            anchors, image_sizes, margin=rpn.rpn_straddle_thresh, pixel_offset=model.coding_offset
        )
        matches = matches._replace(labels=tf.where(is_inside, matches.labels, IGNORED))
    samples = sample_balanced(
        matches.labels == POSITIVE,
        matches.labels == NEGATIVE,
        num_samples=rpn.rpn_batch_size_per_im,
        positive_fraction=rpn.rpn_fg_fraction,
        seed=seed,
    )
    labels = tf.where(samples.is_positive, POSITIVE, NEGATIVE)
    labels = tf.where(samples.is_valid, labels, IGNORED)
    sampled = tf.gather(tf.convert_to_tensor(anchors), samples.indices)
    if crowd_boxes is not None:
        is_crowded = crowd_cover(sampled, crowd_boxes) >= _CROWDED
        labels = tf.where(is_crowded & (labels == NEGATIVE), IGNORED, labels)

    def encoded(gt_index: tf.Tensor, own_anchors: tf.Tensor) -> tf.Tensor:
        boxes = tf.gather(gt_boxes, gt_index, batch_dims=1)
        return encode_boxes(boxes, own_anchors, pixel_offset=model.coding_offset)

    box_targets = encoded(tf.gather(matches.gt_index, samples.indices, batch_dims=1), sampled)
    return RpnTargets(
        indices=samples.indices,
        labels=labels,
        box_targets=tf.where(samples.is_positive[..., tf.newaxis], box_targets, 0.0),
        is_matched=matches.labels == POSITIVE,
        matched_targets=encoded(matches.gt_index, anchors),
    )


def sample_rois(
    proposals: tf.Tensor,
    is_valid: tf.Tensor,
    gt_boxes: tf.Tensor,
    gt_classes: tf.Tensor,
    *,
    num_classes: int,
    crowd_boxes: tf.Tensor | None,
    config: MaskRcnnConfig,
    seed: tf.Tensor,
) -> RoiTargets:
    """Samples regions of objects and of background (Fast R-CNN, arXiv 1504.08083, section 2.3).

    The boxes themselves are among the regions to sample from. A region belongs to the box that it
    overlaps most, the first one on ties.

    Args:
      proposals: [B, R, 4], (y1, x1, y2, x2), network pixels.
      is_valid: [B, R] bool, False for padding.
      gt_boxes: [B, M, 4], same order and frame.
      gt_classes: [B, M] int32, class_id; -1 for padding and for boxes to leave out.
      num_classes: of the foreground; its value marks background.
      crowd_boxes: [B, N, 4], same order and frame, zero for padding. Given, regions of which a
        crowd covers a large share are never background.
      config: `roi` says what is sampled, `model` how boxes are coded and compared.
      seed: int32 [2], of the sampling; another one than that of the RPN.

    Returns:
      `RoiTargets`, without gradient; padding where an image has too few regions.
    """
    roi, model = config.roi, config.model
    gt_boxes = tf.stop_gradient(gt_boxes)
    is_gt = _has_area(gt_boxes) & (gt_classes >= 0)
    regions = tf.concat([tf.stop_gradient(proposals), gt_boxes], axis=1)
    is_valid = tf.concat([is_valid, is_gt], axis=1)
    overlaps = pairwise_iou(regions, gt_boxes, pixel_offset=model.iou_offset)
    overlaps = tf.where(is_gt[:, tf.newaxis, :], overlaps, 0.0)
    best = tf.reduce_max(overlaps, axis=-1)
    gt_index = tf.argmax(overlaps, axis=-1, output_type=tf.int32)
    is_object = is_valid & (best >= roi.fg_thresh)
    is_background = is_valid & (best < roi.bg_thresh_hi) & (best >= roi.bg_thresh_lo)
    if crowd_boxes is not None:
        is_background &= crowd_cover(regions, crowd_boxes) < _CROWDED
    samples = sample_balanced(
        is_object,
        is_background & ~is_object,
        num_samples=roi.batch_size_per_im,
        positive_fraction=roi.fg_fraction,
        seed=seed,
    )

    def sampled(values: tf.Tensor) -> tf.Tensor:
        return tf.gather(values, samples.indices, batch_dims=1)

    boxes = tf.where(samples.is_valid[..., tf.newaxis], sampled(regions), 0.0)
    gt_index = sampled(gt_index)
    classes = tf.gather(gt_classes, gt_index, batch_dims=1)
    classes = tf.where(samples.is_positive, classes, num_classes)
    box_targets = encode_boxes(
        tf.gather(gt_boxes, gt_index, batch_dims=1),
        boxes,
        weights=roi.bbox_reg_weights,
        pixel_offset=model.coding_offset,
    )
    return RoiTargets(
        boxes=boxes,
        class_targets=tf.where(samples.is_valid, classes, IGNORED_CLASS),
        box_targets=tf.where(samples.is_positive[..., tf.newaxis], box_targets, 0.0),
        is_positive=samples.is_positive,
        gt_index=gt_index,
    )


def assign_mask_targets(
    rois: RoiTargets,
    packed_masks: tf.Tensor,
    mask_frames: tf.Tensor,
    *,
    num_rois: int,
    mask_size: int,
    is_mirrored: tf.Tensor,
) -> MaskTargets:
    """Makes the masks of the sampled objects (Mask R-CNN, arXiv 1703.06870, section 3).

    Args:
      rois: of `sample_rois`.
      packed_masks: uint8 [B, M, 1568], crops of the ground truth; all zero where unknown.
      mask_frames: [B, M, 4], (y1, x1, y2, x2), the boxes that the crops were made from, moved into
        the network's input but not clipped to it.
      num_rois: P, at most S. `max_positives` of the sampling holds every object.
      mask_size: s, side of the mask head's output.
      is_mirrored: bool [B], whether the image was mirrored after the crops were made.

    Returns:
      `MaskTargets`, without gradient.
    """
    gt_index = rois.gt_index[:, :num_rois]
    boxes = rois.boxes[:, :num_rois]
    # As int32, since a GPU has no kernel that gathers bytes.
    packed = tf.gather(tf.cast(packed_masks, tf.int32), gt_index, batch_dims=1)
    packed = tf.cast(packed, tf.uint8)
    counts = rois.is_positive[:, :num_rois] & is_mask_known(packed)
    masks = mask_targets(
        packed,
        tf.gather(tf.stop_gradient(mask_frames), gt_index, batch_dims=1),
        boxes,
        output_size=mask_size,
        is_mirrored=is_mirrored[:, tf.newaxis],
    )
    return MaskTargets(
        boxes=boxes,
        classes=tf.where(counts, rois.class_targets[:, :num_rois], IGNORED_CLASS),
        masks=tf.where(counts[..., tf.newaxis, tf.newaxis], masks, 0.0),
    )


def crowd_cover(boxes: tf.Tensor, crowd_boxes: tf.Tensor) -> tf.Tensor:
    """Computes the largest share of each box that one crowd covers.

    Args:
      boxes: [B, N, 4], (y1, x1, y2, x2), pixels.
      crowd_boxes: [B, C, 4], same order and frame, zero for padding.

    Returns:
      [B, N] in [0, 1]; 0 for empty boxes.
    """
    rows = [corner[:, :, tf.newaxis] for corner in split_corners(boxes)]
    columns = [corner[:, tf.newaxis, :] for corner in split_corners(crowd_boxes)]
    intersection, _ = corner_overlaps(rows, columns)
    y1, x1, y2, x2 = rows
    return tf.reduce_max(tf.math.divide_no_nan(intersection, (y2 - y1) * (x2 - x1)), axis=-1)


def _extend(boxes: tf.Tensor, pixel_offset: float) -> tf.Tensor:
    """Moves the far corner out, which turns overlaps into those with `pixel_offset`."""
    return boxes + tf.constant([0.0, 0.0, pixel_offset, pixel_offset]) if pixel_offset else boxes


def _has_area(boxes: tf.Tensor) -> tf.Tensor:
    """[..., 4] -> bool [...]."""
    return (boxes[..., 2] > boxes[..., 0]) & (boxes[..., 3] > boxes[..., 1])


def _is_inside(
    anchors: tf.Tensor, image_sizes: tf.Tensor, *, margin: float, pixel_offset: float
) -> tf.Tensor:
    """Tells which anchors leave each image by no more than a margin: bool [B, A]."""
    y1, x1, y2, x2 = split_corners(_extend(anchors, pixel_offset))
    height, width = (image_sizes[:, axis, tf.newaxis] + margin for axis in (0, 1))
    return (y1 >= -margin) & (x1 >= -margin) & (y2 <= height) & (x2 <= width)
