"""AutoAugment for detection (arXiv 1906.11172) on a whole batch in the network's frame, compiled.

Each image gets a line of the policy of its own, and its operations one after the other. All images
go through the same few stages - grey levels, saturation and sharpness, places, rectangles - and
each is changed by the one that its operation belongs to; what no image needs is passed over.

Departures from google/automl's program, which changes the stored image before scale and crop:

* Here it is what the crop left. Lengths in pixels are meant for an image whose longer side is 640
  pixels, as most of COCO's are, and go with its scale.
* What an operation uncovers or cuts out is padding, not grey; padding stays as it is, whatever is
  done to grey levels.
* Boxes of which nothing is left are dropped, not widened. Posterizing keeps at least one bit.
* `only_...` operations change at most eight objects of an image, none of them twice.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import tensorflow as tf

from object_detection.augment import grey_levels
from object_detection.augment.grey_levels import is_any
from object_detection.augment.policies import policy

_REFERENCE_SIDE = 640.0  # longer side of the image that lengths are meant for
_MOST_OBJECTS = 8
# At magnitude 10: degrees, shear, pixels, pixels within a box; half sides in pixels, in shares of
# an object, in pixels within a box.
_ROTATE, _SHEAR, _TRANSLATE, _TRANSLATE_IN_BOX = 30.0, 0.3, 250.0, 120.0
_CUTOUT, _BOX_CUTOUT, _CUTOUT_IN_BOX = 100.0, 0.75, 50.0
_GREY = ("autocontrast", "equalize", "posterize", "solarize", "solarize_add", "brightness")
_GREY += ("contrast", "only_equalize")
_WHOLE_PLACES = ("rotate", "shear_x", "shear_y", "translate_x", "translate_y")
_BOX_PLACES = ("only_shear_x", "only_shear_y", "only_translate_y", "only_flip")
_CUTS = ("cutout", "box_cutout", "only_cutout")
_ONLY = (*_BOX_PLACES, "only_equalize", "only_cutout")


class _Step(NamedTuple):
    """One operation for each image of a batch, and what is random about it."""

    kinds: tf.Tensor  # int32 [batch]
    magnitudes: tf.Tensor  # [batch], 0..10
    sign: tf.Tensor  # [batch], -1 or 1
    uniforms: tf.Tensor  # [batch, 3]
    objects: tf.Tensor  # [batch, 1 + _MOST_OBJECTS, 4] boxes to work within; the first is none
    object_sign: tf.Tensor  # [batch, 1 + _MOST_OBJECTS], -1 or 1
    object_uniforms: tf.Tensor  # [batch, 1 + _MOST_OBJECTS, 2]
    one_object: tf.Tensor  # [batch, 4], a box drawn among all, zero where there is none
    ends: tf.Tensor  # [batch, 2] (y, x), where the images end
    unit: tf.Tensor  # [batch], pixels of the network for a pixel of lengths


def auto_augment(
    pixels: tf.Tensor,
    inside: tf.Tensor,
    boxes: tf.Tensor,
    classes: tf.Tensor,
    *,
    name: str,
    ends: tf.Tensor,
    unit: tf.Tensor,
    seed: tf.Tensor,
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor]:
    """Applies a policy.

    Args:
      pixels: [batch, height, width, 3], 0..255.
      inside: bool [batch, height, width, 1], which pixels are image.
      boxes: [batch, rows, 4], (y1, x1, y2, x2), network pixels.
      classes: int32 [batch, rows], -1 where there is no object.
      name: of the policy.
      ends: [batch, 2] (y, x), where the images end, network pixels.
      unit: [batch], the longer side of the scaled image, network pixels.
      seed: int [2].

    Returns:
      The first four arguments, changed; boxes of which nothing is left are 0, their classes -1.
    """
    table = tf.constant(policy(name))
    batch = pixels.shape[0]
    unit = unit / _REFERENCE_SIDE
    drawn = tf.random.stateless_uniform([batch], tf.random.fold_in(seed, 0))
    lines = tf.gather(table, tf.cast(drawn * table.shape[0], tf.int32))  # [batch, operations, 3]
    shown = tf.cast(inside, tf.float32)
    for i in range(table.shape[1]):
        own_seed = tf.random.fold_in(seed, 1 + i)
        step = _draw(lines[:, i], boxes, classes, ends=ends, unit=unit, seed=own_seed)
        pixels, shown = _change(pixels, shown, step)
        boxes, classes = _move_boxes(boxes, classes, step, pixels.shape[1:3])
    return pixels, shown > 0.5, boxes, classes


def _draw(
    line: tf.Tensor, boxes: tf.Tensor, classes: tf.Tensor, *, seed: tf.Tensor, **lengths: tf.Tensor
) -> _Step:
    """Draws what is random in one operation of each image: [batch, 3], see `policies.policy`.

    `lengths` are the other fields of a step.
    """
    batch, rows = classes.shape
    kinds = tf.cast(line[:, 0], tf.int32)
    probability = line[:, 1]
    uniforms = tf.random.stateless_uniform([batch, 5], tf.random.fold_in(seed, 0))
    is_only = is_any(kinds, *_ONLY)
    kinds = tf.where(is_only | (uniforms[:, 0] < probability), kinds, 0)

    # Objects in a random order: those to work within first, then the others.
    by_row = tf.random.stateless_uniform([batch, rows], tf.random.fold_in(seed, 1))
    is_object = classes >= 0
    is_chosen = is_object & (by_row < (probability / 3.0)[:, tf.newaxis])
    count = min(_MOST_OBJECTS, rows)
    scores, order = tf.math.top_k(tf.where(is_chosen, 1.0 - by_row, -1.0), count)
    objects = tf.gather(boxes, order, batch_dims=1)
    objects = tf.where((scores > 0.0)[..., tf.newaxis] & is_only[:, None, None], objects, 0.0)
    objects = tf.concat([tf.floor(objects[..., :2]), tf.math.ceil(objects[..., 2:])], axis=-1)
    objects = tf.pad(objects, [[0, 0], [1, _MOST_OBJECTS - count], [0, 0]])
    anyone = tf.argmax(tf.where(is_object, by_row, -1.0), axis=-1)
    one_object = tf.gather(tf.where(is_object[..., tf.newaxis], boxes, 0.0), anyone, batch_dims=1)
    by_object = tf.random.stateless_uniform(
        [batch, 1 + _MOST_OBJECTS, 3], tf.random.fold_in(seed, 2)
    )
    return _Step(
        kinds=kinds,
        magnitudes=line[:, 2],
        sign=tf.where(uniforms[:, 1] < 0.5, -1.0, 1.0),
        uniforms=uniforms[:, 2:],
        objects=objects,
        object_sign=tf.where(by_object[..., 0] < 0.5, -1.0, 1.0),
        object_uniforms=by_object[..., 1:],
        one_object=one_object,
        **lengths,
    )


def _change(pixels: tf.Tensor, shown: tf.Tensor, step: _Step) -> tuple[tf.Tensor, tf.Tensor]:
    """Changes the pixels by one operation each, and which of them are image (1 or 0)."""
    kinds, magnitudes = step.kinds, step.magnitudes
    none = tf.zeros(pixels.shape[:3], tf.int32)
    size = pixels.shape[1:3]
    regions = _if_any(is_any(kinds, *_ONLY), lambda: _regions(step.objects, size), none)

    def looked_up():
        of_kind = tf.where(is_any(kinds, "only_equalize")[:, None, None], regions, 0)
        return grey_levels.look_up(
            pixels, shown, of_kind, kinds, magnitudes, num_regions=1 + _MOST_OBJECTS
        )

    pixels = _if_any(is_any(kinds, *_GREY), looked_up, pixels)
    is_blended = is_any(kinds, "color", "sharpness")
    pixels = _if_any(is_blended, lambda: grey_levels.blend(pixels, kinds, magnitudes), pixels)
    whole = tf.concat([pixels, shown], axis=-1)
    is_moved = is_any(kinds, *_WHOLE_PLACES, *_BOX_PLACES)
    whole = _if_any(is_moved, lambda: _move_pixels(whole, regions, step), whole)
    is_cut = _if_any(is_any(kinds, *_CUTS), lambda: _cuts(regions, step), none > 0)
    return whole[..., :3], tf.where(is_cut[..., tf.newaxis], 0.0, whole[..., 3:])


def _if_any(needed: tf.Tensor, change: Callable[[], tf.Tensor], without: tf.Tensor) -> tf.Tensor:
    return tf.cond(tf.reduce_any(needed), change, lambda: without)


def _regions(objects: tf.Tensor, size: tf.TensorShape) -> tf.Tensor:
    """Returns int32 [batch, height, width], the last object of `_Step` over a pixel; 0: none."""
    rows, columns = tf.range(size[0], dtype=tf.float32), tf.range(size[1], dtype=tf.float32)
    regions = tf.zeros([objects.shape[0], *size], tf.int32)
    for i in range(1, objects.shape[1]):
        y1, x1, y2, x2 = (side[:, tf.newaxis] for side in tf.unstack(objects[:, i], axis=-1))
        is_row, is_column = (rows >= y1) & (rows < y2), (columns >= x1) & (columns < x2)
        regions = tf.where(is_row[:, :, tf.newaxis] & is_column[:, tf.newaxis, :], i, regions)
    return regions


def _motion(step: _Step) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns how points (y, x) move, p -> linear p + shift: [batch, 2, 2] and [batch, 2]."""
    strength = step.sign * step.magnitudes / 10.0
    zero = tf.zeros_like(strength)

    def amount(name: str, most: float) -> tf.Tensor:
        return tf.where(is_any(step.kinds, name), strength * most, zero)

    angle = amount("rotate", _ROTATE * math.pi / 180.0)
    cosine, sine = tf.cos(angle), tf.sin(angle)
    linear = tf.stack(
        [cosine, -sine + amount("shear_y", _SHEAR), sine + amount("shear_x", _SHEAR), cosine],
        axis=-1,
    )
    linear = tf.reshape(linear, [-1, 2, 2])
    shift = tf.stack([amount(f"translate_{axis}", _TRANSLATE) for axis in "yx"], axis=-1)
    shift *= step.unit[:, tf.newaxis]
    # Turned about the image's centre; sheared from its corner.
    centre = tf.where(is_any(step.kinds, "rotate")[:, tf.newaxis], step.ends / 2.0, 0.0)
    return linear, centre + shift - tf.linalg.matvec(linear, centre)


