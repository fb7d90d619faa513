"""Batch norm with activation and gate as one function, against NumPy and central differences."""

import numpy as np
import pytest
import tensorflow as tf

from detector.frozen_norm import FrozenBatchNorm
from efficientdet.network.backbone import MBConvBlock, backbone_blocks
from efficientdet.network.layers import batch_norm_factory, drop_connect_seed
from efficientdet.network.norm_activation import norm_activation, with_activation
from engine.optim.sync_batch_norm import SyncBatchNormalization
from engine.start.compiled import compiled

EPSILON = 1e-3
SHAPE = (2, 3, 4, 5)
HIDDEN = 3


def sigmoid(x):
    return 1.0 / (1.0 + np.exp(-x))


def swish(x):
    return x * sigmoid(x)


def forward(values, *, gated):
    """Returns the result in float64, from x, gamma, beta and the weights of the gate."""
    x, gamma, beta, *weights = values
    mean, variance = x.mean((0, 1, 2)), x.var((0, 1, 2))
    out = swish((x - mean) / np.sqrt(variance + EPSILON) * gamma + beta)
    if not gated:
        return out
    first, second = weights
    gates = sigmoid(swish(out.mean((1, 2)) @ first) @ second)
    return out * gates[:, None, None, :]


def excitation(means, first, second):
    return tf.sigmoid(tf.nn.silu(means @ first) @ second)


def draw(*, gated):
    """Returns x, gamma, beta and the weights of the gate, and a gradient by the result."""
    rng = np.random.default_rng(0)
    channels = SHAPE[-1]
    shapes = [SHAPE, [channels], [channels]]
    shapes += [[channels, HIDDEN], [HIDDEN, channels]] if gated else []
    return [rng.normal(0.3, 1.0, shape) for shape in shapes], rng.normal(size=SHAPE)


@tf.function(jit_compile=True, autograph=False)
def run(values, upstream):
    """Returns (result, mean, variance) and the gradients."""
    with tf.GradientTape() as tape:
        tape.watch(values)
        x, gamma, beta, *weights = values
        result = norm_activation(
            *(x, gamma, beta, weights),
            epsilon=EPSILON,
            activation=tf.nn.silu,
            excitation=excitation if weights else None,
        )
    return result, tape.gradient(result[0], values, output_gradients=upstream)


@pytest.mark.parametrize("gated", [False, True])
def test_values_and_gradients_are_those_of_the_formula(gated):
    values, upstream = draw(gated=gated)
    (out, mean, variance), gradients = run(
        [tf.constant(v, tf.float32) for v in values], tf.constant(upstream, tf.float32)
    )
    np.testing.assert_allclose(out, forward(values, gated=gated), atol=1e-5)
    np.testing.assert_allclose(mean, values[0].mean((0, 1, 2)), atol=1e-6)
    np.testing.assert_allclose(variance, values[0].var((0, 1, 2)), atol=1e-5)
    for index, gradient in enumerate(gradients):
        expected = np.zeros(values[index].shape)
        for place in np.ndindex(expected.shape):
            for sign in (1, -1):
                moved = [v.copy() for v in values]
                moved[index][place] += sign * 1e-5
                loss = np.sum(forward(moved, gated=gated) * upstream)
                expected[place] += sign * loss / 2e-5
        np.testing.assert_allclose(gradient, expected, atol=2e-5)


@pytest.mark.parametrize("gated", [False, True])
def test_in_half_precision_statistics_and_sums_are_float32(gated):
    (x, gamma, beta, *weights), upstream = draw(gated=gated)
    x += 60.0  # of which the square has too few digits in float16
    norm = [tf.constant(v, tf.float32) for v in (gamma, beta)]
    halves = [tf.constant(v, tf.float16) for v in (x, *weights, upstream)]
    singles = [tf.cast(v, tf.float32) for v in halves]
    found, expected = (
        run([x, *norm, *weights], upstream) for x, *weights, upstream in (halves, singles)
    )
    for ours, theirs, like in zip(found[1], expected[1], [halves[0], *norm, *halves[1:-1]]):
        assert ours.dtype == like.dtype
        np.testing.assert_allclose(ours, theirs, rtol=1e-2, atol=1e-2)
    assert [v.dtype for v in found[0]] == [tf.float16, tf.float32, tf.float32]
    np.testing.assert_allclose(found[0][0], expected[0][0], rtol=5e-3, atol=5e-3)
    for ours, theirs in zip(found[0][1:], expected[0][1:]):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4)


