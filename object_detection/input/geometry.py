"""The only mapping between the three frames a box or a pixel can be in.

* *original*: pixels of the image as stored in the data set.
* *canvas*: pixels of the uint8 array that leaves the host; it holds a (possibly reduced) decoded
  region of the original.
* *network*: pixels of the model input.

``canvas = (original - canvas_origin) * canvas_scale`` and
``network = original * network_scale - network_offset``, both with y and x apart; a flipped example
is then mirrored in the network frame: ``x -> network_width - x``. Coordinates are continuous: pixel
``i`` covers ``[i, i + 1)`` and its centre is ``i + 0.5``.

Trap: the mirror is that of the whole network frame, so a flipped example narrower than the network
has a negative x offset, chosen so that its padding is at the right after mirroring, as for any
other example.

Everything here runs eagerly, in ``dataset.map`` and in compiled functions.
"""

from __future__ import annotations

from typing import NamedTuple

import tensorflow as tf

GEOMETRY_SIZE = 13

# How pixels are resampled into the network frame. A triangle, widened where the image shrinks; or
# between the two nearest pixels of each axis only, by their centres, or by their indices as
# TensorFlow 1 did it.
ANTIALIASED, BILINEAR, BILINEAR_LEGACY = "antialiased", "bilinear", "bilinear_legacy"
RESAMPLINGS = (ANTIALIASED, BILINEAR, BILINEAR_LEGACY)


class Frames(NamedTuple):
    """Sizes (height, width) in pixels, and where images are resampled.

    canvas_size: the network size if `resize_on_host`: then the canvas is the network frame before
      mirroring.
    side_limits: (short, long) side of the resized image; none: the network size alone limits it.
    resampling: one of RESAMPLINGS; other than antialiased only with `resize_on_host`, as the device
      has no unreduced pixels of large images.
    """

    network_size: tuple[int, int]
    canvas_size: tuple[int, int]
    resize_on_host: bool
    side_limits: tuple[int, int] | None = None
    resampling: str = ANTIALIASED


class Geometry(NamedTuple):
    """Where the pixels of one example came from and go to. Every field is float32.

    The leading dimensions (none on the host, ``[batch]`` on the device) are the same everywhere.
    """

    original_size: tf.Tensor  # [..., 2] (height, width) of the stored image
    canvas_origin: tf.Tensor  # [..., 2] original (y, x) of the canvas' corner (0, 0)
    canvas_scale: tf.Tensor  # [..., 2] canvas pixels per original pixel (y, x)
    canvas_valid: tf.Tensor  # [..., 2] canvas rows and columns that hold image
    network_scale: tf.Tensor  # [..., 2] network pixels per original pixel (y, x)
    network_offset: tf.Tensor  # [..., 2] network pixels (y, x) taken off after scaling
    flip: tf.Tensor  # [...] 1.0 if mirrored left to right, else 0.0


def pack(geometry: Geometry) -> tf.Tensor:
    """Packs a geometry into float32 [..., GEOMETRY_SIZE], in which form it goes to the device."""
    fields = [tf.cast(field, tf.float32) for field in geometry[:-1]]
    flip = tf.cast(geometry.flip, tf.float32)[..., tf.newaxis]
    return tf.concat([*fields, flip], axis=-1)


def unpack(packed: tf.Tensor) -> Geometry:
    """Undoes `pack`."""
    pairs = [packed[..., i : i + 2] for i in range(0, GEOMETRY_SIZE - 1, 2)]
    return Geometry(*pairs, flip=packed[..., GEOMETRY_SIZE - 1])


