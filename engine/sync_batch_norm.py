"""Batch normalisation with statistics over all ranks (arXiv 1711.07240, section 3.4).

In plain operations. With one process the ordinary layer is used instead. Mean and mean of squares
of every rank are averaged, so all ranks must have equal batch sizes. The collective cannot run
inside an XLA unit on the CPU: the step compiles its forward pass only where this layer is not used.
"""

from __future__ import annotations

import tensorflow as tf

from engine import distributed


class SyncBatchNormalization(tf.keras.layers.BatchNormalization):
    """Keras batch normalisation whose batch statistics are those of the global batch."""

    def call(self, inputs: tf.Tensor, training: bool | None = None, **kwargs: object) -> tf.Tensor:
        """Normalises over batch, height and width of all ranks while training.

        Args:
          inputs: [batch, ..., channels], any float dtype; the same batch on every rank.
          training: False uses the moving statistics.
          **kwargs: of the ordinary layer, for inference.
        """
        if not training or not self.trainable:
            return super().call(inputs, training=False, **kwargs)
        values = tf.cast(inputs, tf.float32)
        axes = list(range(len(inputs.shape) - 1))
        moments = tf.stack([tf.reduce_mean(values, axes), tf.reduce_mean(tf.square(values), axes)])
        mean, mean_square = tf.unstack(distributed.reduce_mean_in_graph(moments))
        variance = tf.maximum(mean_square - tf.square(mean), 0.0)
        for moving, new in ((self.moving_mean, mean), (self.moving_variance, variance)):
            if self.fused and moving is self.moving_variance:
                new *= self._unbiased(values)
            moving.assign_sub((1.0 - self.momentum) * (moving - tf.stop_gradient(new)))
        scale = tf.math.rsqrt(variance + self.epsilon) * self.gamma
        return tf.cast(values * scale + (self.beta - mean * scale), inputs.dtype)

    def _unbiased(self, values: tf.Tensor) -> tf.Tensor:
        """Returns n / (n - 1), by which the fused kernel corrects the variance it stores."""
        count = tf.cast(tf.size(values) // values.shape[-1] * distributed.size(), tf.float32)
        return count / tf.maximum(count - 1.0, 1.0)
