"""Operations of AutoAugment on the values of pixels, a different one for each image of a batch.

Those that map grey levels are one table for each image and channel, and a single look-up. Only
pixels of the image count for histograms and means, not its padding.
"""

from __future__ import annotations

import tensorflow as tf

from object_detection.augment.policies import OPERATIONS

_LEVELS = 256
_LUMA = (0.2989, 0.587, 0.114)  # ITU-R BT.601, as TensorFlow rounds it


def is_any(kinds: tf.Tensor, *operations: str) -> tf.Tensor:
    """Returns which of the kinds (numbers of operations, any shape) are one of those named."""
    return tf.reduce_any([kinds == OPERATIONS.index(name) for name in operations], axis=0)


def enhancement(magnitudes: tf.Tensor) -> tf.Tensor:
    """Returns the factor of brightness, contrast, color and sharpness: 0.1 to 1.9, 1 is none."""
    return magnitudes / 10.0 * 1.8 + 0.1


def look_up(
    pixels: tf.Tensor,
    inside: tf.Tensor,
    regions: tf.Tensor,
    kinds: tf.Tensor,
    magnitudes: tf.Tensor,
    *,
    num_regions: int,
) -> tf.Tensor:
    """Maps the grey levels of each image.

    Args:
      pixels: [batch, height, width, 3], 0..255; rounded first.
      inside: [batch, height, width, 1], 1 for pixels of the image.
      regions: int32 [batch, height, width], the object that a pixel belongs to, from 1; 0: none,
        everywhere but for `only_equalize`.
      kinds: int32 [batch], number of the operation; others than of grey levels do nothing.
      magnitudes: [batch], 0..10.
      num_regions: bounds `regions`.
    """
    batch = pixels.shape[0]
    levels = tf.cast(tf.round(tf.clip_by_value(pixels, 0.0, 255.0)), tf.int32)
    place = (tf.range(batch)[:, tf.newaxis, tf.newaxis] * num_regions + regions)[..., tf.newaxis]
    place = (place * 3 + tf.range(3)) * _LEVELS + levels
    shape = [batch, num_regions, 3, _LEVELS]
    counts = tf.math.unsorted_segment_sum(
        tf.reshape(tf.broadcast_to(inside, levels.shape), [-1]),
        tf.reshape(place, [-1]),
        batch * num_regions * 3 * _LEVELS,
    )
    counts = tf.reshape(counts, shape)
    luma = tf.reduce_sum(tf.cast(levels, tf.float32) * tf.constant(_LUMA), axis=-1, keepdims=True)
    count = tf.maximum(tf.reduce_sum(inside, axis=[1, 2, 3]), 1.0)
    mean = tf.floor(tf.reduce_sum(tf.floor(luma) * inside, axis=[1, 2, 3]) / count)

    v = tf.range(_LEVELS, dtype=tf.float32)
    strength, mean, factor = (
        value[:, tf.newaxis, tf.newaxis, tf.newaxis]
        for value in (magnitudes / 10.0, mean, enhancement(magnitudes))
    )
    # Posterizing keeps 0 to 4 bits; at least one, or nothing would be left.
    step = tf.pow(2.0, 8.0 - tf.maximum(tf.floor(strength * 4.0), 1.0))
    added = tf.minimum(v + tf.floor(strength * 110.0), 255.0)
    equalized = _equalized(counts, v)
    in_objects = (tf.range(num_regions) > 0)[:, tf.newaxis, tf.newaxis]
    tables = {
        "autocontrast": _stretched(counts, v),
        "equalize": equalized,
        "posterize": tf.floor(v / step) * step,
        "solarize": tf.where(v < tf.floor(strength * 256.0), v, 255.0 - v),
        "solarize_add": tf.where(v < 128.0, added, v),
        "brightness": tf.floor(tf.clip_by_value(v * factor, 0.0, 255.0)),
        "contrast": tf.floor(tf.clip_by_value(mean + (v - mean) * factor, 0.0, 255.0)),
        "only_equalize": tf.where(in_objects, equalized, v),
    }
    table = tf.broadcast_to(v, shape)
    for name, mapped in tables.items():
        is_kind = is_any(kinds, name)[:, tf.newaxis, tf.newaxis, tf.newaxis]
        table = tf.where(is_kind, mapped, table)
    return tf.gather(tf.reshape(table, [-1]), place)


def _stretched(counts: tf.Tensor, v: tf.Tensor) -> tf.Tensor:
    """Stretches each channel's levels to 0..255."""
    low = tf.reduce_min(tf.where(counts > 0.0, v, 255.0), axis=-1, keepdims=True)
    high = tf.reduce_max(tf.where(counts > 0.0, v, 0.0), axis=-1, keepdims=True)
    stretched = (v - low) * 255.0 / tf.maximum(high - low, 1.0)
    return tf.where(high > low, tf.floor(tf.clip_by_value(stretched, 0.0, 255.0)), v)


def _equalized(counts: tf.Tensor, v: tf.Tensor) -> tf.Tensor:
    """Equalizes each channel's histogram by Pillow's rule."""
    high = tf.reduce_max(tf.where(counts > 0.0, v, 0.0), axis=-1, keepdims=True)
    below_high = tf.reduce_sum(tf.where(v < high, counts, 0.0), axis=-1, keepdims=True)
    step = tf.floor(below_high / 255.0)
    below = tf.cumsum(counts, axis=-1, exclusive=True)
    mapped = tf.floor((below + tf.floor(step / 2.0)) / tf.maximum(step, 1.0))
    return tf.where(step > 0.0, tf.minimum(mapped, 255.0), v)


def blend(pixels: tf.Tensor, kinds: tf.Tensor, magnitudes: tf.Tensor) -> tf.Tensor:
    """Changes the saturation or the sharpness of each image; arguments as of `look_up`.

    The frame's outermost pixels are not sharpened.
    """
    height, width = pixels.shape[1:3]
    grey = tf.reduce_sum(pixels * tf.constant(_LUMA), axis=-1, keepdims=True)
    # The mean of nine pixels with the middle one five times: (9 mean + 4 middle) / 13.
    smooth = (9.0 * tf.nn.avg_pool2d(pixels, 3, 1, "SAME") + 4.0 * pixels) / 13.0
    rows, columns = ((tf.range(size) > 0) & (tf.range(size) < size - 1) for size in (height, width))
    is_inner = (rows[:, tf.newaxis] & columns[tf.newaxis, :])[..., tf.newaxis]
    smooth = tf.where(is_inner, smooth, pixels)
    kinds = kinds[:, tf.newaxis, tf.newaxis, tf.newaxis]
    without = tf.where(is_any(kinds, "color"), grey, smooth)
    factor = enhancement(magnitudes)[:, tf.newaxis, tf.newaxis, tf.newaxis]
    changed = tf.clip_by_value(without + (pixels - without) * factor, 0.0, 255.0)
    return tf.where(is_any(kinds, "color", "sharpness"), changed, pixels)