def fit_inside(original_size: tf.Tensor, *, height: int, width: int) -> Geometry:
    """Geometry of a whole image held unreduced in the canvas and scaled to fit, as in evaluation.

    The scale is ``min(height / h, width / w)`` and the scaled size is truncated to whole pixels,
    which is why y and x scales differ a little.

    Args:
      original_size: [..., 2] (height, width) in pixels, any number type.
      height, width: of the network input, pixels.
    """
    size = tf.cast(original_size, tf.float32)
    network_size = tf.cast([height, width], tf.float32)
    scaled_size = scaled_size_within(size, network_size)
    zeros = tf.zeros_like(size)
    return Geometry(
        original_size=size,
        canvas_origin=zeros,
        canvas_scale=tf.ones_like(size),
        canvas_valid=size,
        network_scale=scaled_size / size,
        network_offset=zeros,
        flip=zeros[..., 0],
    )


def scaled_size_within(original_size: tf.Tensor, target_size: tf.Tensor) -> tf.Tensor:
    """Largest whole-pixel size of the image's shape inside a target, at least one pixel.

    Args:
      original_size: [..., 2] float32 (height, width), pixels.
      target_size: [..., 2] float32 (height, width), pixels.

    Returns:
      [..., 2] float32 with whole values. A thousandth of a pixel is forgiven before truncating, so
      that the side which decides the scale keeps its target size despite float32 rounding.
    """
    scale = tf.reduce_min(target_size / original_size, axis=-1, keepdims=True)
    return tf.maximum(tf.floor(original_size * scale + 1e-3), 1.0)


def original_to_network(boxes: tf.Tensor, geometry: Geometry, *, network_width: int) -> tf.Tensor:
    """Moves boxes with their pixels into the network frame, without clipping.

    Args:
      boxes: [..., N, 4] float32 (y1, x1, y2, x2), original pixels.
      geometry: of the examples, with the same leading dimensions.
      network_width: of the network input, pixels; the flip needs it.

    Returns:
      [..., N, 4] (y1, x1, y2, x2), network pixels. All-zero padding boxes move too: mask them.
    """
    scale, offset = _per_corner(geometry.network_scale), _per_corner(geometry.network_offset)
    return _mirror(boxes * scale - offset, geometry.flip, network_width)


def network_to_original(boxes: tf.Tensor, geometry: Geometry, *, network_width: int) -> tf.Tensor:
    """Inverts `original_to_network`: [..., N, 4] network pixels to original ones, not clipped."""
    scale, offset = _per_corner(geometry.network_scale), _per_corner(geometry.network_offset)
    return (_mirror(boxes, geometry.flip, network_width) + offset) / scale


def ends_in_network(geometry: Geometry, network_size: tuple[int, int]) -> tf.Tensor:
    """Returns [batch, 2] (y, x), where in the network frame the images of a batch end, pixels."""
    ends = tf.round(geometry.original_size * geometry.network_scale) - geometry.network_offset
    mirrored = network_size[1] + geometry.network_offset[:, 1]
    right = tf.where(geometry.flip > 0.5, mirrored, ends[:, 1])
    return tf.minimum(tf.stack([ends[:, 0], right], axis=-1), tf.constant(network_size, tf.float32))


def clip_to_original(boxes: tf.Tensor, geometry: Geometry) -> tf.Tensor:
    """Clips [..., N, 4] boxes, original pixels, to the stored images of the same examples."""
    return tf.maximum(tf.minimum(boxes, _per_corner(geometry.original_size)), 0.0)


def _per_corner(pair: tf.Tensor) -> tf.Tensor:
    """[..., 2] (y, x) -> [..., 1, 4] (y, x, y, x)."""
    return tf.concat([pair, pair], axis=-1)[..., tf.newaxis, :]


def _mirror(boxes: tf.Tensor, flip: tf.Tensor, network_width: int) -> tf.Tensor:
    y1, x1, y2, x2 = tf.unstack(boxes, axis=-1)
    is_flipped = flip[..., tf.newaxis] > 0.5
    mirrored_x1 = tf.where(is_flipped, network_width - x2, x1)
    mirrored_x2 = tf.where(is_flipped, network_width - x1, x2)
    return tf.stack([y1, mirrored_x1, y2, mirrored_x2], axis=-1)
