"""The device's half of the input pipeline: resize, mirror, colour, normalise; boxes moved along.

Pixels are resampled by two small matrix products per image, one for the rows and one for the
columns, whose weights follow from the geometry: a triangle of one canvas pixel's reach, widened by
the scale where the image shrinks (antialiasing). Crop, mirror and placement are in the weights and
cost nothing. The host's resampling (`crop_decode`) has the same positions and weights. Two
other conventions are for networks that other programs trained (`geometry.RESAMPLINGS`).

Everything is of static shape, compiles with XLA, and differentiates into nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import tensorflow as tf

from object_detection.input import geometry as geometry_lib
from object_detection.input.geometry import ANTIALIASED, BILINEAR_LEGACY, Geometry

_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, red, green, blue


def to_network_input(
    images: tf.Tensor,
    geometry: tf.Tensor,
    *,
    height: int,
    width: int,
    mean: Sequence[float],
    std: Sequence[float],
    dtype: tf.DType,
    resized_on_host: bool = False,
    resampling: str = ANTIALIASED,
    color_jitter: float = 0.0,
    seed: tf.Tensor | None = None,
    change: Callable[[tf.Tensor, tf.Tensor], tuple[tf.Tensor, tf.Tensor]] | None = None,
) -> tf.Tensor:
    """Turns canvases into normalised network input.

    Args:
      images: uint8 [batch, canvas_height, canvas_width, 3], RGB.
      geometry: [batch, GEOMETRY_SIZE], packed.
      height, width: of the network input, pixels.
      mean: of each channel, in units of uint8 pixel values.
      std: of each channel, in the same units.
      dtype: of the result. With a 16-bit type the matrix products run in float16: pixel values and
        weights fit it (bfloat16 has too few digits for them).
      resized_on_host: the canvas is the network frame already, but for the mirror.
      resampling: one of `RESAMPLINGS`; other than antialiased needs canvases that are not reduced.
      color_jitter: strength in [0, 1] of random brightness, contrast and saturation; 0: none.
      seed: int [2], of the colour changes; each image of the batch has its own.
      change: takes pixels [batch, height, width, 3], 0..255, and bool [batch, height, width, 1],
        which of them are image; returns others in their place, before they are normalised.

    Returns:
      dtype [batch, height, width, 3]; padding is 0, that is the mean colour.
    """
    places = geometry_lib.unpack(geometry)
    inside = _inside(places, height=height, width=width)
    if resized_on_host:
        # Select takes one condition for a whole image; `tf.where` would spread it over the pixels.
        mirrored = tf.reverse(images, axis=[2])
        pixels = tf.raw_ops.Select(condition=places.flip > 0.5, x=mirrored, y=images)
    else:
        compute_dtype = tf.float16 if dtype.size == 2 else tf.float32
        pixels = resample(
            images, places, height=height, width=width, dtype=compute_dtype, resampling=resampling
        )
    pixels = tf.cast(pixels, tf.float32)
    if color_jitter > 0.0:
        pixels = jitter_colors(pixels, strength=color_jitter, seed=seed, inside=inside)
    if change is not None:
        pixels, inside = change(pixels, inside)
    # As long as a row: three numbers alone take a CPU several times as long to spread.
    mean_row, std_row = (tf.constant([values] * width, tf.float32) for values in (mean, std))
    normalised = (pixels - mean_row) / std_row
    return tf.cast(normalised * tf.cast(inside, tf.float32), dtype)


def resample(
    images: tf.Tensor,
    geometry: Geometry,
    *,
    height: int,
    width: int,
    dtype: tf.DType,
    resampling: str = ANTIALIASED,
) -> tf.Tensor:
    """Resamples canvases into the network frame, mirrored where the geometry says so.

    Arguments as of `to_network_input`; products are computed in `dtype`, which is that of the
    result [batch, height, width, 3], 0..255. What is outside the image is not meaningful.
    """
    shape = tf.shape(images) if None in images.shape[1:3] else images.shape
    rows, columns = (
        _weights(geometry, axis, num_outputs=size, num_inputs=shape[1 + axis], how=resampling)
        for axis, size in enumerate((height, width))
    )
    pixels = tf.einsum("byp,bpqc->byqc", tf.cast(rows, dtype), tf.cast(images, dtype))
    return tf.einsum("bxq,byqc->byxc", tf.cast(columns, dtype), pixels)


def ground_truth_in_network_frame(
    batch: Mapping[str, tf.Tensor], size: tuple[int, int], *, drop_crowd: bool
) -> tuple[tf.Tensor, tf.Tensor]:
    """Moves the objects of a batch of `HostExample`s with their pixels to a (height, width).

    Returns:
      gt_boxes [batch, max_instances, 4], network pixels, clipped to [0, height] and [0, width],
      zero where left out; gt_classes int32 [batch, max_instances], -1 where left out: padding,
      crowds, and boxes of which nothing is visible. As in the reference there is no least size or
      visible share.
    """
    places = geometry_lib.unpack(batch["geometry"])
    moved = geometry_lib.original_to_network(batch["boxes"], places, network_width=size[1])
    limits = tf.constant([*size, *size], tf.float32)
    moved = tf.clip_by_value(moved, 0.0, limits)
    is_visible = (moved[..., 2] > moved[..., 0]) & (moved[..., 3] > moved[..., 1])
    keep = is_visible & (batch["classes"] >= 0)
    if drop_crowd:
        keep &= ~batch["is_crowd"]
    gt_boxes = tf.where(keep[..., tf.newaxis], moved, 0.0)
    return gt_boxes, tf.where(keep, batch["classes"], -1)


def jitter_colors(
    pixels: tf.Tensor, *, strength: float, seed: tf.Tensor, inside: tf.Tensor
) -> tf.Tensor:
    """Changes brightness, contrast and saturation of each image by factors of its own.

    The three factors are uniform in [1 - strength, 1 + strength]. Pixels are
    [batch, height, width, 3], clipped to 0..255; `inside`, bool [batch, height, width, 1], says
    which are image: contrast is about their mean. `seed` is int [2].
    """
    batch = pixels.shape[0] or tf.shape(pixels)[0]
    factors = tf.random.stateless_uniform(
        [3, batch, 1, 1, 1], seed, minval=1.0 - strength, maxval=1.0 + strength
    )
    pixels = pixels * factors[0]
    luma = tf.reduce_sum(pixels * tf.constant(_LUMA), axis=-1, keepdims=True)
    weight = tf.cast(inside, tf.float32)
    mean = tf.reduce_sum(luma * weight, axis=[1, 2], keepdims=True)
    mean /= tf.maximum(tf.reduce_sum(weight, axis=[1, 2], keepdims=True), 1.0)
    pixels = mean + (pixels - mean) * factors[1]
    luma = mean + (luma - mean) * factors[1]
    return tf.clip_by_value(luma + (pixels - luma) * factors[2], 0.0, 255.0)


def _source_positions(geometry: Geometry, axis: int, *, num_outputs: int) -> tf.Tensor:
    """Returns [batch, num_outputs], the original coordinate of each output pixel's centre."""
    centres = (tf.range(num_outputs, dtype=tf.float32) + 0.5)[tf.newaxis, :]
    if axis == 1:
        centres = tf.where(geometry.flip[:, tf.newaxis] > 0.5, num_outputs - centres, centres)
    offset = geometry.network_offset[:, axis, tf.newaxis]
    return (centres + offset) / geometry.network_scale[:, axis, tf.newaxis]


