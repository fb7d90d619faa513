"""The compiled step under XLA and under mixed precision, at the smallest size."""

import numpy as np
import precision
import pytest
import tensorflow as tf
from mask_records import OBJECTS, mask_record, tiny_config, write_set

from engine.task import Shard
from maskrcnn.family import FAMILY

pytestmark = pytest.mark.slow

SEED = (3, 4)


@pytest.fixture
def made(tmp_path):
    """Builds a task under the policy now in force; returns it with a batch."""
    pattern, _ = write_set(tmp_path, [mask_record(i, objects=OBJECTS) for i in range(2)])

    def build():
        config = tiny_config(
            data__training_file_pattern=pattern,
            eval__val_file_pattern=pattern,
            model__canvases=[[64, 64]],
            model__image_size=[64, 64],
            model__norm="frozen_bn",
        )
        tf.keras.utils.set_random_seed(7)
        task = FAMILY.make_task(config, description={}, training=True, batch_norm=None, seed=5)
        batch = next(iter(task.train_dataset(shard=Shard(0, 1), start_step=0)))
        return task, task.device_batch(batch)

    return build


def losses(task, batch, *, jit_compile=False):
    """Returns the losses by name and the gradients by the name of the variable."""
    variables = task.model.trainable_variables

    def step(batch, seed):
        with tf.GradientTape() as tape:
            result = task.losses(batch, training=True, seed=seed)
        return result.parts, tape.gradient(result.loss, variables)

    if jit_compile:
        step = tf.function(step, autograph=False, jit_compile=True)
    parts, gradients = step(batch, tf.constant(SEED))
    assert {value.dtype for value in parts.values()} == {tf.float32}
    return (
        {name: float(value) for name, value in parts.items()},
        {variable.name: np.float64(g) for variable, g in zip(variables, gradients)},
    )


def fixed_draws(shape, seed):
    """Stands for `stateless_uniform`, which draws other numbers under XLA from the same seed."""
    shape = tf.get_static_value(shape)
    return tf.constant(np.random.default_rng(5).random(shape, np.float32))


@pytest.mark.nightly  # the parts are compiled by the tests of network, targets, losses and heads
def test_xla_changes_nothing(made, monkeypatch):
    task, batch = made()
    # An ellipse has cells that are covered by exactly half, which rounding sets or clears.
    batch["masks"] = tf.fill(batch["masks"].shape, tf.constant(255, tf.uint8))
    monkeypatch.setattr(tf.random, "stateless_uniform", fixed_draws)
    expected, expected_gradients = losses(task, batch)
    found, gradients = losses(task, batch, jit_compile=True)
    assert found == pytest.approx(expected, rel=1e-4)
    for name, gradient in gradients.items():
        expected = expected_gradients[name]
        error = np.linalg.norm(gradient - expected) / np.linalg.norm(expected)
        assert error < 1e-4, (name, error)


@pytest.mark.parametrize(
    "policy", ["mixed_float16", pytest.param("mixed_bfloat16", marks=pytest.mark.nightly)]
)
def test_mixed_precision_changes_little(made, policy):
    expected, _ = losses(*made())
    with precision.policy(policy):
        task, batch = made()
        assert {v.dtype for v in task.model.trainable_variables} == {tf.float32}
        found, gradients = losses(task, batch)
        assert all(np.isfinite(gradient).all() for gradient in gradients.values())
    # Proposals, and with them what is sampled, may differ.
    assert found == pytest.approx(expected, rel=0.25, abs=0.02)
