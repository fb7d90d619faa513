"""All that changes training images on the device, together and as the step runs it."""

import numpy as np
import tensorflow as tf

from benchmarks.synthetic import numbered_class_map, synthetic_batch
from efficientdet.settings import base_config
from efficientdet.task import EfficientDetTask
from engine.config.fields import override

ALL = {"mosaic": 0.5, "mixup": 0.5, "autoaugment": "v1", "color_jitter": 0.3}
SMALL = {
    "image_size": 64,
    "max_level": 5,
    "fpn_num_filters": 8,
    "fpn_cell_repeats": 1,
    "box_class_repeats": 1,
    "num_scales": 1,
}


def test_training_sees_what_the_seed_says_and_evaluation_the_images_as_they_are():
    config = override(base_config("efficientdet-lite0"), {**SMALL, **ALL}, source="test")
    task = EfficientDetTask(config, numbered_class_map(4))
    batch = synthetic_batch(task, batch_size=4, boxes_per_image=3)

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
