"""The training step as the task computes it: what changes its images, and its precision."""

import re
import types

import numpy as np
import precision
import pytest
import tensorflow as tf

from benchmarks.synthetic import numbered_class_map, synthetic_batch
from efficientdet.settings import base_config
from efficientdet.task import EfficientDetTask
from engine.config.fields import override

SMALL = {"image_size": 64, "fpn_num_filters": 8, "fpn_cell_repeats": 1, "box_class_repeats": 1}
CONVOLUTION = re.compile(r"= (\w+)\[[^\]]*\]\S* convolution\((\w+)\[[^\]]*\]\S* \S+ (\w+)\[")


def task_and_batch(model_name, *, batch_size, **changes):
    config = override(base_config(model_name), {**SMALL, **changes}, source="test")
    task = EfficientDetTask(config, numbered_class_map(4))
    return task, synthetic_batch(task, batch_size=batch_size, boxes_per_image=3)


def test_training_sees_what_the_seed_says_and_evaluation_the_images_as_they_are():
    everything = {"mosaic": 0.5, "mixup": 0.5, "autoaugment": "v1", "color_jitter": 0.3}
    task, batch = task_and_batch(
        "efficientdet-lite0", batch_size=4, max_level=5, num_scales=1, **everything
    )

    def losses(seed, training=True):
        return task.losses(batch, training=training, seed=seed).loss

    compiled = tf.function(losses, autograph=False)
    drawn = [float(compiled(tf.constant([step, 0]))) for step in (0, 1, 0)]
    assert np.isfinite(drawn).all()
    assert drawn[0] == drawn[2] != drawn[1]
    scenes = tf.function(task.scenes, autograph=False, jit_compile=True)
    seed = tf.constant([5, 0])
    trained = scenes(batch, size=(64, 64), training=True, seed=seed)
    plain = scenes(batch, size=(64, 64), training=False, seed=seed)
    assert np.abs(trained.images - plain.images).max() > 0.1
    assert trained.images.shape == plain.images.shape
    assert trained.boxes.shape == plain.boxes.shape


def test_all_batches_have_one_shape():
    task, batch = task_and_batch("efficientdet-lite0", batch_size=1)
    task.train_card = types.SimpleNamespace(
        min_height=100, max_height=900, min_width=100, max_width=900
    )
    assert task.in_other_shapes(batch) == []


@pytest.mark.slow
def test_every_convolution_is_in_half_precision():
    """In the program that XLA gets."""
    with precision.policy("mixed_float16"):
        task, batch = task_and_batch("efficientdet-d0", batch_size=2)

    def gradients(batch):
        with tf.GradientTape() as tape:
            loss = task.losses(batch, training=True, seed=tf.constant([0, 0])).loss
        return tape.gradient(loss, task.model.trainable_variables)

    function = tf.function(gradients, autograph=False, jit_compile=True)
    program = function.experimental_get_compiler_ir(batch)(stage="hlo")
    found = CONVOLUTION.findall(program)
    assert len(found) == len(re.findall(r" convolution\(", program))
    assert len(found) > 300  # forward, by input and by kernel
    assert set(found) == {("f16", "f16", "f16")}
