"""The compiled step under XLA and under mixed precision, at the smallest size."""

import pytest
import tensorflow as tf
from mask_records import mask_record, tiny_config, write_set

from engine.task import Shard
from maskrcnn.family import make_task

pytestmark = pytest.mark.slow

SEED = (3, 4)
OBJECTS = (((8, 10, 40, 60), 0), ((30, 30, 62, 50), 1))


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
        task = make_task(config, description={}, training=True, batch_norm=None, seed=5)
        batch = next(iter(task.train_dataset(shard=Shard(0, 1), start_step=0)))
        return task, task.device_batch(batch)

    return build


def losses(task, batch, *, jit_compile=None):
    """Returns the losses by name and the norm of the gradient."""

    @tf.function(autograph=False, jit_compile=jit_compile)
    def step(batch, seed):
        with tf.GradientTape() as tape:
            result = task.losses(batch, training=True, seed=seed)
        gradients = tape.gradient(result.loss, task.model.trainable_variables)
        norm = tf.linalg.global_norm([tf.cast(g, tf.float32) for g in gradients])
        return {**result.parts, "gradient_norm": norm}

    found = step(batch, tf.constant(SEED))
    assert {value.dtype for value in found.values()} == {tf.float32}
    return {name: float(value) for name, value in found.items()}


def test_xla_changes_nothing(made):
    task, batch = made()
    assert losses(task, batch, jit_compile=True) == pytest.approx(losses(task, batch), rel=2e-3)


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_mixed_precision_changes_little(made, policy):
    expected = losses(*made())
    before = tf.keras.mixed_precision.global_policy()
    tf.keras.mixed_precision.set_global_policy(policy)
    try:
        task, batch = made()
        assert {v.dtype for v in task.model.trainable_variables} == {tf.float32}
        found = losses(task, batch)
    finally:
        tf.keras.mixed_precision.set_global_policy(before)
    # Proposals, and with them what is sampled, may differ.
    assert found == pytest.approx(expected, rel=0.25, abs=0.02)
