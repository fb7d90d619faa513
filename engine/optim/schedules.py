"""Learning-rate schedules: pure functions of the step, in float32, fit for a compiled update.

Steps are counted from 0; all lengths are in steps. The cosine is that of SGDR (arXiv 1608.03983,
eq. 5) without restarts, measured from the end of the warm-up, so that it is continuous there.
"""

import math
from collections.abc import Sequence

import tensorflow as tf

METHODS = ("cosine", "stepwise", "polynomial")
WARMUP_METHODS = ("linear", "constant")


def learning_rate_at(
    step: tf.Tensor,
    total_steps: tf.Tensor,
    *,
    method: str,
    base: float,
    warmup_init: float,
    warmup_steps: tf.Tensor,
    warmup_method: str = "linear",
    drop_shares: Sequence[float] = (),
    drop_factor: float = 0.1,
    power: float = 0.9,
) -> tf.Tensor:
    """Returns the learning rate of a step.

    Args:
      step: integer scalar.
      total_steps: steps that the schedule spans; the rate keeps its end value afterwards.
      method: one of `METHODS`.
      base: rate at the end of the warm-up.
      warmup_init: rate at step 0.
      warmup_steps: length of the warm-up.
      warmup_method: one of `WARMUP_METHODS`; constant: warmup_init up to the end of the warm-up.
      drop_shares: 'stepwise': shares of total_steps (0..1) where the rate is multiplied by
        drop_factor.
      drop_factor: 'stepwise': the factor.
      power: 'polynomial': exponent of the share that is left.

    Returns:
      float32 scalar.

    Raises:
      ValueError: unknown method, of warm-up or decay.
    """
    step = tf.cast(step, tf.float32)
    total = tf.cast(total_steps, tf.float32)
    warm = tf.cast(warmup_steps, tf.float32)
    if warmup_method not in WARMUP_METHODS:
        raise ValueError(f"lr_warmup_method: expected {WARMUP_METHODS}, got {warmup_method!r}")
    climb = step / tf.maximum(warm, 1.0) if warmup_method == "linear" else 0.0
    warmup = warmup_init + climb * (base - warmup_init)
    progress = tf.clip_by_value((step - warm) / tf.maximum(total - warm, 1.0), 0.0, 1.0)
    if method == "cosine":
        decayed = 0.5 * base * (1.0 + tf.cos(math.pi * progress))
    elif method == "polynomial":
        decayed = base * (1.0 - progress) ** power
    elif method == "stepwise":
        decayed = tf.constant(base, tf.float32)
        for share in drop_shares:
            # Half a step of slack: a share of the total is seldom exact in float32.
            decayed *= tf.where(step >= share * total - 0.5, drop_factor, 1.0)
    else:
        raise ValueError(f"lr_decay_method: expected one of {METHODS}, got {method!r}")
    return tf.where(step < warm, warmup, decayed)
