"""The weight gradient by matrix products: against NumPy, TensorFlow's own, and where it is used."""

import network_in_numpy as reference
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from layer_programs import operations, with_gradients

from maskrcnn.network.convolution import LEAST_POSITIONS, Conv2D, weight_gradient

LARGE = (2, 32, LEAST_POSITIONS // 32, 3)
no_gpu = pytest.mark.skipif(
    bool(tf.config.list_physical_devices("GPU")), reason="accelerators use their own gradient"
)


def random(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@settings(max_examples=30, deadline=None)
@given(
    batch=st.integers(1, 3),
    height=st.integers(1, 6),
    width=st.integers(1, 6),
    kernel=st.sampled_from([(1, 1), (3, 3), (5, 5), (1, 3), (5, 3)]),
)
def test_gradient_is_the_linear_response_of_the_convolution(batch, height, width, kernel):
    """Linear in the kernel: <gradient, change> is exactly the change of <result, upstream>."""
    inputs = random(batch, height, width, 2).astype(np.float64)
    upstream = random(batch, height, width, 4, seed=1).astype(np.float64)
    change = random(*kernel, 2, 4, seed=2).astype(np.float64)
    gradient = weight_gradient(tf.constant(inputs), tf.constant(upstream), kernel_size=kernel)
    assert gradient.shape == change.shape
    expected = np.sum(reference.conv2d(inputs, change) * upstream)
    np.testing.assert_allclose(np.sum(gradient.numpy() * change), expected, rtol=1e-9, atol=1e-9)


@no_gpu
@pytest.mark.parametrize("use_bias", [False, True])
@pytest.mark.parametrize("jit_compile", [False, True])
def test_a_large_map_has_the_gradients_of_keras(use_bias, jit_compile):
    inputs = random(*LARGE)
    ours, theirs = (
        kind(4, 3, padding="same", use_bias=use_bias) for kind in (Conv2D, tf.keras.layers.Conv2D)
    )
    for layer in (ours, theirs):
        layer.build(inputs.shape)
    theirs.set_weights(ours.get_weights())
    run = with_gradients(ours, jit_compile=jit_compile)
    results = run(tf.constant(inputs))
    for result, expected in zip(results, with_gradients(theirs)(tf.constant(inputs))):
        scale = np.abs(expected).max()
        np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-5 * scale)
    assert operations(run, inputs.shape)["MatMul"] == 9


@no_gpu
@pytest.mark.parametrize(
    ("shape", "options"),
    [
        ((2, 16, 16, 3), {"kernel_size": 3}),
        (LARGE, {"kernel_size": 1}),
        (LARGE, {"kernel_size": 2}),
        (LARGE, {"kernel_size": 3, "strides": 2}),
        (LARGE, {"kernel_size": 3, "dilation_rate": 2}),
        (LARGE, {"kernel_size": 3, "padding": "valid"}),
        (LARGE, {"kernel_size": 3, "dtype": "mixed_float16"}),
        (LARGE, {"kernel_size": 3, "groups": 3}),
    ],
)
def test_others_are_left_to_tensorflow(shape, options):
    layer = Conv2D(6, **{"padding": "same", **options})
    layer.build(shape)
    assert operations(with_gradients(layer), shape)["MatMul"] == 0


@no_gpu
def test_convolutions_follow_one_another():
    layers = [Conv2D(filters, 3, padding="same") for filters in (4, 5, 2)]
    model = tf.keras.Sequential([tf.keras.Input((None, None, 3)), *layers])
    run = with_gradients(model)
    assert operations(run, LARGE)["MatMul"] == 27
    _, of_inputs, *of_weights = run(tf.constant(random(*LARGE)))
    assert of_inputs.shape == LARGE
    assert [g.shape for g in of_weights] == [v.shape for v in model.trainable_variables]


@no_gpu
def test_the_gradient_survives_recomputation():
    layer = Conv2D(4, 3, padding="same")
    layer.build(LARGE)
    inputs = tf.constant(random(*LARGE))
    kernel = layer.kernel
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(layer(inputs) ** 2)
    expected = tape.gradient(loss, kernel)

    @tf.function(autograph=False)
    def recomputed():
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(tf.recompute_grad(layer)(inputs) ** 2)
        return tape.gradient(loss, kernel)

    np.testing.assert_allclose(recomputed(), expected, rtol=1e-4, atol=1e-3)
