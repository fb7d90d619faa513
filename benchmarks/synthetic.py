"""Synthetic input for timing: batches of noise with boxes, and classes without a data set."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from object_detection import geometry
from object_detection.class_map import ClassMap


def numbered_class_map(num_classes: int) -> ClassMap:
    """Returns classes 0.. with category ids 1.. and numbers for names."""
    return ClassMap(num_classes, {i: (i + 1, f"class {i}") for i in range(num_classes)})


def synthetic_batch(task: object, *, batch_size: int, boxes_per_image: int) -> dict:
    """Returns a device batch of noise with random boxes, in the layout of HostExamples."""
    height, width = task.config.model.image_size
    rows = task.config.data.max_instances_per_image
    rng = np.random.default_rng(0)
    corners = rng.uniform(0, [[height * 0.7, width * 0.7]], [batch_size, rows, 2])
    sizes = rng.uniform(8, [[height * 0.3, width * 0.3]], [batch_size, rows, 2])
    has_box = np.arange(rows) < boxes_per_image
    classes = rng.integers(0, task.class_map.num_classes, [batch_size, rows])
    boxes = np.concatenate([corners, corners + sizes], axis=-1) * has_box[:, None]
    size = tf.constant([[height, width]] * batch_size, tf.float32)
    noise = rng.integers(0, 256, [batch_size, height, width, 3])
    return {
        "image": tf.constant(noise, tf.uint8),
        "geometry": geometry.pack(geometry.fit_inside(size, height=height, width=width)),
        "boxes": tf.constant(boxes, tf.float32),
        "classes": tf.constant(np.where(has_box, classes, -1), tf.int32),
        "is_crowd": tf.zeros([batch_size, rows], tf.bool),
        "areas": tf.constant(np.prod(sizes, axis=-1) * has_box, tf.float32),
        "valid": tf.ones([batch_size], tf.bool),
        "record_index": tf.range(batch_size, dtype=tf.int64),
    }
