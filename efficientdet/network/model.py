"""The bare EfficientDet network: normalised images in, logits and deltas per level out.

Losses, anchors and non-maximum suppression wrap this model and are not part of it. The precision is
that of the Keras policy in force while the model is built.
"""

from __future__ import annotations

import tensorflow as tf

from efficientdet.config import ModelConfig
from efficientdet.network.backbone import build_backbone
from efficientdet.network.heads import build_heads
from efficientdet.network.layers import BatchNormFactory, batch_norm_factory
from efficientdet.network.neck import build_neck


def build_model(
    config: ModelConfig,
    *,
    num_classes: int,
    batch_norm: BatchNormFactory | None = None,
    remat: bool = False,
) -> tf.keras.Model:
    """Builds the network of a configuration.

    Args:
      config: its `image_size` fixes the input size.
      num_classes: foreground classes; there is no background channel.
      batch_norm: called with name, momentum and epsilon to make each batch-norm layer, for
        example a synchronised one; None is the plain Keras layer. Ignored where
        `config.is_training_bn` is False.
      remat: recompute backbone blocks in the backward pass instead of keeping activations.

    Returns:
      Model from [batch, height, width, 3] normalised images to
      {"class_logits": list of [batch, h, w, anchors_per_cell * num_classes],
       "box_deltas": list of [batch, h, w, anchors_per_cell * 4]}, finest level first, in the
      compute dtype of the policy. Call it inside `layers.drop_connect_seed` while training.
    """
    if num_classes < 1:
        raise ValueError(f"Expected num_classes >= 1, got {num_classes}.")
    make_norm = batch_norm_factory(
        batch_norm,
        momentum=config.bn_momentum,
        epsilon=config.bn_epsilon,
        frozen=not config.is_training_bn,
    )
    compute_dtype = tf.keras.mixed_precision.global_policy().compute_dtype
    images = tf.keras.Input((*config.image_size, 3), name="images", dtype=compute_dtype)
    features = build_backbone(
        images,
        name=config.backbone_name,
        batch_norm=make_norm,
        act_type=config.act_type,
        survival_prob=config.survival_prob,
        double_normalize=config.double_normalize,
        is_symmetric=config.backbone_padding == "symmetric",
        remat=remat,
    )
    maps = build_neck(features, config, batch_norm=make_norm)
    class_logits, box_deltas = build_heads(
        maps, config, num_classes=num_classes, batch_norm=make_norm
    )
    outputs = {"class_logits": class_logits, "box_deltas": box_deltas}
    return tf.keras.Model(images, outputs, name=config.name)
