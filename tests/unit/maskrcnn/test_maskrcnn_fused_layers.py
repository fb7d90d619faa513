"""Frozen batch norm inside the convolution, and ReLU whose backward pass asks its result."""

import numpy as np
import precision
import pytest
import tensorflow as tf

from detector.frozen_norm import FrozenBatchNorm
from engine.start.compiled import compiled
from maskrcnn.network.convolution import Conv2D
from maskrcnn.network.layers import PaddedConv2D, normalised, relu


@pytest.mark.parametrize(
    "conv",
    [
        Conv2D(6, 3, padding="same", use_bias=False),
        Conv2D(6, 3, padding="same", groups=2, use_bias=False),
        PaddedConv2D(6, 3, 2, padding="same", use_bias=False),
    ],
    ids=["plain", "groups", "padded"],
)
def test_norm_inside_the_convolution_changes_nothing(conv):
    rng = np.random.default_rng(0)
    norm = FrozenBatchNorm(epsilon=1e-3, name="bn")
    x = tf.constant(rng.normal(size=(2, 8, 6, 4)), tf.float32)
    first = normalised(conv, norm, x, training=True)  # builds the layers
    np.testing.assert_array_equal(first, norm(conv(x)))
    for variable in norm.variables:
        variable.assign(rng.uniform(0.5, 2.0, variable.shape))
    results = []
    for apply in (lambda x: norm(conv(x)), lambda x: normalised(conv, norm, x, training=True)):
        with tf.GradientTape() as tape:
            tape.watch(x)
            values = apply(x)
            loss = tf.reduce_sum(values**2)
        results.append((values, *tape.gradient(loss, (x, conv.kernel))))
    for plain, folded in zip(*results):
        np.testing.assert_allclose(folded, plain, rtol=2e-5, atol=2e-5 * np.abs(plain).max())


def test_a_channel_without_variance_stays_finite_in_half_precision():
    with precision.policy("mixed_float16"):
        conv, norm = Conv2D(2, 1, use_bias=False), FrozenBatchNorm(epsilon=0.0, name="bn")
    x = tf.zeros([1, 2, 2, 3], tf.float16)
    normalised(conv, norm, x, training=False)
    norm.moving_variance.assign([1e-30, 1.0])
    norm.beta.assign([0.5, 0.25])
    folded = normalised(conv, norm, x, training=False)
    np.testing.assert_array_equal(folded, np.broadcast_to([0.5, 0.25], folded.shape))


def test_relu_of_a_compiled_step_has_the_gradient_of_relu():
    x = tf.constant([-2.0, -0.0, 0.0, 1e-30, 3.0])

    @tf.function(jit_compile=True, autograph=False)
    def run(x):
        with compiled(), tf.GradientTape() as tape:
            tape.watch(x)
            values = relu(x)
        return values, tape.gradient(values, x, output_gradients=x + 7.0)

    values, gradient = run(x)
    np.testing.assert_array_equal(values, np.float32([0.0, 0.0, 0.0, 1e-30, 3.0]))
    np.testing.assert_array_equal(gradient, np.float32([0.0, 0.0, 0.0, 7.0, 10.0]))