def test_a_map_of_one_value_has_no_negative_variance():
    one, zero = tf.ones([1]), tf.zeros([1])
    for value in (300.3, 1000.1, 3333.3, 12345.6):
        x = tf.fill([3, 5, 7, 1], value)
        (out, _, variance), gradients = run([x, one, zero], tf.ones_like(x))
        assert variance.numpy() >= 0.0
        assert np.isfinite(out).all() and all(np.isfinite(g).all() for g in gradients)


@pytest.mark.parametrize("shape", [SHAPE, (1, 1, 1, 5)])
def test_layer_moves_the_statistics_as_without_xla(shape):
    x = np.random.default_rng(1).normal(2.0, 3.0, shape).astype(np.float32)
    layers = []
    for use_xla in (False, True):
        layer = with_activation(tf.keras.layers.BatchNormalization)(
            activation=tf.nn.silu, momentum=0.9, epsilon=EPSILON
        )
        layer(x, training=False)

        @tf.function(jit_compile=use_xla or None, autograph=False)
        def run(x, layer=layer, use_xla=use_xla):
            with compiled(use_xla):
                assert layer.is_merged(x, training=True) == use_xla
                return layer(x, training=True)

        layers.append((run(tf.constant(x)), *layer.weights))
    for plain, merged in zip(*layers):
        np.testing.assert_allclose(merged, plain, atol=1e-5)


@pytest.mark.parametrize(
    "norm_class, training, kwargs",
    [
        (FrozenBatchNorm, True, {"activation": tf.nn.silu, "epsilon": EPSILON, "name": "bn"}),
        (tf.keras.layers.BatchNormalization, False, {"activation": tf.nn.silu}),
        (tf.keras.layers.BatchNormalization, True, {}),
        (SyncBatchNormalization, True, {"activation": tf.nn.silu}),
    ],
)
def test_other_statistics_are_left_to_the_layer(norm_class, training, kwargs):
    layer = with_activation(norm_class)(**kwargs)
    with compiled():
        assert not layer.is_merged(tf.zeros(SHAPE), training)


def test_frozen_layers_and_batches_of_any_size_are_left_to_the_layer():
    layer = with_activation(tf.keras.layers.BatchNormalization)(activation=tf.nn.silu)
    with compiled():
        assert layer.is_merged(tf.TensorSpec(SHAPE), True)
        assert not layer.is_merged(tf.TensorSpec([None, *SHAPE[1:]]), True)
        layer.trainable = False
        assert not layer.is_merged(tf.TensorSpec(SHAPE), True)


@pytest.mark.parametrize("remat", [False, True])
def test_a_block_trains_under_xla_as_without(remat):
    rng = np.random.default_rng(2)
    x = tf.constant(rng.normal(size=(2, 6, 5, 4)), tf.float32)
    published = next(block for block in backbone_blocks("efficientnet-b0") if block.has_residual)
    shape = published._replace(in_channels=4, out_channels=4, se_channels=2)
    results = []
    for use_xla in (False, True):
        tf.keras.utils.set_random_seed(1)
        make_norm = batch_norm_factory(None, momentum=0.9, epsilon=EPSILON, frozen=False)
        block = MBConvBlock(
            shape, make_norm, act_type="swish", survival_prob=0.5, remat=remat and use_xla
        )
        block(x)

        @tf.function(jit_compile=use_xla or None, autograph=False)
        def run(x, block=block, use_xla=use_xla):
            with compiled(use_xla), drop_connect_seed(tf.constant([1, 2])):
                with tf.GradientTape() as tape:
                    tape.watch(x)
                    values = block(x, training=True)
                    loss = tf.reduce_sum(values**2)
                return values, *tape.gradient(loss, [x, *block.trainable_variables])

        results.append((*run(x), *block.non_trainable_variables))
    for plain, merged in zip(*results):
        np.testing.assert_allclose(merged, plain, rtol=1e-4, atol=1e-4 * np.abs(plain).max())
