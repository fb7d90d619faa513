"""The RPN head, and the box and mask heads on RoI features.

Names are Detectron's: `rpn/{conv,conv2,cls_logits,bbox_pred}`,
`box_head/{fc6,fc7,cls_score,bbox_pred}`, `box_head/conv{1..4}`, `box_head/layer4/...` (stage 5 of a
c4 body on RoI features), `mask_head/{mask_fcn1..4,conv5_mask,mask_fcn_logits}`; norms are
`<layer>_gn` or `<layer>_bn`.

What surprises a newcomer: the background is the last of the class logits, and there are box deltas
and masks for foreground classes only. Deltas are (ty, tx, th, tw), anchor- or class-major.
"""

from __future__ import annotations

import dataclasses
import math

import tensorflow as tf

from maskrcnn.config import ModelConfig
from maskrcnn.network.backbone import residual_stage
from maskrcnn.network.convolution import Conv2D
from maskrcnn.network.layers import (
    BatchNormFactory,
    NormMaker,
    compute_dtype,
    kaiming_normal_fan_out,
    kaiming_uniform,
    normal,
    relu,
)

# The references draw the mask predictor with deviation sqrt(2 / classes), which was meant for
# these: with one or two classes the first losses would be ten times those of a coin.
_COCO_CLASSES = 80


def build_rpn_head(
    maps: list[tf.Tensor], config: ModelConfig
) -> tuple[list[tf.Tensor], list[tf.Tensor]]:
    """Builds the region proposal head (arXiv 1506.01497, section 3.1), shared by all maps.

    Args:
      maps: the maps that carry anchors, [batch, h, w, channels], equal channels.

    Returns:
      Objectness logits [batch, h, w, num_anchors_per_cell] and deltas
      [batch, h, w, num_anchors_per_cell * 4] per map.
    """
    num_anchors = config.num_anchors_per_cell
    filters = config.rpn_conv_dim or maps[0].shape[-1]
    names = ["conv", *(f"conv{index + 2}" for index in range(config.rpn_num_convs - 1))]
    *convs, classify, regress = [
        Conv2D(
            filters,
            size,
            padding="same",
            activation=activation,
            kernel_initializer=normal(0.01),
            name=f"rpn/{name}",
        )
        for name, filters, size, activation in (
            *((name, filters, 3, relu) for name in names),
            ("cls_logits", num_anchors, 1, None),
            ("bbox_pred", num_anchors * 4, 1, None),
        )
    ]
    hidden = maps
    for conv in convs:
        hidden = [conv(x) for x in hidden]
    return [classify(x) for x in hidden], [regress(x) for x in hidden]


def _dense_norm_relu(x: tf.Tensor, units: int, *, name: str, norm: NormMaker) -> tf.Tensor:
    layer = tf.keras.layers.Dense(
        units, use_bias=not norm.kind, kernel_initializer=kaiming_uniform(), name=name
    )
    return norm.finish(layer(x), name)


def build_roi_stage(
    channels: int, config: ModelConfig, *, batch_norm: BatchNormFactory | None
) -> tf.keras.Model:
    """Builds stage 5 for RoI features, which the box and mask heads of a c4 body share.

    Args:
      channels: of the RoI features.

    Returns:
      Model from [num_rois, box_resolution, box_resolution, channels] to
      [num_rois, ceil(box_resolution / 2), ceil(box_resolution / 2), 2048].
    """
    side = config.box_resolution
    rois = tf.keras.Input((side, side, channels), name="roi_features", dtype=compute_dtype())
    norm = NormMaker(config, config.backbone_norm, batch_norm)
    features = residual_stage(rois, config, 4, norm=norm, prefix="box_head")
    return tf.keras.Model(rois, features, name="roi_stage")


def build_box_head(
    shape: tuple[int, int, int],
    config: ModelConfig,
    *,
    num_classes: int,
    batch_norm: BatchNormFactory | None,
) -> tf.keras.Model:
    """Builds the box head (arXiv 1612.03144, section 4.2; 4conv1fc: arXiv 1803.08494, section 5.2).

    Args:
      shape: (height, width, channels) of RoI features; of `build_roi_stage`'s output for res5.
      num_classes: foreground classes.

    Returns:
      Model from [num_rois, *shape] to (class logits [num_rois, num_classes + 1], background last;
      box deltas [num_rois, num_classes * 4], class-major).
    """
    x = rois = tf.keras.Input(shape, name="box_features", dtype=compute_dtype())
    norm = NormMaker(config, config.box_head_norm, batch_norm)
    if config.box_head == "res5":
        x = tf.keras.layers.GlobalAveragePooling2D(name="box_head/pool5")(x)
    else:
        if config.box_head == "conv":
            for index in range(config.box_num_convs):
                name = f"box_head/conv{index + 1}"
                x = norm.convolve(x, config.box_conv_dim, 3, name=name, initializer=normal(0.01))
        x = tf.keras.layers.Flatten(name="box_head/flatten")(x)
        # After convolutions the dense layer has no norm: Detectron's and torchvision's alike.
        of_dense = norm if config.box_head == "mlp" else dataclasses.replace(norm, kind="")
        x = _dense_norm_relu(x, config.box_mlp_dim, name="box_head/fc6", norm=of_dense)
        if config.box_head == "mlp":
            x = _dense_norm_relu(x, config.box_mlp_dim, name="box_head/fc7", norm=norm)
    class_logits = tf.keras.layers.Dense(
        num_classes + 1, kernel_initializer=normal(0.01), name="box_head/cls_score"
    )(x)
    box_deltas = tf.keras.layers.Dense(
        num_classes * 4, kernel_initializer=normal(0.001), name="box_head/bbox_pred"
    )(x)
    return tf.keras.Model(rois, (class_logits, box_deltas), name="box_head")


def build_mask_head(
    shape: tuple[int, int, int],
    config: ModelConfig,
    *,
    num_classes: int,
    batch_norm: BatchNormFactory | None,
) -> tf.keras.Model:
    """Builds the mask head (arXiv 1703.06870, section 3 and figure 4); see `build_box_head`.

    Returns:
      Model from [num_rois, *shape] to mask logits [num_rois, 2 * height, 2 * width, num_classes].
    """
    x = rois = tf.keras.Input(shape, name="mask_features", dtype=compute_dtype())
    norm = NormMaker(config, config.mask_head_norm, batch_norm)
    if config.mask_head == "fcn":
        for index, filters in enumerate(config.mask_conv_dims):
            name = f"mask_head/mask_fcn{index + 1}"
            x = norm.convolve(x, filters, 3, name=name, initializer=kaiming_normal_fan_out())
    x = tf.keras.layers.Conv2DTranspose(
        config.mask_deconv_dim,
        2,
        2,
        activation=relu,
        kernel_initializer=kaiming_normal_fan_out(),
        name="mask_head/conv5_mask",
    )(x)
    logits = Conv2D(
        num_classes,
        1,
        kernel_initializer=normal(math.sqrt(2.0 / max(num_classes, _COCO_CLASSES))),
        name="mask_head/mask_fcn_logits",
    )(x)
    return tf.keras.Model(rois, logits, name="mask_head")
