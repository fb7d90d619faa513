"""Numeric precision: the Keras policy; the dynamic loss scale (arXiv 1710.03740, section 3.2)."""

import tensorflow as tf

from engine.config.settings import RuntimeConfig

# Keras' and the reference's values: doubled after this many good steps, halved on overflow.
GROWTH_STEPS = 2000
_SMALLEST_SCALE = 1.0


def policy_name(config: RuntimeConfig) -> str:
    """Returns the Keras policy that the settings ask for."""
    amp = config.amp
    if amp is None:  # half precision is emulated, and slow, on a CPU
        amp = bool(tf.config.get_visible_devices("GPU"))
    return config.precision or ("mixed_float16" if amp else "float32")


class LossScale:
    """Dynamic loss scale, held in variables and moved in the compiled update; 1 when off."""

    def __init__(self, initial: float, *, dynamic: bool):
        self.dynamic = dynamic
        self.value = tf.Variable(
            initial if dynamic else 1.0, trainable=False, dtype=tf.float32, name="loss_scale"
        )
        # Not int32: TensorFlow keeps such variables in host memory, out of a GPU program's reach.
        self.good_steps = tf.Variable(
            0, trainable=False, dtype=tf.int64, name="loss_scale_good_steps"
        )

    def update(self, finite: tf.Tensor) -> None:
        """Halves the scale after a non-finite gradient, doubles it after 2000 good steps."""
        if not self.dynamic:
            return
        good = tf.where(finite, self.good_steps + 1, tf.constant(0, tf.int64))
        grow = good >= GROWTH_STEPS
        grown = tf.where(grow, self.value * 2.0, self.value)
        self.value.assign(tf.where(finite, grown, tf.maximum(self.value * 0.5, _SMALLEST_SCALE)))
        self.good_steps.assign(tf.where(grow, tf.constant(0, tf.int64), good))