def _move_pixels(whole: tf.Tensor, regions: tf.Tensor, step: _Step) -> tf.Tensor:
    """Takes each pixel from the nearest one to where it comes from, or makes it 0."""
    batch, height, width, channels = whole.shape
    rows = tf.range(height, dtype=tf.float32)[tf.newaxis, :, tf.newaxis] + 0.5
    columns = tf.range(width, dtype=tf.float32)[tf.newaxis, tf.newaxis, :] + 0.5
    linear, shift = _motion(step)
    a, b, c, d = (linear[:, i, j, None, None] for i in range(2) for j in range(2))
    y, x = rows - shift[:, 0, None, None], columns - shift[:, 1, None, None]
    determinant = a * d - b * c
    y, x = (d * y - b * x) / determinant, (a * x - c * y) / determinant
    low_y, low_x, high_y, high_x = 0.0, 0.0, float(height), float(width)

    # Within an object's box pixels move by themselves.
    is_only = is_any(step.kinds, *_BOX_PLACES)[:, tf.newaxis, tf.newaxis] & (regions > 0)
    boxes = tf.gather(step.objects, regions, batch_dims=1)
    y1, x1, y2, x2 = tf.unstack(boxes, axis=-1)
    strength = tf.gather(step.object_sign, regions, batch_dims=1)
    strength *= (step.magnitudes / 10.0)[:, tf.newaxis, tf.newaxis]

    def amount(name: str, most: float | tf.Tensor) -> tf.Tensor:
        is_kind = is_any(step.kinds, name)[:, tf.newaxis, tf.newaxis]
        return tf.where(is_kind, strength * most, 0.0)

    is_flip = is_any(step.kinds, "only_flip")[:, tf.newaxis, tf.newaxis]
    own_y = rows - amount("only_translate_y", _TRANSLATE_IN_BOX * step.unit[:, None, None])
    own_y += amount("only_shear_y", _SHEAR) * (columns - x1)
    own_x = tf.where(is_flip, x1 + x2 - columns, columns)
    own_x += amount("only_shear_x", _SHEAR) * (rows - y1)
    y, x = tf.where(is_only, own_y, y), tf.where(is_only, own_x, x)
    low_y, low_x = tf.where(is_only, y1, low_y), tf.where(is_only, x1, low_x)
    high_y, high_x = tf.where(is_only, y2, high_y), tf.where(is_only, x2, high_x)
    # A thousandth of a pixel is forgiven: a pixel that stays must not be rounded to its neighbour.
    row, column = (tf.cast(tf.floor(value + 1e-3), tf.int32) for value in (y, x))
    is_there = (y >= low_y) & (y < high_y) & (x >= low_x) & (x < high_x)
    is_there &= (row >= 0) & (row < height) & (column >= 0) & (column < width)
    image = tf.range(batch)[:, tf.newaxis, tf.newaxis]
    place = tf.where(is_there, (image * height + row) * width + column, 0)
    moved = tf.gather(tf.reshape(whole, [-1, channels]), place)
    return tf.where(is_there[..., tf.newaxis], moved, 0.0)