def _inside(geometry: Geometry, *, height: int, width: int) -> tf.Tensor:
    """Returns bool [batch, height, width, 1], whether a pixel's centre is on the image."""
    rows, columns = (
        (positions > 0.0) & (positions < geometry.original_size[:, axis, tf.newaxis])
        for axis, positions in (
            (axis, _source_positions(geometry, axis, num_outputs=size))
            for axis, size in enumerate((height, width))
        )
    )
    return (rows[:, :, tf.newaxis] & columns[:, tf.newaxis, :])[..., tf.newaxis]


def _weights(
    geometry: Geometry, axis: int, *, num_outputs: int, num_inputs: int | tf.Tensor, how: str
) -> tf.Tensor:
    """Returns [batch, num_outputs, num_inputs], rows that sum to 1 where they meet the image."""
    positions = _source_positions(geometry, axis, num_outputs=num_outputs)
    origin, scale, valid, network_scale = (
        field[:, axis, tf.newaxis]
        for field in (
            geometry.canvas_origin,
            geometry.canvas_scale,
            geometry.canvas_valid,
            geometry.network_scale,
        )
    )
    if how == BILINEAR_LEGACY:  # pixel i of the input at i / network_scale, not the centres
        positions += 0.5 - 0.5 / network_scale
    centres = (positions - origin) * scale
    reach = tf.maximum(scale / network_scale, 1.0) if how == ANTIALIASED else tf.ones_like(scale)
    canvas_centres = tf.range(tf.cast(num_inputs, tf.float32), dtype=tf.float32) + 0.5
    distances = tf.abs(canvas_centres - centres[..., tf.newaxis])
    weights = tf.maximum(1.0 - distances / reach[..., tf.newaxis], 0.0)
    weights = tf.where(canvas_centres < valid[..., tf.newaxis], weights, 0.0)
    return weights / tf.maximum(tf.reduce_sum(weights, axis=-1, keepdims=True), 1e-6)
