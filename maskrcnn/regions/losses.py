"""The five losses of Mask R-CNN, in float32, and how they are joined over images and ranks.

Each loss is a sum over the sampled examples of each image, divided by a normaliser:

* 'fixed': the number of examples that were asked for, in every image. Joined over ranks or
  accumulated batches by number of images, it equals one large batch exactly. So does
* 'image': each image's own count, then the mean over images.
* 'batch': the count of all images of this batch, as the references have it. Means of such batches
  differ a little from one large batch wherever the counts differ.
* 'levels' (RPN boxes only): the NVIDIA TF2 reference's, see `rpn_losses`.

An image that only fills up a batch (`is_counted` False) must count in neither sum nor normaliser;
and the weight of a batch is its number of images that count.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import tensorflow as tf

from maskrcnn.regions.targets import IGNORED_CLASS, MaskTargets, RoiTargets, RpnTargets
from maskrcnn.settings import LossConfig
from object_detection.boxes.box_coder import anchor_rows
from object_detection.boxes.box_ops import at_least_float32
from object_detection.boxes.matcher import IGNORED, POSITIVE


class ImageSums(NamedTuple):
    """Loss of each image: [B] sums and [B] counts of what was summed."""

    sums: tf.Tensor
    counts: tf.Tensor


def rpn_losses(
    rpn_logits: Sequence[tf.Tensor],
    rpn_deltas: Sequence[tf.Tensor],
    targets: RpnTargets,
    *,
    is_counted: tf.Tensor,
    settings: LossConfig,
) -> tuple[tf.Tensor, tf.Tensor]:
    """Computes objectness and box loss of the RPN (Faster R-CNN, arXiv 1506.01497, eq. 1).

    The box normaliser 'levels' is the NVIDIA TF2 reference's: Huber loss (beta times the smooth
    L1 loss) of all matched anchors, sampled or not, without coordinates whose target is exactly 0;
    each level is divided by the number of its coordinates, and the levels are added up.

    Args:
      rpn_logits: per level [B, h, w, anchors_per_position], any float dtype.
      rpn_deltas: per level [B, h, w, anchors_per_position * 4], (ty, tx, th, tw).
      targets: of the anchors.
      is_counted: bool [B], images that count.
      settings: normalisers 'fixed' and 'batch' count sampled anchors, objects or not.

    Returns:
      (score loss, box loss), float32 scalars.
    """
    counted = tf.cast(is_counted, tf.float32)
    labels = tf.where(counted[:, tf.newaxis] > 0.0, targets.labels, IGNORED)
    num_samples = labels.shape[1]
    logits = tf.concat(anchor_rows(rpn_logits, 1), axis=1)[..., 0]
    sampled_logits = at_least_float32(tf.gather(logits, targets.indices, batch_dims=1))
    score_losses = tf.nn.sigmoid_cross_entropy_with_logits(
        labels=tf.cast(labels == POSITIVE, sampled_logits.dtype), logits=sampled_logits
    )
    is_sampled = labels != IGNORED
    score = _sums(score_losses, is_sampled)
    score_loss = normalise(score, counted, how=settings.rpn_score_normalizer, fixed=num_samples)
    if settings.rpn_box_normalizer == "levels":
        is_matched = targets.is_matched & (counted[:, tf.newaxis] > 0.0)
        return score_loss, _matched_box_loss(
            rpn_deltas, targets.matched_targets, is_matched, delta=settings.rpn_box_beta
        )
    deltas = tf.concat(anchor_rows(rpn_deltas, 4), axis=1)
    sampled_deltas = at_least_float32(tf.gather(deltas, targets.indices, batch_dims=1))
    box_losses = smooth_l1(sampled_deltas - targets.box_targets, beta=settings.rpn_box_beta)
    box = _sums(tf.reduce_sum(box_losses, axis=-1), labels == POSITIVE)
    box = box._replace(counts=score.counts)
    box_loss = normalise(box, counted, how=settings.rpn_box_normalizer, fixed=num_samples)
    return score_loss, box_loss


def box_head_losses(
    class_logits: tf.Tensor,
    box_deltas: tf.Tensor,
    targets: RoiTargets,
    *,
    is_counted: tf.Tensor,
    settings: LossConfig,
) -> tuple[tf.Tensor, tf.Tensor]:
    """Computes class and box loss of the box head (Fast R-CNN, arXiv 1504.08083, eq. 1 to 3).

    Args:
      class_logits: [B * S, num_classes + 1] or [B, S, num_classes + 1], background last.
      box_deltas: [B * S, num_classes, 4] or with B and S apart, (ty, tx, th, tw).
      targets: of the sampled regions.
      is_counted: bool [B], images that count.
      settings: normalisers 'fixed' and 'batch' count sampled regions, objects or not; 'positives'
        four times the objects of this batch, as the NVIDIA TF2 reference.

    Returns:
      (class loss, box loss), float32 scalars.
    """
    num_samples, num_classes = targets.class_targets.shape[1], box_deltas.shape[-2]
    counted = tf.cast(is_counted, tf.float32)
    classes = tf.where(counted[:, tf.newaxis] > 0.0, targets.class_targets, IGNORED_CLASS)
    logits = at_least_float32(tf.reshape(class_logits, [-1, num_samples, num_classes + 1]))
    losses = tf.nn.sparse_softmax_cross_entropy_with_logits(
        labels=tf.maximum(classes, 0), logits=logits
    )
    class_sums = _sums(losses, classes != IGNORED_CLASS)
    class_loss = normalise(class_sums, counted, how=settings.class_normalizer, fixed=num_samples)

    deltas = tf.reshape(box_deltas, [-1, num_samples, num_classes, 4])
    own_class = tf.clip_by_value(classes, 0, num_classes - 1)[..., tf.newaxis]
    deltas = at_least_float32(tf.gather(deltas, own_class, batch_dims=2)[:, :, 0])
    is_object = targets.is_positive & (classes != IGNORED_CLASS)
    box_losses = smooth_l1(deltas - targets.box_targets, beta=settings.box_beta)
    box_sums = _sums(tf.reduce_sum(box_losses, axis=-1), is_object)
    if settings.box_normalizer == "positives":
        box_sums = box_sums._replace(counts=4.0 * box_sums.counts)
        return class_loss, normalise(box_sums, counted, how="batch")
    box_sums = box_sums._replace(counts=class_sums.counts)
    box_loss = normalise(box_sums, counted, how=settings.box_normalizer, fixed=num_samples)
    return class_loss, box_loss


def mask_loss(
    mask_logits: tf.Tensor, targets: MaskTargets, *, is_counted: tf.Tensor, normalizer: str
) -> tf.Tensor:
    """Computes the mask loss (Mask R-CNN, arXiv 1703.06870, section 3).

    Args:
      mask_logits: [B * P, s, s, num_classes] or [B, P, s, s, num_classes].
      targets: of the sampled objects.
      is_counted: bool [B], images that count.
      normalizer: 'image' or, as both references, 'batch': of objects with a mask. Either way a mask
        is the mean over its cells.

    Returns:
      Scalar, float32; 0 without objects.
    """
    counted = tf.cast(is_counted, tf.float32)
    classes = tf.where(counted[:, tf.newaxis] > 0.0, targets.classes, IGNORED_CLASS)
    shape = [-1, *targets.masks.shape[1:], mask_logits.shape[-1]]
    logits = select_class(tf.reshape(mask_logits, shape), classes)
    losses = tf.nn.sigmoid_cross_entropy_with_logits(
        labels=tf.cast(targets.masks, logits.dtype), logits=logits
    )
    sums = _sums(tf.reduce_mean(losses, axis=[2, 3]), classes != IGNORED_CLASS)
    return normalise(sums, counted, how=normalizer)


def select_class(mask_logits: tf.Tensor, classes: tf.Tensor) -> tf.Tensor:
    """Selects the mask of one class for each region.

    A masked sum and no gather: it reads the logits once, and its gradient writes them once, without
    a scatter.

    Args:
      mask_logits: [B, P, s, s, num_classes], any float dtype.
      classes: [B, P] int32; -1 selects nothing.

    Returns:
      [B, P, s, s] float32; 0 where nothing is selected.
    """
    channels = tf.range(mask_logits.shape[-1])
    is_own = classes[..., tf.newaxis, tf.newaxis, tf.newaxis] == channels
    return tf.reduce_sum(tf.where(is_own, at_least_float32(mask_logits), 0.0), axis=-1)


def smooth_l1(errors: tf.Tensor, *, beta: float) -> tf.Tensor:
    """Computes `e^2 / (2 beta)` up to |e| = beta and `|e| - beta / 2` beyond, elementwise."""
    absolute = tf.abs(errors)
    quadratic = tf.minimum(absolute, beta)
    return tf.square(quadratic) / (2.0 * beta) + absolute - quadratic


def normalise(
    losses: ImageSums, counted: tf.Tensor, *, how: str, fixed: int | None = None
) -> tf.Tensor:
    """Divides the sums of a batch as the module's docstring says.

    Args:
      losses: of each image, 0 where an image does not count.
      counted: [B], 1 or 0.
      how: 'batch'; or 'fixed' where `fixed` is given, else 'image'.
      fixed: examples asked for in each image.

    Returns:
      Scalar, 0 where there is nothing.
    """
    if how == "batch":
        return tf.reduce_sum(losses.sums) / tf.maximum(tf.reduce_sum(losses.counts), 1.0)
    per_image = losses.sums / (tf.maximum(losses.counts, 1.0) if fixed is None else float(fixed))
    return tf.reduce_sum(per_image) / tf.maximum(tf.reduce_sum(counted), 1.0)


def _sums(losses: tf.Tensor, is_counted: tf.Tensor) -> ImageSums:
    """Sums [B, n] losses over what counts."""
    sums = tf.reduce_sum(tf.where(is_counted, losses, 0.0), axis=1)
    return ImageSums(sums, tf.reduce_sum(tf.cast(is_counted, losses.dtype), axis=1))


def _matched_box_loss(
    rpn_deltas: Sequence[tf.Tensor], box_targets: tf.Tensor, is_matched: tf.Tensor, *, delta: float
) -> tf.Tensor:
    """Computes the box loss over all matched anchors, [B, A, 4] and [B, A], level by level."""
    counts = is_matched[..., tf.newaxis] & (box_targets != 0.0)
    total, start = tf.zeros([]), 0
    for deltas in map(at_least_float32, anchor_rows(rpn_deltas, 4)):
        end = start + deltas.shape[1]
        inside = counts[:, start:end]
        errors = tf.where(inside, deltas - box_targets[:, start:end], 0.0)
        huber = delta * smooth_l1(errors, beta=delta)
        total += tf.reduce_sum(huber) / tf.maximum(tf.reduce_sum(tf.cast(inside, tf.float32)), 1.0)
        start = end
    return total