def _cuts(regions: tf.Tensor, step: _Step) -> tf.Tensor:
    """Returns bool [batch, height, width], what is cut out."""
    height, width = regions.shape[1:]
    share = step.magnitudes[:, tf.newaxis] / 10.0
    in_one = is_any(step.kinds, "box_cutout")[:, tf.newaxis]
    first = tf.where(in_one, step.one_object[:, :2], 0.0)
    last = tf.where(in_one, step.one_object[:, 2:], step.ends)
    lengths = share * step.unit[:, tf.newaxis]
    half = tf.where(in_one, share * _BOX_CUTOUT * (last - first) / 2.0, lengths * _CUTOUT)
    middle = first + step.uniforms[:, :2] * (last - first)
    # Within objects: a rectangle for each, and none outside of them.
    sides = step.objects[..., 2:] - step.objects[..., :2]
    middles = step.objects[..., :2] + step.object_uniforms * sides
    in_objects = is_any(step.kinds, "only_cutout")[:, tf.newaxis, tf.newaxis]
    middles = tf.where(in_objects, middles, middle[:, tf.newaxis])
    halves = lengths * _CUTOUT_IN_BOX
    halves = tf.where(in_objects, halves[..., tf.newaxis], half[:, tf.newaxis])
    of_kind = tf.where(in_objects, regions, 0)
    middle_y, middle_x, half_y, half_x = (
        tf.gather(tf.broadcast_to(values, middles.shape)[..., axis], of_kind, batch_dims=1)
        for values in (middles, halves)
        for axis in range(2)
    )
    rows = tf.range(height, dtype=tf.float32)[tf.newaxis, :, tf.newaxis] + 0.5
    columns = tf.range(width, dtype=tf.float32)[tf.newaxis, tf.newaxis, :] + 0.5
    is_cut = (tf.abs(rows - middle_y) < half_y) & (tf.abs(columns - middle_x) < half_x)
    is_kind = is_any(step.kinds, *_CUTS)[:, tf.newaxis, tf.newaxis]
    return is_cut & is_kind & (~in_objects | (regions > 0))


