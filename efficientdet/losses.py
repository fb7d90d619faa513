"""Losses of the heads: focal loss for classes, Huber and IoU losses for boxes. All in float32.

Levels are taken one by one, so that the logits (4.4 million per image for D0) are neither
concatenated nor copied. Nothing here needs a one-hot tensor in memory: it is a comparison that
compiles into the loss.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import tensorflow as tf

from efficientdet.settings import LossConfig
from efficientdet.targets import IGNORED_CLASS, Targets
from object_detection.boxes import box_ops
from object_detection.boxes.box_coder import anchor_rows, decode_boxes

_IOU_MEASURES = {
    "iou": box_ops.iou,
    "giou": box_ops.giou,
    "diou": box_ops.diou,
    "ciou": box_ops.ciou,
}


class DetectionLosses(NamedTuple):
    """Scalars of one batch.

    Attributes:
      cls_loss: focal loss over the normaliser.
      box_loss: Huber loss over four times the normaliser, before its weight.
      box_iou_loss: IoU loss over four times the normaliser, before its weight; 0 if off.
      det_loss: the weighted sum of the three.
      num_positives: positive anchors of the batch, without the 1 that the normaliser adds.
    """

    cls_loss: tf.Tensor
    box_loss: tf.Tensor
    box_iou_loss: tf.Tensor
    det_loss: tf.Tensor
    num_positives: tf.Tensor


def detection_losses(
    class_logits: Sequence[tf.Tensor],
    box_deltas: Sequence[tf.Tensor],
    targets: Targets,
    anchors: tf.Tensor,
    *,
    num_classes: int,
    settings: LossConfig,
) -> DetectionLosses:
    """Compares the outputs of the heads with their targets.

    The box losses count the anchors matched to a box, not the coordinates whose target happens to
    differ from 0. The IoU loss is `1 - measure` of the decoded boxes.

    Args:
      class_logits: per level [B, h, w, anchors_per_position * num_classes], any float dtype.
      box_deltas: per level [B, h, w, anchors_per_position * 4], (ty, tx, th, tw).
      targets: of all levels, in the order of the levels.
      anchors: [A, 4], (y1, x1, y2, x2), network pixels.
      num_classes: of the foreground.
      settings: of the three losses and their sum.
    """
    num_positives = tf.reduce_sum(targets.num_positives)
    normalizer = num_positives + 1.0

    cls_sums, box_sums, iou_sums = [], [], []
    start = 0
    for logits, deltas in zip(anchor_rows(class_logits, num_classes), anchor_rows(box_deltas, 4)):
        end = start + logits.shape[1]
        cls_sums.append(_class_loss_sum(logits, targets.class_targets[:, start:end], settings))
        # Cast before the two losses part, so that their gradients meet in float32.
        deltas = box_ops.at_least_float32(deltas)
        box_targets, positives = targets.box_targets[:, start:end], targets.positives[:, start:end]
        box_sums.append(_box_loss_sum(deltas, box_targets, positives, delta=settings.delta))
        if settings.iou_loss_type:
            measure = _IOU_MEASURES[settings.iou_loss_type]
            of_level = anchors[start:end]
            iou_sums.append(_iou_loss_sum(deltas, box_targets, positives, of_level, measure))
        start = end

    cls_loss = tf.add_n(cls_sums) / tf.cast(normalizer, cls_sums[0].dtype)
    box_normalizer = 4.0 * tf.cast(normalizer, box_sums[0].dtype)
    box_loss = tf.add_n(box_sums) / box_normalizer
    box_iou_loss = tf.add_n(iou_sums) / box_normalizer if iou_sums else tf.zeros_like(box_loss)
    det_loss = cls_loss + settings.box_loss_weight * box_loss
    det_loss += settings.iou_loss_weight * box_iou_loss
    return DetectionLosses(cls_loss, box_loss, box_iou_loss, det_loss, num_positives)


def sigmoid_focal_loss(
    logits: tf.Tensor,
    is_target: tf.Tensor,
    *,
    alpha: float,
    gamma: float,
    label_smoothing: float,
) -> tf.Tensor:
    """Computes the focal loss (RetinaNet, arXiv 1708.02002, eq. 5) elementwise.

    With `u` the logit of the right answer (`x` for a target, `-x` otherwise), `p_t = sigmoid(u)`:

        loss     = alpha_t * (1 - p_t)^gamma * CE,   CE = softplus(-u) + label_smoothing / 2 * u
        (1 - p_t)^gamma = exp(-gamma * softplus(u))

    which neither overflows nor loses the gradient of hopeless positives (modulator 1 at u = -200).
    Labels are smoothed in the cross entropy, not in the modulator. The gradient is written out: it
    is exact at u = 0, where that of `max` and `abs` is not, and it keeps only the logits.

    Args:
      logits: [...].
      is_target: [...] bool.
      alpha: weight of targets; the others have 1 - alpha.
      gamma: focusing power.
      label_smoothing: in [0, 1).
    """

    @tf.custom_gradient
    def loss(x: tf.Tensor):
        u = tf.where(is_target, x, -x)
        weight = tf.where(is_target, tf.constant(alpha, x.dtype), tf.constant(1.0 - alpha, x.dtype))

        def gradient(upstream: tf.Tensor) -> tf.Tensor:
            # Through the sigmoid on purpose: were this written with the forward's exp and log1p,
            # XLA would share them, and keep three float32 tensors of the logits' size to do so.
            small = tf.sigmoid(-tf.abs(u))
            p_right = tf.where(u >= 0.0, 1.0 - small, small)
            p_wrong = tf.where(u >= 0.0, small, 1.0 - small)
            modulator, cross_entropy = terms(u, -tf.math.log1p(-small))
            slope = label_smoothing / 2.0 - p_wrong - gamma * p_right * cross_entropy
            by_u = upstream * weight * modulator * slope
            return tf.where(is_target, by_u, -by_u)

        modulator, cross_entropy = terms(u, tf.math.log1p(tf.exp(-tf.abs(u))))
        return weight * modulator * cross_entropy, gradient

    def terms(u: tf.Tensor, log_term: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Modulator and cross entropy from log_term = log(1 + exp(-|u|)) = softplus(-|u|)."""
        cross_entropy = tf.nn.relu(-u) + log_term + label_smoothing / 2.0 * u
        return tf.exp(-gamma * (tf.nn.relu(u) + log_term)), cross_entropy

    return loss(box_ops.at_least_float32(logits))


