"""Synchronised batch norm with one rank is Keras' own layer."""

import numpy as np
import pytest
import tensorflow as tf

from engine.optim.sync_batch_norm import SyncBatchNormalization

SETTINGS = {"momentum": 0.9, "epsilon": 1e-3}


def layers(shape) -> list[tf.keras.layers.Layer]:
    """Returns (Keras' layer, ours) with the same weights."""
    made = [tf.keras.layers.BatchNormalization(**SETTINGS), SyncBatchNormalization(**SETTINGS)]
    rng = np.random.default_rng(0)
    channels = shape[-1]
    values = [rng.uniform(0.5, 2.0, channels) for _ in range(4)]
    for layer in made:
        layer.build([None, *shape[1:]])
        layer.set_weights(values)
    return made


@pytest.mark.parametrize("shape", [(6, 4, 5, 3), (32, 7)])
def test_output_gradient_and_statistics(shape):
    inputs = tf.constant(np.random.default_rng(1).normal(2.0, 3.0, shape), tf.float32)
    target = tf.constant(np.random.default_rng(2).normal(size=shape), tf.float32)
    found = []
    for layer in layers(shape):
        with tf.GradientTape() as tape:
            tape.watch(inputs)
            outputs = layer(inputs, training=True)
            loss = tf.reduce_sum(tf.square(outputs - target))
        gradients = tape.gradient(loss, [inputs, layer.gamma, layer.beta])
        found.append([outputs, *gradients, layer.moving_mean, layer.moving_variance])
    for theirs, ours in zip(*found):
        np.testing.assert_allclose(ours, theirs, rtol=2e-4, atol=2e-4)


def test_inference_and_frozen_layers_use_the_moving_statistics():
    inputs = tf.random.normal([4, 3])
    theirs, ours = layers((4, 3))
    expected = theirs(inputs, training=False)
    np.testing.assert_allclose(ours(inputs, training=False), expected, rtol=1e-5, atol=1e-6)
    ours.trainable = False
    before = [w.copy() for w in ours.get_weights()]
    np.testing.assert_allclose(ours(inputs, training=True), expected, rtol=1e-5, atol=1e-6)
    for old, new in zip(before, ours.get_weights()):
        np.testing.assert_array_equal(old, new)


def test_half_precision_keeps_float32_statistics():
    layer = SyncBatchNormalization(dtype="mixed_float16", **SETTINGS)
    outputs = layer(tf.ones([2, 3], tf.float16) * 1000.0, training=True)
    assert outputs.dtype == tf.float16
    assert layer.moving_mean.dtype == tf.float32
    np.testing.assert_allclose(layer.moving_mean, np.full(3, 100.0), rtol=1e-5)
