"""Builds the optimizer and says which variables are trained and which decay.

Keras' legacy optimizers, whose slots exist from the start and under known names. Weight decay is
not theirs: `engine.step` adds it, as a gradient for SGD and decoupled for AdamW (arXiv 1711.05101,
algorithm 2).
"""

import re
from collections.abc import Callable, Sequence

import tensorflow as tf

from engine.config.fields import ConfigError
from engine.config.settings import OptimConfig

# What decays in the reference: convolution kernels; never biases, batch norm or fusion weights.
_DECAYED = re.compile(r".*(kernel|weight)(:0)?$")


class _ScheduleOfStep(tf.keras.optimizers.schedules.LearningRateSchedule):
    """A rate that depends on the run's step, which also counts skipped updates."""

    def __init__(self, rate: Callable[[], tf.Tensor]):
        self._rate = rate

    def __call__(self, step: tf.Tensor) -> tf.Tensor:
        return self._rate()

    def get_config(self) -> dict:
        return {}


def build_optimizer(
    config: OptimConfig, rate: Callable[[], tf.Tensor], *, weights: tf.Variable
) -> tf.keras.optimizers.legacy.Optimizer:
    """Builds the optimizer with all its slots, for the flat buffer of the trained weights.

    `rate` returns the learning rate as a float32 scalar, inside or outside a graph.
    """
    schedule = _ScheduleOfStep(rate)
    if config.optimizer == "adamw":
        optimizer = tf.keras.optimizers.legacy.Adam(
            schedule, beta_1=config.momentum, beta_2=config.adam_beta2, epsilon=config.adam_epsilon
        )
    else:
        optimizer = tf.keras.optimizers.legacy.SGD(schedule, momentum=config.momentum)
    optimizer._create_all_weights([weights])
    return optimizer


def slots(
    optimizer: tf.keras.optimizers.legacy.Optimizer, weights: tf.Variable
) -> dict[str, tf.Variable]:
    """Returns the optimizer's buffers by name: momentum, or m and v."""
    return {name: optimizer.get_slot(weights, name) for name in optimizer.get_slot_names()}


def trained_variables(
    variables: Sequence[tf.Variable], *, freeze_expression: str
) -> list[tf.Variable]:
    """Returns the variables whose names do not match `freeze_expression` at their start.

    Raises:
      ConfigError: the expression matches nothing or everything, or is not a regular expression.
    """
    if not freeze_expression:
        return list(variables)
    try:
        pattern = re.compile(freeze_expression)
    except re.error as error:
        raise ConfigError(
            f"var_freeze_expr={freeze_expression!r} is not a regular expression: {error}"
        ) from error
    kept = [v for v in variables if not pattern.match(v.name)]
    if len(kept) in (0, len(variables)):
        what = "no variable" if kept else "every variable"
        examples = ", ".join(sorted({v.name.split("/")[0] for v in variables})[:12])
        raise ConfigError(
            f"var_freeze_expr={freeze_expression!r} matches {what}; names start with: {examples}"
        )
    return kept


def freeze_batch_norm(model: tf.keras.Model, *, trained: Sequence[tf.Variable]) -> None:
    """Puts batch norm whose scale and shift are frozen into inference mode: nothing of it moves."""
    trained_ids = {id(v) for v in trained}
    for layer in model.submodules:
        is_norm = isinstance(layer, tf.keras.layers.BatchNormalization)
        if is_norm and not any(id(v) in trained_ids for v in layer.trainable_variables):
            layer.trainable = False


def is_decayed(variable: tf.Variable) -> bool:
    """True for convolution and dense kernels."""
    return bool(_DECAYED.match(variable.name))
