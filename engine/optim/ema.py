"""Moving average of the weights. The only module that imports tensorflow-addons.

All model weights are averaged: the trained ones by tensorflow-addons' MovingAverage as the
optimizer applies its gradients, batch-norm statistics and frozen weights beside it. The decay of
update t (1-based) is min(decay, (1 + t) / (10 + t)), so that the average forgets the initial
weights quickly. The reference starts its averages at zero, ours start at the initial weights; after
ten updates less than 1e-4 of either is left.
"""

import warnings

import tensorflow as tf

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # the package's end-of-life notice: the pin is deliberate
    import tensorflow_addons as tfa


class AveragingOptimizer(tfa.optimizers.MovingAverage):
    """MovingAverage whose decay counts from the update being made; averages others beside it."""

    def _get_decay(self, step: tf.Tensor) -> tf.Tensor:
        update = tf.cast(step, tf.float32) + 1.0
        return tf.minimum(
            self._get_hyper("average_decay", tf.float32), (1.0 + update) / (10.0 + update)
        )

    def average_towards(self, average: tf.Variable, value: tf.Tensor) -> None:
        """Moves an average that the optimizer does not own; call it after `apply_gradients`."""
        self.average_op(value, average, {"tfa_ma_decay": self._get_decay(self.iterations - 1)})


def with_averages(
    optimizer: tf.keras.optimizers.legacy.Optimizer, *, decay: float
) -> AveragingOptimizer:
    """Wraps a legacy optimizer so that it keeps averages of the weights."""
    return AveragingOptimizer(optimizer, average_decay=decay, name="MovingAverage")
