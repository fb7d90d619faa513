"""Batch normalisation with statistics over all ranks (arXiv 1711.07240, section 3.4).

In plain operations. With one process the ordinary layer is used instead. All ranks must have equal
batch sizes. The collective cannot run inside an XLA unit on the CPU: the step compiles its forward
pass only where this layer is not used.
"""

from __future__ import annotations

import tensorflow as tf

from engine.ranks import distributed


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
        # Every rank's own mean and variance, joined by the law of total variance: a mean of squares
        # less the square of a mean would lose all digits where the mean is large.
        own = tf.stack(tf.nn.moments(values, axes))
        means, variances = tf.unstack(distributed.stack_in_graph(own), axis=1)
        mean, variance_of_means = tf.nn.moments(means, [0])
        variance = tf.reduce_mean(variances, 0) + variance_of_means
        for moving, new in ((self.moving_mean, mean), (self.moving_variance, variance)):
            if self.fused and moving is self.moving_variance:
                new *= self._unbiased(values)
            moving.assign_sub((1.0 - self.momentum) * (moving - new))
        scale = tf.math.rsqrt(variance + self.epsilon) * self.gamma
        return tf.cast((values - mean) * scale + self.beta, inputs.dtype)

    def _unbiased(self, values: tf.Tensor) -> tf.Tensor:
        """Returns n / (n - 1), by which the fused kernel corrects the variance it stores."""
        count = tf.cast(tf.size(values) // values.shape[-1] * distributed.size(), tf.float32)
        return count / tf.maximum(count - 1.0, 1.0)