def _move_boxes(
    boxes: tf.Tensor, classes: tf.Tensor, step: _Step, size: tf.TensorShape
) -> tuple[tf.Tensor, tf.Tensor]:
    """Moves boxes with their pixels: each becomes the box around its four moved corners."""
    linear, shift = _motion(step)
    y1, x1, y2, x2 = tf.unstack(boxes, axis=-1)
    corners = tf.stack([y1, x1, y1, x2, y2, x1, y2, x2], axis=-1)
    corners = tf.reshape(corners, [*boxes.shape[:2], 4, 2])
    corners = tf.einsum("bij,bnkj->bnki", linear, corners) + shift[:, None, None, :]
    limits = tf.constant([size[0], size[1]] * 2, tf.float32)
    around = [tf.reduce_min(corners, axis=2), tf.reduce_max(corners, axis=2)]
    around = tf.clip_by_value(tf.concat(around, axis=-1), 0.0, limits)
    is_moved = is_any(step.kinds, *_WHOLE_PLACES)[:, tf.newaxis, tf.newaxis]
    moved = tf.where(is_moved, around, boxes)
    is_left = tf.reduce_all(moved[..., 2:] > moved[..., :2], axis=-1) & (classes >= 0)
    return tf.where(is_left[..., tf.newaxis], moved, 0.0), tf.where(is_left, classes, -1)
