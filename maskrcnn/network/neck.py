"""Feature pyramid network (arXiv 1612.03144, section 3): levels 2..5 joined top-down, and level 6.

Variables: `fpn/inner{2..5}` (1x1 lateral) and `fpn/layer{2..5}` (3x3 output), each kernel and bias,
or kernel and a norm `fpn/inner2_gn`. Levels meet exactly only if the sides of the image are
divisible by 32, which `validation.validate` asks for.
"""

from __future__ import annotations

import tensorflow as tf

from maskrcnn.config import ModelConfig
from maskrcnn.network.layers import BatchNormFactory, NormMaker, kaiming_uniform

_LEVELS = (2, 3, 4, 5)


def upsample_twice(x: tf.Tensor) -> tf.Tensor:
    """Repeats each cell of [batch, h, w, channels] 2 x 2 times.

    Written as a broadcast: the nearest-neighbour resize has no gradient under XLA on the CPU.
    """
    shape = tf.shape(x)
    cells = tf.broadcast_to(
        tf.reshape(x, [shape[0], shape[1], 1, shape[2], 1, x.shape[-1]]),
        [shape[0], shape[1], 2, shape[2], 2, x.shape[-1]],
    )
    return tf.reshape(cells, [shape[0], shape[1] * 2, shape[2] * 2, x.shape[-1]])


class TopDown(tf.keras.layers.Layer):
    """Adds the coarser level, enlarged, to a lateral map."""

    def call(self, inputs: tuple[tf.Tensor, tf.Tensor]) -> tf.Tensor:
        """Takes (lateral [batch, h, w, c], coarser [batch, h / 2, w / 2, c])."""
        lateral, coarser = inputs
        return lateral + upsample_twice(coarser)


def build_neck(
    features: dict[int, tf.Tensor],
    config: ModelConfig,
    *,
    batch_norm: BatchNormFactory | None,
) -> list[tf.Tensor]:
    """Builds the pyramid on Keras tensors.

    Args:
      features: {level: [batch, h, w, channels]} of levels 2..5.

    Returns:
      P2..P6, finest first, [batch, h, w, fpn_num_filters]. P6 is every second cell of P5.
    """
    norm = NormMaker(config, config.fpn_norm, batch_norm)

    def convolve(x: tf.Tensor, name: str, *, kernel_size: int) -> tf.Tensor:
        return norm.convolve(
            x,
            config.fpn_num_filters,
            kernel_size,
            name=name,
            initializer=kaiming_uniform(),
            has_relu=config.fpn_relu,
        )

    laterals = {
        level: convolve(features[level], f"fpn/inner{level}", kernel_size=1) for level in _LEVELS
    }
    merged = {_LEVELS[-1]: laterals[_LEVELS[-1]]}
    for level in reversed(_LEVELS[:-1]):
        add = TopDown(name=f"fpn/top_down{level}")
        merged[level] = add((laterals[level], merged[level + 1]))
    maps = [convolve(merged[level], f"fpn/layer{level}", kernel_size=3) for level in _LEVELS]
    maps.append(tf.keras.layers.MaxPool2D(1, 2, padding="same", name="fpn/pool6")(maps[-1]))
    return maps
