"""Synthetic input for timing: batches of noise with boxes and masks."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from object_detection.input import geometry
from object_detection.records.class_map import ClassMap
from object_detection.records.schema import MASK_SIZE


def numbered_class_map(num_classes: int) -> ClassMap:
    """Returns classes 0.. with category ids 1.. and numbers for names."""
    return ClassMap(num_classes, {i: (i + 1, f"class {i}") for i in range(num_classes)})


def synthetic_batch(
    task: object,
    *,
    batch_size: int,
    boxes_per_image: int,
    canvas_size: tuple[int, int] | None = None,
    distinct: int | None = None,
) -> dict:
    """Returns a device batch of noise with random boxes, in the layout of HostExamples.

    Masks are discs.

    Args:
      task: whose network the batch is for.
      batch_size: images.
      boxes_per_image: objects in each.
      canvas_size: (height, width) of the images, pixels; none: the network's, resized already.
      distinct: images that differ; the batch repeats them. None: all.
    """
    if distinct and distinct < batch_size:
        few = synthetic_batch(
            task, batch_size=distinct, boxes_per_image=boxes_per_image, canvas_size=canvas_size
        )
        times = batch_size // distinct
        return {k: tf.tile(v, [times, *[1] * (v.shape.rank - 1)]) for k, v in few.items()}
    network = task.config.model.image_size
    height, width = canvas_size or network
    rows = task.config.data.max_instances_per_image
    rng = np.random.default_rng(0)
    corners = rng.uniform(0, [[height * 0.7, width * 0.7]], [batch_size, rows, 2])
    sizes = rng.uniform(8, [[height * 0.3, width * 0.3]], [batch_size, rows, 2])
    has_box = np.arange(rows) < boxes_per_image
    classes = rng.integers(0, task.class_map.num_classes, [batch_size, rows])
    boxes = np.concatenate([corners, corners + sizes], axis=-1) * has_box[:, None]
    size = tf.constant([[height, width]] * batch_size, tf.float32)
    noise = rng.integers(0, 256, [batch_size, height, width, 3])
    batch = {
        "image": tf.constant(noise, tf.uint8),
        "geometry": geometry.pack(geometry.fit_inside(size, height=network[0], width=network[1])),
        "boxes": tf.constant(boxes, tf.float32),
        "classes": tf.constant(np.where(has_box, classes, -1), tf.int32),
        "is_crowd": tf.zeros([batch_size, rows], tf.bool),
        "areas": tf.constant(np.prod(sizes, axis=-1) * has_box, tf.float32),
        "valid": tf.ones([batch_size], tf.bool),
        "record_index": tf.range(batch_size, dtype=tf.int64),
    }
    if getattr(task, "has_masks", False):
        place = (np.arange(MASK_SIZE) + 0.5) / MASK_SIZE - 0.5
        disc = place[:, None] ** 2 + place[None, :] ** 2 <= 0.25
        batch["masks"] = tf.constant(
            np.where(has_box[:, None], np.packbits(disc), np.uint8(0))
            * np.ones([batch_size, 1, 1], np.uint8)
        )
    return batch
