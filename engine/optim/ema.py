"""Moving averages of the weights, on the flat buffers, inside the compiled update.

All model weights are averaged, batch-norm statistics and frozen weights beside the trained ones.
The decay of update t (1-based) is min(limit, (1 + t) / (10 + t)), so that the average forgets the
initial weights quickly. The reference starts its averages at zero, ours start at the initial
weights; after ten updates less than 1e-4 of either is left. The arithmetic is that of
tensorflow-addons' MovingAverage, which no longer exists for today's TensorFlow; a test compares.
"""

from __future__ import annotations

import tensorflow as tf


def decay_of_update(update: tf.Tensor, *, limit: float) -> tf.Tensor:
    """Returns the decay (float32 scalar, up to `limit`) of an update, counted from 1."""
    update = tf.cast(update, tf.float32)
    return tf.minimum(limit, (1.0 + update) / (10.0 + update))


def move_average(average: tf.Variable, value: tf.Tensor | tf.Variable, decay: tf.Tensor) -> None:
    """Moves an average towards a value: average = decay * average + (1 - decay) * value."""
    average.assign_sub((average - value) * (1.0 - decay))
