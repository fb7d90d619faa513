"""Batch norm that never learns.

What surprises a newcomer: it is a layer of its own and not batch norm with `trainable = False`. Its
four vectors are constants of the graph, so no activation has to be kept for their gradients, and
nothing that a surrounding model or optimizer does can move them.
"""

from __future__ import annotations

import tensorflow as tf


class FrozenBatchNorm(tf.keras.layers.Layer):
    """Batch normalisation by stored statistics, as one multiply-add per channel.

    Variables: gamma, beta, moving_mean, moving_variance, [channels] float32, none trainable.
    """

    def __init__(self, *, epsilon: float, name: str) -> None:
        """Takes what is added to the variance."""
        super().__init__(name=name, trainable=False)
        self.epsilon = epsilon

    def build(self, input_shape: tf.TensorShape) -> None:
        """Creates the constants."""
        for name in ("gamma", "beta", "moving_mean", "moving_variance"):
            add_vector(self, name, input_shape[-1], trainable=False)
        super().build(input_shape)

    def call(self, inputs: tf.Tensor, training: bool | None = None) -> tf.Tensor:
        """Normalises [..., channels] in float32; the result has the inputs' dtype."""
        del training
        scale, shift = self.scale_and_shift()
        return tf.cast(tf.cast(inputs, tf.float32) * scale + shift, inputs.dtype)

    def scale_and_shift(self) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns what channels are multiplied by, and what is added then; float32 [channels]."""
        scale = self.gamma * tf.math.rsqrt(self.moving_variance + self.epsilon)
        return scale, self.beta - self.moving_mean * scale


def add_vector(layer: tf.keras.layers.Layer, name: str, channels: int, *, trainable: bool) -> None:
    """Makes a float32 variable [channels] an attribute: 1 to multiply or divide by, else 0."""
    weight = layer.add_weight(
        name,
        [channels],
        dtype=tf.float32,
        initializer="ones" if name in ("gamma", "moving_variance") else "zeros",
        trainable=trainable,
        experimental_autocast=False,
    )
    setattr(layer, name, weight)
