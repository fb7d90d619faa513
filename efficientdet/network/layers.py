"""Small pieces that backbone, neck and heads share: activations, batch norm, stochastic depth.

All Keras access of the model goes through `tf.keras`, which `keras_choice` makes Keras 2.
What surprises a newcomer: the randomness of stochastic depth is an argument of the step, given by
`drop_connect_seed`, not a state of the model. Only so a recomputed or resumed step repeats itself.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
import zlib
from collections.abc import Callable, Iterator

import tensorflow as tf

from detector.frozen_norm import FrozenBatchNorm
from efficientdet.network.norm_activation import with_activation
from engine.config.fields import look_up

BatchNormFactory = Callable[..., tf.keras.layers.Layer]

ACTIVATIONS: dict[str, Callable[[tf.Tensor], tf.Tensor]] = {
    "swish": tf.nn.silu,
    "silu": tf.nn.silu,
    "relu": tf.nn.relu,
    "relu6": tf.nn.relu6,
    "hswish": lambda x: x * tf.nn.relu6(x + 3.0) * (1.0 / 6.0),
    "mish": lambda x: x * tf.math.tanh(tf.math.softplus(x)),
    "identity": tf.identity,
}

_step_seed: contextvars.ContextVar[tf.Tensor | None] = contextvars.ContextVar(
    "drop_connect_seed", default=None
)


def activation_function(act_type: str) -> Callable[[tf.Tensor], tf.Tensor]:
    """Finds an activation by its hyperparameter name."""
    return look_up(act_type, ACTIVATIONS, what="act_type")


def batch_norm_factory(
    factory: type[tf.keras.layers.Layer] | None, *, momentum: float, epsilon: float, frozen: bool
) -> BatchNormFactory:
    """Fixes momentum and epsilon of batch-norm layers: builders give name and activation.

    Args:
      factory: class of layers; None is the plain Keras layer.
      frozen: ignore `factory` and build layers that never leave inference mode.
    """
    if frozen:
        return functools.partial(with_activation(FrozenBatchNorm), epsilon=epsilon)
    norm_class = with_activation(factory or tf.keras.layers.BatchNormalization)
    return functools.partial(norm_class, momentum=momentum, epsilon=epsilon)


@contextlib.contextmanager
def drop_connect_seed(seed: tf.Tensor | None) -> Iterator[None]:
    """Gives the stochastic-depth layers called inside their randomness for one step.

    Args:
      seed: int32 [2]; make it from the run's seed, the step and the rank. Without it, or this
        context, a model called with `training=True` draws from TensorFlow's stateful generator.
    """
    token = _step_seed.set(seed)
    try:
        yield
    finally:
        _step_seed.reset(token)


def fresh_drop_connect_seed() -> tf.Tensor:
    """Returns the seed of the surrounding `drop_connect_seed`, or a random one; int32 [2]."""
    seed = _step_seed.get()
    if seed is not None:
        return seed
    return tf.random.uniform([2], maxval=2**31 - 1, dtype=tf.int32)


def _mixed(bits: tf.Tensor) -> tf.Tensor:
    """Spreads every input bit over all 32 (finaliser of MurmurHash3, by A. Appleby)."""
    bits = bits ^ tf.bitwise.right_shift(bits, tf.constant(16, tf.uint32))
    bits = bits * tf.constant(0x85EBCA6B, tf.uint32)
    bits = bits ^ tf.bitwise.right_shift(bits, tf.constant(13, tf.uint32))
    bits = bits * tf.constant(0xC2B2AE35, tf.uint32)
    return bits ^ tf.bitwise.right_shift(bits, tf.constant(16, tf.uint32))


def hashed_uniform(seed: tf.Tensor, count: int | tf.Tensor, *, salt: str) -> tf.Tensor:
    """Draws uniform numbers as a hash of seed, salt and position.

    TensorFlow's stateless generators give other numbers under XLA than without; these do not.

    Args:
      seed: int32 [2].
      salt: name that makes the draws of one step independent of one another.

    Returns:
      [count] in [0, 1), multiples of 2**-24.
    """
    words = tf.bitcast(seed, tf.uint32)
    salted = tf.constant(zlib.crc32(salt.encode()), tf.uint32)
    bits = _mixed(_mixed(_mixed(words[0]) ^ words[1]) ^ salted)
    bits = _mixed(tf.cast(tf.range(count), tf.uint32) ^ bits)
    return tf.cast(tf.bitwise.right_shift(bits, tf.constant(8, tf.uint32)), tf.float32) * 2.0**-24


def drop_connect(
    features: tf.Tensor, seed: tf.Tensor, *, survival_prob: float, salt: str
) -> tf.Tensor:
    """Drops the whole residual branch of some examples (stochastic depth, arXiv 1603.09382).

    Args:
      features: [batch, height, width, channels].
      seed: int32 [2].
      survival_prob: chance of an example to keep its branch; kept ones are divided by it.
      salt: as of `hashed_uniform`.
    """
    batch = features.shape[0] if features.shape[0] is not None else tf.shape(features)[0]
    uniform = hashed_uniform(seed, batch, salt=salt)
    scale = tf.where(uniform < survival_prob, 1.0 / survival_prob, 0.0)
    return features * tf.cast(scale, features.dtype)[:, tf.newaxis, tf.newaxis, tf.newaxis]


class DropConnect(tf.keras.layers.Layer):
    """Stochastic depth as a layer, for branches that are built functionally."""

    def __init__(self, survival_prob: float, **kwargs: object) -> None:
        """Takes the chance of an example to keep its branch."""
        super().__init__(**kwargs)
        self.survival_prob = survival_prob

    def call(self, inputs: tf.Tensor, training: bool | None = None) -> tf.Tensor:
        """Drops examples while training, passes them on otherwise."""
        if not training:
            return inputs
        seed = fresh_drop_connect_seed()
        return drop_connect(inputs, seed, survival_prob=self.survival_prob, salt=self.name)


def is_stochastic(survival_prob: float | None) -> bool:
    """Tells whether a survival probability drops anything; None, 0 and 1 mean no."""
    return bool(survival_prob) and survival_prob < 1.0
