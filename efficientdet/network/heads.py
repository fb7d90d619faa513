"""Class and box nets: convolutions shared by all levels, batch normalisation per level.

Outputs are anchor-major: channel `anchor * num_outputs + output`. Names are those of google/automl:
`class_net/class-0`, `class_net/class-0-bn-3`, `class_net/class-predict`, `box_net/box-...`.
"""

from __future__ import annotations

import math

import tensorflow as tf

from efficientdet.config import ModelConfig
from efficientdet.network.convolutions import Conv2D, SeparableConv2D
from efficientdet.network.layers import (
    BatchNormFactory,
    DropConnect,
    activation_function,
    is_stochastic,
)

_PRIOR_PROBABILITY = 0.01  # focal loss, arXiv 1708.02002, section 4.1
CLASS_PREDICTOR = "class_net/class-predict"


def _conv(name: str, filters: int, *, separable: bool, bias: float = 0.0) -> tf.keras.layers.Layer:
    """Makes one 3x3 convolution with initialisers of its own.

    Keras gives equal values to layers that share one initialiser object.
    """
    bias_initializer = tf.keras.initializers.Constant(bias)
    if separable:
        return SeparableConv2D(
            filters,
            3,
            padding="same",
            depthwise_initializer=tf.keras.initializers.VarianceScaling(),
            pointwise_initializer=tf.keras.initializers.VarianceScaling(),
            bias_initializer=bias_initializer,
            name=name,
        )
    return Conv2D(
        filters,
        3,
        padding="same",
        kernel_initializer=tf.keras.initializers.RandomNormal(stddev=0.01),
        bias_initializer=bias_initializer,
        name=name,
    )


def build_head(
    maps: list[tf.Tensor],
    config: ModelConfig,
    *,
    batch_norm: BatchNormFactory,
    kind: str,
    outputs_per_anchor: int,
    predictor_bias: float = 0.0,
) -> list[tf.Tensor]:
    """Builds one head on the pyramid.

    Args:
      maps: [batch, h, w, channels] of min_level..max_level.
      config, batch_norm: as of `build_model`.
      kind: `class` or `box`; names the layers.
      outputs_per_anchor: number of classes, or 4.
      predictor_bias: initial bias of the last convolution.

    Returns:
      [batch, h, w, anchors_per_cell * outputs_per_anchor] per level.
    """
    scope = f"{kind}_net/{kind}"
    separable = config.separable_conv
    activation = activation_function(config.act_type)
    maps = list(maps)
    for repeat in range(config.box_class_repeats):
        conv = _conv(f"{scope}-{repeat}", config.fpn_num_filters, separable=separable)
        for index, level in enumerate(range(config.min_level, config.max_level + 1)):
            name = f"{scope}-{repeat}-bn-{level}"
            x = batch_norm(name=name, activation=activation)(conv(maps[index]))
            if repeat > 0 and config.head_survival_prob:
                if is_stochastic(config.head_survival_prob):
                    x = DropConnect(config.head_survival_prob, name=f"{name}/drop_connect")(x)
                x = tf.keras.layers.Add(name=f"{name}/add")([x, maps[index]])
            maps[index] = x
    predictor = _conv(
        f"{scope}-predict",
        config.num_anchors_per_cell * outputs_per_anchor,
        separable=separable,
        bias=predictor_bias,
    )
    return [predictor(x) for x in maps]


def build_heads(
    maps: list[tf.Tensor], config: ModelConfig, *, num_classes: int, batch_norm: BatchNormFactory
) -> tuple[list[tf.Tensor], list[tf.Tensor]]:
    """Builds both heads.

    Returns:
      Class logits and box deltas (ty, tx, th, tw) per level of `maps`, min_level..max_level. All
      classes start at probability 0.01.
    """
    class_logits = build_head(
        maps,
        config,
        batch_norm=batch_norm,
        kind="class",
        outputs_per_anchor=num_classes,
        predictor_bias=-math.log((1.0 - _PRIOR_PROBABILITY) / _PRIOR_PROBABILITY),
    )
    box_deltas = build_head(maps, config, batch_norm=batch_norm, kind="box", outputs_per_anchor=4)
    return class_logits, box_deltas
