"""The compiled training step under mixed_float16, looked at as the program that XLA gets."""

import re

import pytest
import tensorflow as tf

from benchmarks.synthetic import numbered_class_map, synthetic_batch
from efficientdet.settings import base_config
from efficientdet.task import EfficientDetTask
from engine.config.fields import override

CONVOLUTION = re.compile(r"= (\w+)\[[^\]]*\]\S* convolution\((\w+)\[[^\]]*\]\S* \S+ (\w+)\[")
SMALL = {
    "image_size": 64,
    "fpn_num_filters": 8,
    "fpn_cell_repeats": 1,
    "box_class_repeats": 1,
}


@pytest.fixture
def half_precision():
    tf.keras.mixed_precision.set_global_policy("mixed_float16")
    yield
    tf.keras.mixed_precision.set_global_policy("float32")


@pytest.mark.slow
def test_every_convolution_is_in_half_precision(half_precision):
    config = override(base_config("efficientdet-d0"), SMALL, source="test")
    task = EfficientDetTask(config, numbered_class_map(4))
    batch = synthetic_batch(task, batch_size=2, boxes_per_image=3)

    def gradients(batch):
        with tf.GradientTape() as tape:
            loss = task.losses(batch, training=True, seed=tf.constant([0, 0])).loss
        return tape.gradient(loss, task.model.trainable_variables)

    function = tf.function(gradients, autograph=False, jit_compile=True)
    program = function.experimental_get_compiler_ir(batch)(stage="hlo")
    found = CONVOLUTION.findall(program)
    assert len(found) == len(re.findall(r" convolution\(", program))
    assert len(found) > 300  # forward, by input and by kernel
    assert {dtypes for dtypes in found} == {("f16", "f16", "f16")}