def _class_loss_sum(logits: tf.Tensor, class_targets: tf.Tensor, settings: LossConfig) -> tf.Tensor:
    """Sums the focal loss of [B, n, C] logits against [B, n] int32 class_id, -1 left out."""
    classes = tf.range(tf.shape(logits)[-1])
    losses = sigmoid_focal_loss(
        logits,
        class_targets[..., tf.newaxis] == classes,
        alpha=settings.alpha,
        gamma=settings.gamma,
        label_smoothing=settings.label_smoothing,
    )
    per_anchor = tf.reduce_sum(losses, axis=-1)
    return tf.reduce_sum(tf.where(class_targets == IGNORED_CLASS, 0.0, per_anchor))


def huber_loss(errors: tf.Tensor, *, delta: float) -> tf.Tensor:
    """Computes `e^2 / 2` up to |e| = delta and `delta * (|e| - delta / 2)` beyond, elementwise."""
    absolute = tf.abs(errors)
    quadratic = tf.minimum(absolute, delta)
    return 0.5 * tf.square(quadratic) + delta * (absolute - quadratic)


def _box_loss_sum(
    deltas: tf.Tensor, box_targets: tf.Tensor, positives: tf.Tensor, *, delta: float
) -> tf.Tensor:
    """Sums the Huber loss of [B, n, 4] deltas over the four coordinates of positive anchors."""
    errors = deltas - tf.cast(box_targets, deltas.dtype)
    return tf.reduce_sum(huber_loss(tf.where(positives[..., tf.newaxis], errors, 0.0), delta=delta))


def _iou_loss_sum(
    deltas: tf.Tensor,
    box_targets: tf.Tensor,
    positives: tf.Tensor,
    anchors: tf.Tensor,
    measure: Callable[[tf.Tensor, tf.Tensor], tf.Tensor],
) -> tf.Tensor:
    """Sums `1 - measure` between decoded deltas and decoded targets over positive anchors."""
    anchors = tf.cast(anchors, deltas.dtype)
    # Zero deltas are the anchor itself: a harmless box for the anchors that are left out, so that
    # no infinity times zero can reach the gradient.
    predicted = decode_boxes(tf.where(positives[..., tf.newaxis], deltas, 0.0), anchors)
    expected = decode_boxes(tf.cast(box_targets, deltas.dtype), anchors)
    return tf.reduce_sum(tf.where(positives, 1.0 - measure(predicted, expected), 0.0))
