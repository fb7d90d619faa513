"""Convolutions with gradients for CPU cores: against plain sums, Keras' layers, and where used."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from layer_programs import operations, with_gradients

from efficientdet.config import model_config
from efficientdet.network.convolutions import (
    Conv2D,
    DepthwiseConv2D,
    SeparableConv2D,
    depthwise_weight_gradient,
)
from efficientdet.network.model import build_model

no_gpu = pytest.mark.skipif(
    bool(tf.config.list_physical_devices("GPU")), reason="accelerators use Keras' own operations"
)


def random(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def plain_weight_gradient(inputs, upstream, kernel_size, stride, padding):
    """As the docstring says it, one place of the kernel at a time."""
    result = np.zeros((*kernel_size, inputs.shape[-1], 1), inputs.dtype)
    spans = [(size - 1) * stride for size in upstream.shape[1:3]]
    if padding == "SAME":
        missing = [
            max(span + kernel - size, 0)
            for span, kernel, size in zip(spans, kernel_size, inputs.shape[1:3])
        ]
        before_and_after = [(m // 2, m - m // 2) for m in missing]
        inputs = np.pad(inputs, [(0, 0), *before_and_after, (0, 0)])
    for i, j in np.ndindex(*kernel_size):
        rows = slice(i, i + spans[0] + 1, stride)
        columns = slice(j, j + spans[1] + 1, stride)
        result[i, j, :, 0] = np.sum(inputs[:, rows, columns] * upstream, axis=(0, 1, 2))
    return result


@settings(max_examples=40, deadline=None)
@given(
    height=st.integers(7, 12),
    width=st.integers(7, 12),
    kernel_size=st.sampled_from([(3, 3), (5, 5), (1, 4), (3, 7), (5, 2)]),
    stride=st.integers(1, 2),
    padding=st.sampled_from(["SAME", "VALID"]),
)
def test_depthwise_gradient_is_a_sum_over_positions(height, width, kernel_size, stride, padding):
    inputs = random(2, height, width, 3).astype(np.float64)
    kernel = tf.zeros([*kernel_size, 3, 1], tf.float64)
    strides = [1, stride, stride, 1]
    shape = tf.nn.depthwise_conv2d(inputs, kernel, strides, padding).shape
    upstream = random(*shape, seed=1).astype(np.float64)
    gradient = depthwise_weight_gradient(
        tf.constant(inputs),
        tf.constant(upstream),
        kernel_size=kernel_size,
        strides=strides,
        padding=padding,
    )
    expected = plain_weight_gradient(inputs, upstream, kernel_size, stride, padding)
    np.testing.assert_allclose(gradient, expected, rtol=1e-9, atol=1e-9)


PRODUCTS = {"MatMul": 3, "Conv2DBackpropFilter": 0}
PARTS = {"DepthwiseConv2dNativeBackpropFilter": 2}


@no_gpu
@pytest.mark.parametrize("use_bias", [True, False])
@pytest.mark.parametrize(
    ("kind", "options", "used"),
    [
        (Conv2D, {"filters": 4, "kernel_size": 1}, PRODUCTS),
        (SeparableConv2D, {"filters": 4, "kernel_size": 3, "padding": "same"}, PRODUCTS),
        (DepthwiseConv2D, {"kernel_size": 5, "padding": "same"}, PARTS),
        (DepthwiseConv2D, {"kernel_size": 5, "padding": "same", "strides": 2}, PARTS),
        (DepthwiseConv2D, {"kernel_size": 5, "strides": 2}, PARTS),
    ],
)
def test_training_has_the_results_and_gradients_of_keras(kind, options, used, use_bias):
    shape = (2, 13, 10, 3)
    use_bias = use_bias and kind is not DepthwiseConv2D
    ours, theirs = (
        layer(**options, use_bias=use_bias, bias_initializer="ones")
        for layer in (kind, getattr(tf.keras.layers, kind.__name__))
    )
    for layer in (ours, theirs):
        layer.build(shape)
    theirs.set_weights(ours.get_weights())
    run = with_gradients(ours, training=True)
    inputs = tf.constant(random(*shape))
    results, expected = run(inputs), with_gradients(theirs)(inputs)
    for result, value in zip(results, expected):
        np.testing.assert_allclose(result, value, rtol=1e-4, atol=1e-5 * np.abs(value).max())
    counts = operations(run, shape)
    assert {name: counts[name] for name in used} == used


@no_gpu
@pytest.mark.parametrize(
    ("kind", "options", "call"),
    [
        (Conv2D, {"filters": 4, "kernel_size": 1}, {}),
        (Conv2D, {"filters": 4, "kernel_size": 3}, {"training": True}),
        (Conv2D, {"filters": 4, "kernel_size": 1, "strides": 2}, {"training": True}),
        (Conv2D, {"filters": 4, "kernel_size": 1, "dtype": "mixed_float16"}, {"training": True}),
        (SeparableConv2D, {"filters": 4, "kernel_size": 3}, {}),
        (DepthwiseConv2D, {"kernel_size": 5}, {}),
        (DepthwiseConv2D, {"kernel_size": 3}, {"training": True}),
    ],
)
def test_others_are_left_to_keras(kind, options, call):
    shape = (2, 13, 10, 3)
    layer, keras = kind(**options), getattr(tf.keras.layers, kind.__name__)(**options)
    for made in (layer, keras):
        made.build(shape)
    assert operations(with_gradients(layer, **call), shape) == operations(
        with_gradients(keras), shape
    )


@no_gpu
def test_a_training_step_of_a_model_takes_them():
    config = dataclasses.replace(model_config("efficientdet-lite0"), image_size=(64, 64))
    model = build_model(config, num_classes=2)

    @tf.function(autograph=False)
    def step(x):
        with tf.GradientTape() as tape:
            results = model(x, training=True)
        return tape.gradient(results, model.trainable_variables)

    counts = operations(step, (1, 64, 64, 3))
    assert counts["Conv2DBackpropFilter"] == 1  # of the strided stem
    # Nine blocks have kernels of 5 x 5; two parts each.
    assert counts["DepthwiseConv2dNativeBackpropFilter"] == counts["DepthwiseConv2dNative"] + 9
