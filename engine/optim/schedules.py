"""Learning-rate schedules: pure functions of the step, in float32, fit for a compiled update.

Steps are counted from 0; all lengths are in steps. The cosine is that of SGDR (arXiv 1608.03983,
eq. 5) without restarts, measured from the end of the warm-up, so that it is continuous there.
"""

import math

import tensorflow as tf

from engine.config.settings import OptimConfig
from engine.optim.plan import StepPlan


def learning_rate_at(
    step: tf.Tensor,
    config: OptimConfig,
    plan: StepPlan,
    *,
    total_steps: tf.Tensor,
    warmup_steps: tf.Tensor,
) -> tf.Tensor:
    """Returns the learning rate of a step, float32 scalar.

    Args:
      step: integer scalar.
      config: says how the rate climbs and decays.
      plan: the rate at the end of the warm-up, and where epochs end.
      total_steps: steps that the schedule spans, of a timed run other than the plan's; the rate
        keeps its end value afterwards.
      warmup_steps: length of the warm-up.
    """
    base = plan.learning_rate
    step = tf.cast(step, tf.float32)
    total = tf.cast(total_steps, tf.float32)
    warm = tf.cast(warmup_steps, tf.float32)
    climb = step / tf.maximum(warm, 1.0) if config.lr_warmup_method == "linear" else 0.0
    warmup = config.lr_warmup_init + climb * (base - config.lr_warmup_init)
    progress = tf.clip_by_value((step - warm) / tf.maximum(total - warm, 1.0), 0.0, 1.0)
    if config.lr_decay_method == "cosine":
        decayed = 0.5 * base * (1.0 + tf.cos(math.pi * progress))
    elif config.lr_decay_method == "polynomial":
        decayed = base * (1.0 - progress) ** config.lr_poly_power
    else:
        decayed = tf.constant(base, tf.float32)
        for epoch in config.lr_step_epochs:
            share = epoch * plan.steps_per_epoch / plan.total_steps
            # Half a step of slack: a share of the total is seldom exact in float32.
            decayed *= tf.where(step >= share * total - 0.5, config.lr_step_factor, 1.0)
    return tf.where(step < warm, warmup, decayed)
