"""Pieces that backbone, neck and heads share: norms, padded convolutions, initialisers."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import tensorflow as tf

from detector.frozen_norm import FrozenBatchNorm, add_vector
from engine.start.compiled import is_compiled, separate
from maskrcnn.config import ModelConfig
from maskrcnn.network.convolution import Conv2D

BatchNormFactory = Callable[..., tf.keras.layers.Layer]
"""Called with name, momentum and epsilon to make a trained batch-norm layer."""


class GroupNorm(tf.keras.layers.Layer):
    """Group normalisation (arXiv 1803.08494, section 3.1) over positions and a group's channels.

    Variables: gamma, beta, [channels] float32. Statistics are float32 whatever the inputs are.
    """

    def __init__(self, *, num_groups: int, epsilon: float, name: str) -> None:
        """Takes the number of groups and what is added to the variance."""
        super().__init__(name=name)
        self.num_groups = num_groups
        self.epsilon = epsilon

    def build(self, input_shape: tf.TensorShape) -> None:
        """Creates scale and shift."""
        channels = input_shape[-1]
        if channels % self.num_groups:
            raise ValueError(
                f"{self.name}: {channels} channels do not divide into {self.num_groups} groups; "
                "set num_norm_groups to a divisor"
            )
        for name in ("gamma", "beta"):
            add_vector(self, name, channels, trainable=True)
        super().build(input_shape)

    def call(self, inputs: tf.Tensor, training: bool | None = None) -> tf.Tensor:
        """Normalises [batch, ..., channels]; each example by itself."""
        del training
        channels = inputs.shape[-1]
        shape = tf.shape(inputs)
        groups = [shape[0], -1, self.num_groups, channels // self.num_groups]
        values = tf.reshape(tf.cast(inputs, tf.float32), groups)
        mean, variance = tf.nn.moments(values, [1, 3], keepdims=True)
        per_group = [self.num_groups, channels // self.num_groups]
        scale = tf.reshape(self.gamma, per_group) * tf.math.rsqrt(variance + self.epsilon)
        shift = tf.reshape(self.beta, per_group) - mean * scale
        return tf.cast(tf.reshape(values * scale + shift, shape), inputs.dtype)


class PaddedConv2D(tf.keras.layers.Conv2D):
    """Convolution with equal padding on both sides, as PyTorch and Caffe2 have it.

    TensorFlow's SAME pads an even side of a strided convolution more at its end.
    """

    def convolution_op(self, inputs: tf.Tensor, kernel: tf.Tensor) -> tf.Tensor:
        """Convolves [batch, h, w, channels]; the result has ceil(h / stride) rows."""
        height, width = (
            rate * (size - 1) // 2 for rate, size in zip(self.dilation_rate, self.kernel_size)
        )
        return tf.nn.conv2d(
            inputs,
            kernel,
            self.strides,
            [[0, 0], [height, height], [width, width], [0, 0]],
            dilations=self.dilation_rate,
        )


def normalised(
    conv: tf.keras.layers.Conv2D,
    norm: tf.keras.layers.Layer,
    x: tf.Tensor,
    *,
    training: bool | None,
) -> tf.Tensor:
    """Applies a convolution without bias, then a norm.

    Frozen batch norm goes into the kernel and a bias, which XLA leaves to the convolution of cuDNN
    together with a shortcut and ReLU: no map is written before them.
    """
    if not (isinstance(norm, FrozenBatchNorm) and conv.built and norm.built):
        return norm(conv(x), training=training)
    scale, shift = norm.scale_and_shift()
    x = tf.cast(x, conv.compute_dtype)
    kernel = tf.cast(conv.kernel, tf.float32) * scale
    # A channel that is always 0 has no variance: infinite weights would make it NaN.
    kernel = tf.cast(tf.clip_by_value(kernel, x.dtype.min, x.dtype.max), x.dtype)
    return conv.convolution_op(x, kernel) + tf.cast(shift, x.dtype)


def relu(x: tf.Tensor) -> tf.Tensor:
    """Applies ReLU; of a compiled step only its result is kept for the backward pass.

    XLA would ask the sign of what came before, and so write that to memory as well.
    """
    return _relu_by_result(x) if is_compiled() else tf.nn.relu(x)


@tf.custom_gradient
def _relu_by_result(x: tf.Tensor) -> tuple[tf.Tensor, Callable[[tf.Tensor], tf.Tensor]]:
    result = tf.nn.relu(x)

    def gradient(upstream: tf.Tensor) -> tf.Tensor:
        (kept,) = separate(0, result)
        return tf.where(kept > 0, upstream, tf.zeros_like(upstream))

    return result, gradient


def kaiming_uniform() -> tf.keras.initializers.Initializer:
    """Makes a new initialiser with bound sqrt(3 / fan_in) (Kaiming uniform with a = 1)."""
    return tf.keras.initializers.VarianceScaling(1.0, mode="fan_in", distribution="uniform")


def kaiming_normal_fan_out() -> tf.keras.initializers.Initializer:
    """Makes a new initialiser with deviation sqrt(2 / fan_out) (arXiv 1502.01852, section 2.2)."""
    return tf.keras.initializers.VarianceScaling(
        2.0, mode="fan_out", distribution="untruncated_normal"
    )


def normal(stddev: float) -> tf.keras.initializers.Initializer:
    """Makes a new normal initialiser; layers sharing one object would get equal values."""
    return tf.keras.initializers.RandomNormal(stddev=stddev)


@dataclasses.dataclass(frozen=True)
class NormMaker:
    """Makes the norm layers of one part of the network.

    config: has the numbers.
    kind: frozen_bn, batch_norm, group_norm, or '' for none.
    batch_norm: None is the plain Keras layer.
    """

    config: ModelConfig
    kind: str
    batch_norm: BatchNormFactory | None = None

    def frozen(self) -> NormMaker:
        """Returns the maker for a frozen stage, where batch norm never uses batch statistics."""
        kind = "frozen_bn" if self.kind == "batch_norm" else self.kind
        return dataclasses.replace(self, kind=kind)

    @property
    def short_name(self) -> str:
        """What names of layers say: bn or gn."""
        return "gn" if self.kind == "group_norm" else "bn"

    def named(self, name: str) -> tf.keras.layers.Layer:
        """Makes a layer of a given name."""
        config = self.config
        if self.kind == "frozen_bn":
            return FrozenBatchNorm(epsilon=config.bn_epsilon, name=name)
        if self.kind == "batch_norm":
            make = self.batch_norm or tf.keras.layers.BatchNormalization
            return make(name=name, momentum=config.bn_momentum, epsilon=config.bn_epsilon)
        return GroupNorm(num_groups=config.num_norm_groups, epsilon=config.gn_epsilon, name=name)

    def convolve(
        self,
        x: tf.Tensor,
        filters: int,
        kernel_size: int,
        *,
        name: str,
        initializer: tf.keras.initializers.Initializer,
        has_relu: bool = True,
    ) -> tf.Tensor:
        """Adds a convolution that keeps the size to a Keras tensor, then `finish`."""
        layer = Conv2D(
            filters,
            kernel_size,
            padding="same",
            use_bias=not self.kind,
            kernel_initializer=initializer,
            name=name,
        )
        return self.finish(layer(x), name, has_relu=has_relu)

    def finish(self, x: tf.Tensor, name: str, *, has_relu: bool = True) -> tf.Tensor:
        """Adds norm and ReLU behind the layer `name`, which has a bias where there is no norm.

        The norm of `fpn/inner2` is named `fpn/inner2_gn`.
        """
        if self.kind:
            x = self.named(f"{name}_{self.short_name}")(x)
        return tf.keras.layers.Activation(relu, name=f"{name}_relu")(x) if has_relu else x


def compute_dtype() -> str:
    """Returns the dtype of inputs under the Keras policy in force."""
    return tf.keras.mixed_precision.global_policy().compute_dtype
