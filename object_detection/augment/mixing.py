"""Training images made of several: mosaic (arXiv 2004.10934) and mixup (arXiv 1902.04103).

Both take an image's partners from its own batch: the images so many places further on, alike for
all images of a step, so that each is used equally often. Everything is of static shape and follows
from the seed alone.

The number of rows for objects stays; where more objects come together, the smallest are left out.
"""

from __future__ import annotations

from typing import NamedTuple

import tensorflow as tf

# Share of the image itself in a mixup, the rest is its partner's: about what Beta(32, 32) gives.
_LEAST_SHARE, _MOST_SHARE = 0.4, 0.6
# Whether the four parts of a mosaic lie beyond its centre, in y and in x.
_IS_SECOND = ((False, False, True, True), (False, True, False, True))


class Scenes(NamedTuple):
    """Images of a batch in the network's frame, with their objects."""

    images: tf.Tensor  # float [batch, height, width, channels]; 0 is padding
    boxes: tf.Tensor  # float32 [batch, rows, 4], (y1, x1, y2, x2), network pixels, 0 where none
    classes: tf.Tensor  # int32 [batch, rows], class_id, -1 where none
    ends: tf.Tensor  # [batch, 2] (y, x) where the stored image ends, network pixels


def mosaic(scenes: Scenes, chosen: tf.Tensor, seed: tf.Tensor) -> Scenes:
    """Puts each chosen image and three partners, at half their size, around a random centre.

    The centre is uniform in the middle half of the frame, in whole pixels. The four images touch
    there with a corner, the image itself up left; what reaches out of its quadrant is cut off.

    Args:
      scenes: height and width even; at least four images.
      chosen: bool [batch].
      seed: int [2].
    """
    images, boxes, classes, ends = scenes
    batch, height, width, channels = images.shape
    size, half = (height, width), (height // 2, width // 2)
    own = tf.range(batch)[:, tf.newaxis]
    sources = tf.concat([own, _partners(seed, batch=batch, count=3)], axis=-1)  # [batch, 4]
    uniforms = tf.random.stateless_uniform([2, batch, 1], tf.random.fold_in(seed, 1))
    halved_ends = tf.gather(tf.cast(tf.math.ceil(ends / 2.0), tf.int32), sources)
    centres, lengths, shifts = [], [], []  # of y, x; int32 [batch, 1 or 4], pixels
    for axis in range(2):
        middle = tf.cast(tf.floor(uniforms[axis] * half[axis]), tf.int32)
        centres.append(size[axis] // 4 + middle)
        lengths.append(tf.clip_by_value(halved_ends[..., axis], 1, half[axis]))
        is_second = tf.constant(_IS_SECOND[axis])
        shifts.append(centres[axis] - tf.where(is_second, 0, lengths[axis]))

    # Which pixel of which half-size image each output pixel shows.
    rows, columns = tf.range(height)[tf.newaxis, :], tf.range(width)[tf.newaxis, :]
    lower, right = rows >= centres[0], columns >= centres[1]
    quadrant = 2 * tf.cast(lower, tf.int32)[:, :, tf.newaxis]
    quadrant += tf.cast(right, tf.int32)[:, tf.newaxis, :]
    image, *of_quadrant = (
        tf.gather(values, quadrant, batch_dims=1) for values in (sources, *shifts, *lengths)
    )
    row = rows[:, :, tf.newaxis] - of_quadrant[0]
    column = columns[:, tf.newaxis, :] - of_quadrant[1]
    is_shown = (row >= 0) & (row < of_quadrant[2]) & (column >= 0) & (column < of_quadrant[3])
    place = tf.where(is_shown, (image * half[0] + row) * half[1] + column, 0)
    halved = tf.nn.avg_pool2d(images, 2, 2, "VALID")
    pixels = tf.gather(tf.reshape(halved, [-1, channels]), place)
    pixels = tf.where(is_shown[..., tf.newaxis], pixels, tf.zeros([], images.dtype))

    moved = []
    for i in range(4):
        shift = tf.stack([shifts[0][:, i], shifts[1][:, i]] * 2, axis=-1)[:, tf.newaxis, :]
        sides = [
            (centre[:, 0], tf.fill([batch], length))
            if second[i]
            else (tf.zeros([batch], tf.int32), centre[:, 0])
            for centre, length, second in zip(centres, size, _IS_SECOND)
        ]
        first, last = (
            tf.cast(tf.stack(corner * 2, axis=-1)[:, tf.newaxis, :], tf.float32)
            for corner in zip(*sides)
        )
        parts = tf.gather(boxes, sources[:, i]) * 0.5 + tf.cast(shift, tf.float32)
        moved.append(tf.clip_by_value(parts, first, last))
    return _chosen_objects(
        scenes,
        chosen,
        tf.raw_ops.Select(condition=chosen, x=pixels, y=images),
        boxes=moved,
        classes=[tf.gather(classes, sources[:, i]) for i in range(4)],
    )


def mixup(scenes: Scenes, chosen: tf.Tensor, seed: tf.Tensor) -> Scenes:
    """Blends each chosen image with a partner, and gives it the objects of both.

    The share of the image itself is uniform in 0.4..0.6. Objects of both count fully, as in
    YOLOX (arXiv 2107.08430).

    Args:
      scenes: at least two images.
      chosen: bool [batch].
      seed: int [2].
    """
    images, boxes, classes, _ = scenes
    batch = images.shape[0]
    partner = _partners(seed, batch=batch, count=1)[:, 0]
    share = tf.random.stateless_uniform(
        [batch, 1, 1, 1], tf.random.fold_in(seed, 1), minval=_LEAST_SHARE, maxval=_MOST_SHARE
    )
    share = tf.where(chosen[:, tf.newaxis, tf.newaxis, tf.newaxis], share, 1.0)
    share = tf.cast(share, images.dtype)
    mixed = share * images + (1 - share) * tf.gather(images, partner)
    return _chosen_objects(
        scenes,
        chosen,
        mixed,
        boxes=[boxes, tf.gather(boxes, partner)],
        classes=[classes, tf.gather(classes, partner)],
    )


def _partners(seed: tf.Tensor, *, batch: int, count: int) -> tf.Tensor:
    """Returns int32 [batch, count]: other images of the batch, all different."""
    order = tf.argsort(tf.random.stateless_uniform([batch - 1], seed))
    return (tf.range(batch)[:, tf.newaxis] + 1 + order[tf.newaxis, :count]) % batch


def _chosen_objects(
    scenes: Scenes,
    chosen: tf.Tensor,
    images: tf.Tensor,
    *,
    boxes: list[tf.Tensor],
    classes: list[tf.Tensor],
) -> Scenes:
    """Gives the chosen images as many objects as there are rows, the largest; others their own."""
    rows = scenes.classes.shape[1]
    all_boxes, all_classes = tf.concat(boxes, axis=1), tf.concat(classes, axis=1)
    sides = all_boxes[..., 2:] - all_boxes[..., :2]
    is_visible = (all_classes >= 0) & tf.reduce_all(sides > 0.0, axis=-1)
    areas = tf.where(is_visible, sides[..., 0] * sides[..., 1], 0.0)
    largest = tf.math.top_k(areas, rows).indices
    kept, kept_boxes, kept_classes = (
        tf.gather(values, largest, batch_dims=1) for values in (is_visible, all_boxes, all_classes)
    )
    is_mixed = chosen[:, tf.newaxis]
    kept_boxes = tf.where(kept[..., tf.newaxis], kept_boxes, 0.0)
    return Scenes(
        images,
        tf.where(is_mixed[..., tf.newaxis], kept_boxes, scenes.boxes),
        tf.where(is_mixed, tf.where(kept, kept_classes, -1), scenes.classes),
        tf.where(is_mixed, tf.constant(tuple(images.shape[1:3]), tf.float32), scenes.ends),
    )
