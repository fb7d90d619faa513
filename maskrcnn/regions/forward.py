"""Mask R-CNN's forward passes over one batch, from normalised images to losses or detections.

Everything here is static in shape and compiles as one program; nothing knows of data sets or ranks.
Proposals get no gradient; the RPN learns from its own loss only (Faster R-CNN, arXiv 1506.01497,
section 3.2).
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import tensorflow as tf

from maskrcnn.network.anchors import model_anchors
from maskrcnn.network.model import MaskRCNN, TrunkOutputs
from maskrcnn.regions.losses import box_head_losses, mask_loss, rpn_losses
from maskrcnn.regions.postprocess import NetworkDetections, detect_boxes
from maskrcnn.regions.proposals import Proposals, propose_regions
from maskrcnn.regions.targets import (
    RoiTargets,
    assign_mask_targets,
    assign_rpn_targets,
    sample_rois,
)
from maskrcnn.settings import MaskRcnnConfig
from object_detection.boxes.roi_align import roi_align
from object_detection.boxes.samplers import max_positives
from object_detection.input.accelerator import has_accelerator


class GroundTruth(NamedTuple):
    """Objects of a batch in the network's frame.

    boxes: [B, M, 4], (y1, x1, y2, x2), clipped to the image; 0 where left out.
    classes: [B, M] int32, class_id; -1 where left out.
    crowds: [B, M, 4], boxes of crowd regions, 0 elsewhere; none: crowds are background.
    packed_masks: uint8 [B, M, 1568]; none without masks.
    mask_frames: [B, M, 4], the boxes unclipped.
    is_mirrored: bool [B].
    image_sizes: [B, 2] (y, x), where in the network's input the images end.
    is_counted: bool [B], False for images that only fill up a batch.
    """

    boxes: tf.Tensor
    classes: tf.Tensor
    crowds: tf.Tensor | None
    packed_masks: tf.Tensor | None
    mask_frames: tf.Tensor
    is_mirrored: tf.Tensor
    image_sizes: tf.Tensor
    is_counted: tf.Tensor


class Forward:
    """The forward passes of one model."""

    def __init__(self, config: MaskRcnnConfig, model: MaskRCNN):
        """Takes a run's configuration with the model's conventions filled in."""
        self._config, self._model = config, model
        self._anchors = functools.lru_cache(functools.partial(model_anchors, config.model))

    @property
    def loss_names(self) -> tuple[str, ...]:
        """Names of the losses that the network has."""
        model = self._config.model
        heads = () if model.rpn_only else ("fast_rcnn_class_loss", "fast_rcnn_box_loss")
        mask = ("mask_loss",) if model.include_mask else ()
        return ("rpn_score_loss", "rpn_box_loss", *heads, *mask)

    def losses(
        self, images: tf.Tensor, truth: GroundTruth, *, training: bool, seed: tf.Tensor
    ) -> dict[str, tf.Tensor]:
        """Computes the weighted losses of a batch.

        Args:
          images: [B, height, width, 3], normalised.
          truth: its objects.
          training: whether trained batch norm uses batch statistics.
          seed: int32 [2], of the sampling.

        Returns:
          `loss_names` -> float32 scalar; the loss is their sum.
        """
        config, weights = self._config, self._config.loss
        seeds = tf.random.experimental.stateless_split(seed, 2)
        trunk = self._model(images, training=training)
        anchor_targets = assign_rpn_targets(
            self.anchors(images),
            truth.boxes,
            truth.classes,
            image_sizes=truth.image_sizes,
            crowd_boxes=truth.crowds,
            config=config,
            seed=seeds[0],
        )
        score_loss, box_loss = rpn_losses(
            trunk.rpn_logits,
            trunk.rpn_deltas,
            anchor_targets,
            is_counted=truth.is_counted,
            settings=weights,
        )
        losses = {
            "rpn_score_loss": score_loss,
            "rpn_box_loss": weights.rpn_box_loss_weight * box_loss,
        }
        if config.model.rpn_only:
            return losses
        proposals = self._propose(images, trunk, truth.image_sizes, training=True)
        rois = sample_rois(
            proposals.boxes,
            proposals.is_valid,
            truth.boxes,
            truth.classes,
            num_classes=self._model.num_classes,
            crowd_boxes=truth.crowds,
            config=config,
            seed=seeds[1],
        )
        features = self._box_features(trunk, rois.boxes, training=training)
        outputs = self._model.boxes(features, training=training)
        losses["fast_rcnn_class_loss"], box_loss = box_head_losses(
            outputs.class_logits,
            outputs.box_deltas,
            rois,
            is_counted=truth.is_counted,
            settings=weights,
        )
        losses["fast_rcnn_box_loss"] = weights.fast_rcnn_box_loss_weight * box_loss
        if config.model.include_mask:
            loss = self._mask_loss(trunk, features, rois, truth, training=training)
            losses["mask_loss"] = weights.mrcnn_weight_loss_mask * loss
        return losses

    def detect(
        self, images: tf.Tensor, image_sizes: tf.Tensor
    ) -> tuple[NetworkDetections, tf.Tensor | None]:
        """Finds objects.

        Args:
          images: [B, height, width, 3], normalised.
          image_sizes: [B, 2] (height, width) of the part that is image.

        Returns:
          Detections in network pixels, and their masks [B, K, s, s], none without masks.
        """
        config = self._config
        trunk = self._model(images, training=False)
        proposals = self._propose(images, trunk, image_sizes, training=False)
        if config.model.rpn_only:
            most = config.eval.most_detections(config.test.test_detections_per_image)
            return _as_detections(proposals, most), None
        features = self._box_features(trunk, proposals.boxes, training=False)
        outputs = self._model.boxes(features, training=False)
        found = detect_boxes(
            outputs.class_logits,
            outputs.box_deltas,
            proposals.boxes,
            proposals.is_valid,
            image_sizes,
            config=config,
        )
        if not config.model.include_mask:
            return found, None
        if config.model.mask_head == "res5":
            features = self._box_features(trunk, found.boxes, training=False)
        else:
            features = self._pool(trunk, found.boxes, config.model.mask_resolution)
        classes = tf.reshape(found.classes, [-1])
        logits = self._model.masks_of_classes(features, classes, training=False)
        masks = tf.sigmoid(tf.cast(logits, tf.float32))
        masks = tf.reshape(masks, [-1, found.classes.shape[1], *logits.shape[1:]])
        return found, tf.where(found.classes[..., tf.newaxis, tf.newaxis] >= 0, masks, 0.0)

    def anchors(self, images: tf.Tensor) -> tf.Tensor:
        """Returns the anchors of the images' size, [A, 4] float32."""
        return tf.constant(self._anchors((int(images.shape[1]), int(images.shape[2]))))

    def _propose(
        self, images: tf.Tensor, trunk: TrunkOutputs, image_sizes: tf.Tensor, *, training: bool
    ) -> Proposals:
        return propose_regions(
            trunk.rpn_logits,
            trunk.rpn_deltas,
            self.anchors(images),
            image_sizes,
            config=self._config,
            training=training,
        )

    def _mask_loss(
        self,
        trunk: TrunkOutputs,
        box_features: tf.Tensor,
        rois: RoiTargets,
        truth: GroundTruth,
        *,
        training: bool,
    ) -> tf.Tensor:
        """Computes the mask loss of the sampled objects, which stand first among the regions."""
        model, roi = self._config.model, self._config.roi

        def loss_of_first(count: int) -> tf.Tensor:
            targets = assign_mask_targets(
                rois,
                truth.packed_masks,
                truth.mask_frames,
                num_rois=count,
                mask_size=model.mask_size,
                is_mirrored=truth.is_mirrored,
            )
            if model.mask_head == "res5":
                shape = box_features.shape[1:]
                by_image = tf.reshape(box_features, [-1, rois.boxes.shape[1], *shape])
                features = tf.reshape(by_image[:, :count], [-1, *shape])
            else:
                features = self._pool(trunk, targets.boxes, model.mask_resolution)
            logits = self._model.masks(features, training=training)
            return mask_loss(
                logits,
                targets,
                is_counted=truth.is_counted,
                normalizer=self._config.loss.mask_normalizer,
            )

        most = max_positives(roi.batch_size_per_im, roi.fg_fraction)
        if not self._skips_unused_mask_rois:
            return loss_of_first(most)
        counts = sorted({-(-most // 4), -(-most // 2), most})
        needed = tf.reduce_max(tf.reduce_sum(tf.cast(rois.is_positive, tf.int32), axis=1))
        branch = tf.reduce_sum(tf.cast(needed > tf.constant(counts[:-1], tf.int32), tf.int32))
        return tf.switch_case(branch, [functools.partial(loss_of_first, n) for n in counts])

    @property
    def _skips_unused_mask_rois(self) -> bool:
        """Whether the mask head is run on as few RoIs as hold the positives.

        Not where batch norm looks at all of them, and not where they share the box head's work.
        The choice of a branch makes the host wait for an accelerator once in each step.
        """
        model, asked = self._config.model, self._config.roi.mask_rois
        if model.mask_head == "res5" or model.mask_head_norm == "batch_norm":
            return False
        return asked == "needed" or (asked == "auto" and not has_accelerator())

    def _box_features(self, trunk: TrunkOutputs, boxes: tf.Tensor, *, training: bool) -> tf.Tensor:
        """Returns what the box head takes of [B, R, 4] boxes, [B * R, ...]."""
        pooled = self._pool(trunk, boxes, self._config.model.box_resolution)
        return self._model.roi_features(pooled, training=training)

    def _pool(self, trunk: TrunkOutputs, boxes: tf.Tensor, resolution: int) -> tf.Tensor:
        """Returns [B * R, resolution, resolution, C] features of [B, R, 4] boxes."""
        model = self._config.model
        pooled = roi_align(
            trunk.features,
            boxes,
            output_size=resolution,
            sampling_ratio=model.roi_sampling_ratio,
            convention=model.roi_align_convention,
            pixel_offset=model.iou_offset,
        )
        return tf.reshape(pooled, [-1, *pooled.shape[2:]])


def _as_detections(proposals: Proposals, count: int) -> NetworkDetections:
    """Takes the best proposals as detections of class 0, the only one."""
    count = min(count, proposals.scores.shape[1])
    is_valid = proposals.is_valid[:, :count]
    return NetworkDetections(
        boxes=proposals.boxes[:, :count],
        scores=proposals.scores[:, :count],
        classes=tf.where(is_valid, 0, -1),
        num_valid=tf.reduce_sum(tf.cast(is_valid, tf.int32), axis=-1),
    )
