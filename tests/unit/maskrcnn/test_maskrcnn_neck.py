"""The pyramid against NumPy; upsampling and its gradient under XLA."""

import dataclasses

import network_in_numpy as reference
import numpy as np
import pytest
import tensorflow as tf

from maskrcnn.config import model_config
from maskrcnn.network.neck import build_neck, upsample_twice

CHANNELS = {2: 3, 3: 4, 4: 5, 5: 6}


def neck_model(**changes):
    config = dataclasses.replace(
        model_config("maskrcnn-r50-fpn"), fpn_num_filters=8, num_norm_groups=2, **changes
    )
    features = {level: tf.keras.Input((None, None, n)) for level, n in CHANNELS.items()}
    return tf.keras.Model(features, build_neck(features, config, batch_norm=None))


@pytest.mark.parametrize(
    "changes", [{}, {"fpn_norm": "group_norm"}, {"fpn_norm": "group_norm", "fpn_relu": True}]
)
def test_pyramid_equals_numpy(changes):
    model = neck_model(**changes)
    weights = reference.randomise(model)
    rng = np.random.default_rng(1)
    features = {n: rng.normal(size=(2, 64 >> n, 96 >> n, c)) for n, c in CHANNELS.items()}

    def conv(x, name):
        x = reference.conv2d(x, weights[f"{name}/kernel"], bias=weights.get(f"{name}/bias", 0.0))
        if changes.get("fpn_norm"):
            x = reference.norm(x, weights, f"{name}_gn", num_groups=2)
        return reference.relu(x) if changes.get("fpn_relu") else x

    expected = reference.pyramid(
        features,
        lambda x, level: conv(x, f"fpn/inner{level}"),
        lambda x, level: conv(x, f"fpn/layer{level}"),
    )
    expected[6] = expected[5][:, ::2, ::2]
    maps = model({n: tf.constant(x, tf.float32) for n, x in features.items()})
    assert [tuple(m.shape[1:3]) for m in maps] == [(64 >> n, 96 >> n) for n in range(2, 6)] + [
        (1, 2)
    ]
    for level, result in zip(range(2, 7), maps):
        np.testing.assert_allclose(result, expected[level], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("jit_compile", [False, True])
def test_upsampling_repeats_cells_and_sums_their_gradients(jit_compile):
    x = tf.constant(np.random.default_rng(0).normal(size=(2, 3, 4, 5)), tf.float32)
    factors = tf.constant(np.random.default_rng(1).normal(size=(2, 6, 8, 5)), tf.float32)

    @tf.function(autograph=False, jit_compile=jit_compile)
    def step(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = upsample_twice(x)
            loss = tf.reduce_sum(y * factors)
        return y, tape.gradient(loss, x)

    y, gradient = step(x)
    np.testing.assert_array_equal(y, reference.upsample(x.numpy()))
    expected = factors.numpy().reshape(2, 3, 2, 4, 2, 5).sum((2, 4))
    np.testing.assert_allclose(gradient, expected, rtol=1e-5, atol=1e-5)
