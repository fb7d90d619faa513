"""Batch norm, activation and squeeze-and-excitation as one function, for programs of XLA.

What bounds a training step on a GPU is the reading and writing of maps. Differentiated operation by
operation, a map's gradient before the activation is written and read again twice, and so are
exponentials and products that cost less to compute anew. Here every pass reads the map and its
gradient and writes at most one map (docs/performance.md). What surprises a newcomer: the barriers.
Without them XLA finds equal terms of several passes, computes them once, and so writes them to
memory after all.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import tensorflow as tf

from engine.start.compiled import is_compiled, separate

Activation = Callable[[tf.Tensor], tf.Tensor]
# From the means [batch, channels] and its weights to the gates [batch, channels].
Excitation = Callable[..., tf.Tensor]


def norm_activation(
    x: tf.Tensor,
    gamma: tf.Tensor,
    beta: tf.Tensor,
    weights: Sequence[tf.Tensor] = (),
    *,
    epsilon: float,
    activation: Activation,
    excitation: Excitation | None = None,
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Normalises by the batch's statistics (arXiv 1502.03167, algorithm 1) and activates.

    Args:
      x: [batch, height, width, channels], a static shape; any float dtype.
      gamma, beta: float32 [channels].
      weights: of `excitation`.
      epsilon: added to the variance.
      activation: of single elements; computed in float32.
      excitation: squeeze-and-excitation (arXiv 1709.01507, section 3): what the activated map is
        multiplied by, from its means; None: nothing.

    Returns:
      The map in the dtype of x; mean and (biased) variance, float32 [channels], without gradient.
    """
    batch, height, width, channels = x.shape
    pixels = float(height * width)
    count = batch * pixels

    def whole(values: tf.Tensor) -> tf.Tensor:
        return tf.cast(values, tf.float32)

    def wide(values: tf.Tensor) -> tf.Tensor:
        return tf.reshape(whole(values), [batch, 1, 1, channels])

    @tf.custom_gradient
    def apply(
        x: tf.Tensor, gamma: tf.Tensor, beta: tf.Tensor, *weights: tf.Tensor
    ) -> tuple[tuple[tf.Tensor, tf.Tensor, tf.Tensor], Callable[..., tuple]]:
        mean = tf.reduce_mean(whole(x), (0, 1, 2))
        variance = tf.reduce_mean(tf.square(whole(x)), (0, 1, 2)) - tf.square(mean)
        variance = tf.nn.relu(variance)  # rounding may leave less than nothing
        inverse = tf.math.rsqrt(variance + epsilon)
        scale = gamma * inverse
        shift = beta - mean * scale

        def activated(x: tf.Tensor) -> tf.Tensor:
            return activation(whole(x) * scale + shift)

        def before_activation(x: tf.Tensor, upstream: tf.Tensor, *gating: tf.Tensor) -> tf.Tensor:
            """Returns the gradient by the normalised map; `gating`: gates, gradient by means."""
            upstream = whole(upstream)
            if gating:
                upstream = upstream * wide(gating[0]) + wide(gating[1]) / pixels
            normalised = whole(x) * scale + shift
            with tf.GradientTape() as tape:
                tape.watch(normalised)
                values = activation(normalised)
            return tape.gradient(values, normalised, output_gradients=upstream)

        pooled = gate = None
        if excitation is None:
            out = activated(x)
        else:
            pooled = tf.cast(tf.reduce_mean(activated(x), (1, 2)), x.dtype)
            gate = excitation(pooled, *weights)
            x_again, gate_again = separate(1, x, gate)
            out = activated(x_again) * wide(gate_again)

        def gradient(upstream: tf.Tensor, *_: tf.Tensor) -> tuple:
            gating: tuple = ()
            of_weights: Sequence[tf.Tensor] = ()
            if excitation is not None:
                x_read, up_read = separate(2, x, upstream)
                of_gate = tf.reduce_sum(whole(up_read) * activated(x_read), (1, 2))
                with tf.GradientTape() as tape:
                    tape.watch([pooled, *weights])
                    gates = excitation(pooled, *weights)
                of_pooled, *of_weights = tape.gradient(
                    gates, [pooled, *weights], output_gradients=tf.cast(of_gate, gates.dtype)
                )
                gating = gate, of_pooled
            # XLA makes one pass of these two sums, where their terms are not shared.
            x_read, *read = separate(3, x, upstream, *gating)
            of_beta = tf.reduce_sum(before_activation(x_read, *read), (0, 1, 2))
            x_read, *read = separate(4, x, upstream, *gating)
            centred = whole(x_read) - mean
            of_gamma = tf.reduce_sum(before_activation(x_read, *read) * centred, (0, 1, 2))
            of_gamma *= inverse
            x_read, offset, steepness, *read = separate(
                5, x, of_beta / count, of_gamma * inverse / count, upstream, *gating
            )
            slope = before_activation(x_read, *read)
            of_x = scale * (slope - offset - (whole(x_read) - mean) * steepness)
            return tf.cast(of_x, x.dtype), of_gamma, of_beta, *of_weights

        return (tf.cast(out, x.dtype), mean, variance), gradient

    return apply(x, gamma, beta, *weights)


class NormActivation:
    """Mixed into a layer of batch norm: it activates too; under XLA, in training, as one function.

    Made by `with_activation`.
    """

    norm_class: type[tf.keras.layers.Layer]

    def __init__(self, *, activation: Activation = tf.identity, **kwargs: object) -> None:
        """Takes the activation and the arguments of Keras' layer."""
        super().__init__(**kwargs)
        self.activation = activation

    def call(self, inputs: tf.Tensor, training: bool | None = None, **kwargs: object) -> tf.Tensor:
        """Normalises and activates [batch, ..., channels]."""
        if self.is_merged(inputs, training):
            return self.merged(inputs)
        return self.activation(super().call(inputs, training=training, **kwargs))

    def is_merged(self, inputs: tf.Tensor, training: bool | None) -> bool:
        """Tells whether `merged` can take the place of the layer's own operations.

        Not where statistics are others than the batch's own: frozen or synchronised.
        """
        return (
            bool(training)
            and is_compiled()
            and self.trainable
            and self.norm_class is tf.keras.layers.BatchNormalization
            and self.activation is not tf.identity
            and inputs.shape.is_fully_defined()
        )

    def merged(
        self,
        inputs: tf.Tensor,
        weights: Sequence[tf.Tensor] = (),
        *,
        excitation: Excitation | None = None,
    ) -> tf.Tensor:
        """Applies `norm_activation` and moves the statistics; arguments as there."""
        result, mean, variance = norm_activation(
            inputs,
            tf.convert_to_tensor(self.gamma),
            tf.convert_to_tensor(self.beta),
            weights,
            epsilon=self.epsilon,
            activation=self.activation,
            excitation=excitation,
        )
        count = float(math.prod(inputs.shape[:-1]))
        unbiased = count / max(count - 1.0, 1.0)  # as the layer's own kernel does
        for moving, new in (
            (self.moving_mean, mean),
            (self.moving_variance, variance * unbiased),
        ):
            moving.assign_sub((moving - new) * (1.0 - self.momentum))
        return result


def with_activation(norm_class: type[tf.keras.layers.Layer]) -> type[tf.keras.layers.Layer]:
    """Makes a class of layers that normalise as `norm_class` does and take an `activation`."""
    return type(norm_class.__name__, (NormActivation, norm_class), {"norm_class": norm_class})
