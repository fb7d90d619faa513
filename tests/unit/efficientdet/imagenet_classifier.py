"""The ImageNet classifier whose trunk is the detector's backbone, to test the trunk."""

from __future__ import annotations

import tensorflow as tf

from efficientdet.network.backbone import build_backbone, scaling_of
from efficientdet.network.layers import activation_function, batch_norm_factory


def build_classifier(name: str) -> tf.keras.Model:
    """Builds it: [batch, h, w, 3] normalised images to [batch, 1000] logits."""
    act_type = "relu6" if scaling_of(name).is_lite else "swish"
    batch_norm = batch_norm_factory(None, momentum=0.99, epsilon=1e-3, frozen=False)
    images = tf.keras.Input((None, None, 3), name="images")
    x = build_backbone(images, name=name, batch_norm=batch_norm, act_type=act_type)[5]
    # 1280 channels: of b0, and of Lite whatever its width.
    x = tf.keras.layers.Conv2D(1280, 1, use_bias=False, name="top_conv2d")(x)
    x = batch_norm(name="top_bn")(x)
    x = tf.keras.layers.Activation(activation_function(act_type), name="top_act")(x)
    x = tf.keras.layers.GlobalAveragePooling2D(name="top_pool")(x)
    logits = tf.keras.layers.Dense(1000, name="top_logits", dtype="float32")(x)
    return tf.keras.Model(images, logits, name=name)
