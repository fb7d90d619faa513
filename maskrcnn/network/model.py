"""The Mask R-CNN network in parts that are called one after another, as one Keras model.

Images -> maps and RPN outputs -> (RoI features, pooled outside) -> classes, boxes, masks. Sampling
and pooling of RoIs stand between the parts and are not here, nor are anchors, losses and
non-maximum suppression. The precision is that of the Keras policy in force while the model is
built.
"""

from __future__ import annotations

from typing import NamedTuple

import tensorflow as tf

from maskrcnn.config import ModelConfig, with_our_conventions
from maskrcnn.network.backbone import build_backbone
from maskrcnn.network.heads import build_box_head, build_mask_head, build_roi_stage, build_rpn_head
from maskrcnn.network.layers import BatchNormFactory, compute_dtype
from maskrcnn.network.neck import build_neck


class TrunkOutputs(NamedTuple):
    """What the network says of whole images; lists run from the finest map to the coarsest."""

    features: dict[int, tf.Tensor]  # level -> [batch, h, w, channels], for `roi_align`
    rpn_logits: list[tf.Tensor]  # [batch, h, w, anchors_per_cell], before the sigmoid
    rpn_deltas: list[tf.Tensor]  # [batch, h, w, anchors_per_cell * 4], (ty, tx, th, tw)


class BoxOutputs(NamedTuple):
    """What the box head says of RoIs."""

    class_logits: tf.Tensor  # [num_rois, num_classes + 1], background last
    box_deltas: tf.Tensor  # [num_rois, num_classes, 4], (ty, tx, th, tw)


class MaskRCNN(tf.keras.Model):
    """Owns all variables; calling it runs the trunk.

    trunk, roi_stage, box_head and mask_head are Keras models too; those that the configuration does
    not have are None. With `training`, batch norm that is trained uses batch statistics.
    """

    def __init__(
        self,
        config: ModelConfig,
        *,
        num_classes: int,
        trunk: tf.keras.Model,
        roi_stage: tf.keras.Model | None,
        box_head: tf.keras.Model | None,
        mask_head: tf.keras.Model | None,
    ) -> None:
        """Takes the built parts; use `build_model`."""
        super().__init__(name=config.name)
        self.config = config
        self.num_classes = num_classes
        self.trunk = trunk
        self.roi_stage = roi_stage
        self.box_head = box_head
        self.mask_head = mask_head
        if mask_head is not None:
            self._mask_predictor = mask_head.get_layer("mask_head/mask_fcn_logits")
            self._mask_trunk = tf.keras.Model(mask_head.input, self._mask_predictor.input)
        self.built = True  # so are its parts

    def call(self, images: tf.Tensor, training: bool | None = None) -> TrunkOutputs:
        """Runs body, neck and RPN head.

        Args:
          images: [batch, height, width, 3], normalised, in the compute dtype; sides divisible by
            `config.size_divisor`.
        """
        maps, rpn_logits, rpn_deltas = self.trunk(images, training=training)
        features = dict(zip(self.config.map_levels, maps))
        return TrunkOutputs(
            {level: features[level] for level in self.config.roi_levels}, rpn_logits, rpn_deltas
        )

    def roi_features(self, rois: tf.Tensor, training: bool | None = None) -> tf.Tensor:
        """Turns pooled features into what the heads take: stage 5 of a c4 body, else nothing.

        Args:
          rois: [num_rois, resolution, resolution, channels], pooled from `TrunkOutputs.features`.
        """
        return rois if self.roi_stage is None else self.roi_stage(rois, training=training)

    def boxes(self, features: tf.Tensor, training: bool | None = None) -> BoxOutputs:
        """Classifies RoIs and refines their boxes, from what `roi_features` returns."""
        class_logits, box_deltas = self.box_head(features, training=training)
        return BoxOutputs(class_logits, tf.reshape(box_deltas, [-1, self.num_classes, 4]))

    def masks(self, features: tf.Tensor, training: bool | None = None) -> tf.Tensor:
        """Predicts masks.

        Args:
          features: of `roi_features`; with `mask_head="res5"` the same that `boxes` takes, so in
            training those of the positive RoIs are gathered instead of computed again.

        Returns:
          [num_rois, mask_size, mask_size, num_classes] logits.
        """
        return self.mask_head(features, training=training)

    def masks_of_classes(
        self, features: tf.Tensor, classes: tf.Tensor, training: bool | None = None
    ) -> tf.Tensor:
        """Predicts one mask per RoI, that of its class, without those of all other classes.

        Args:
          features: as of `masks`.
          classes: int32 [num_rois], class_id; for -1 and others out of range the result is finite
            and without meaning.

        Returns:
          [num_rois, mask_size, mask_size] logits.
        """
        x = self._mask_trunk(features, training=training)
        classes = tf.clip_by_value(classes, 0, self.num_classes - 1)
        kernel = tf.transpose(tf.cast(self._mask_predictor.kernel[0, 0], x.dtype))
        bias = tf.gather(tf.cast(self._mask_predictor.bias, x.dtype), classes)
        logits = tf.einsum("rhwc,rc->rhw", x, tf.gather(kernel, classes))
        return logits + bias[:, tf.newaxis, tf.newaxis]


def build_model(
    config: ModelConfig,
    *,
    num_classes: int,
    batch_norm: BatchNormFactory | None = None,
    remat: bool = False,
) -> MaskRCNN:
    """Builds the network of a configuration.

    Args:
      config: the network's configuration; conventions it leaves open are ours.
      num_classes: foreground classes; the background has a class logit of its own.
      batch_norm: makes each trained batch-norm layer, for example a synchronised one; see
        `NormMaker`.
      remat: recompute backbone blocks in the backward pass instead of keeping activations.

    Returns:
      The model. It takes images of any size; compiled programs are made per size.
    """
    if num_classes < 1:
        raise ValueError(f"Expected num_classes >= 1, got {num_classes}.")
    config = with_our_conventions(config)
    trunk = _build_trunk(config, batch_norm=batch_norm, remat=remat)
    channels = trunk.output[0][0].shape[-1]
    roi_stage = box_head = mask_head = None
    if not config.rpn_only:
        options = {"num_classes": num_classes, "batch_norm": batch_norm}
        box_shape = (config.box_resolution, config.box_resolution, channels)
        mask_shape = (config.mask_resolution, config.mask_resolution, channels)
        if config.box_head == "res5":
            roi_stage = build_roi_stage(channels, config, batch_norm=batch_norm)
            box_shape = roi_stage.output_shape[1:]
        if config.mask_head == "res5":
            mask_shape = box_shape
        box_head = build_box_head(box_shape, config, **options)
        if config.include_mask:
            mask_head = build_mask_head(mask_shape, config, **options)
    return MaskRCNN(
        config,
        num_classes=num_classes,
        trunk=trunk,
        roi_stage=roi_stage,
        box_head=box_head,
        mask_head=mask_head,
    )


def _build_trunk(
    config: ModelConfig, *, batch_norm: BatchNormFactory | None, remat: bool
) -> tf.keras.Model:
    images = tf.keras.Input((None, None, 3), name="images", dtype=compute_dtype())
    features = build_backbone(images, config, batch_norm=batch_norm, remat=remat)
    if config.body == "fpn":
        maps = build_neck(features, config, batch_norm=batch_norm)
    else:
        maps = [features[max(features)]]
    rpn_logits, rpn_deltas = build_rpn_head(maps, config)
    return tf.keras.Model(images, (maps, rpn_logits, rpn_deltas), name="trunk")
