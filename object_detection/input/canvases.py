"""Which canvas an image goes to, and how large it becomes there.

A detector may take images of several shapes, each of them a compiled program of its own: landscape,
portrait and nearly square ones waste less of their canvas than all in one shape. A batch has one
shape, so records are grouped by shape before they are decoded.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from object_detection.input import crop_decode
from object_detection.input.geometry import Frames
from object_detection.records import schema

# Scales that differ by less than this share count as equal: the smaller canvas is taken.
_SAME_SCALE = 1e-4
# Heights, and widths, between the least and the largest that stand for all of a set.
_SIZES_TRIED = 24
_UNKNOWN = -1
# Pixels between canvases that would else be of one size.
_TOLD_APART = 8


def frames_of_networks(
    network_sizes: Sequence[tuple[int, int]],
    *,
    resize_on_host: bool,
    side_limits: tuple[int, int] | None = None,
    canvas_size: tuple[int, int] | None = None,
    largest_image: tuple[int, int] | None = None,
) -> tuple[Frames, ...]:
    """Makes one frame for each shape of network input, smallest first.

    A canvas is 1.25 times its network, but no larger than the largest image. Images at most that
    large are sent as they are; of larger ones the canvas holds a reduced region, see
    `crop_decode.decode_crop`. The canvases differ from one another, so that a canvas tells the
    network size.

    Args:
      network_sizes: (height, width) of each, pixels.
      resize_on_host: a canvas is then its network's frame.
      side_limits: see `Frames`.
      canvas_size: (height, width) in pixels instead of the choice; only with one network size.
      largest_image: largest (height, width) of the set, if known.

    Raises:
      ValueError: a canvas size is given for several network sizes.
    """
    if canvas_size and len(network_sizes) > 1:
        raise ValueError(
            f"canvas_size={canvas_size[0]}: expected 0 with several canvases {network_sizes}"
        )

    frames: list[Frames] = []
    for size in sorted(network_sizes, key=lambda size: (size[0] * size[1], size)):
        if resize_on_host:
            height, width = size
        elif canvas_size:
            height, width = canvas_size
        else:
            height, width = (-(-side * 5 // 32) * 8 for side in size)
            if largest_image:
                height, width = min(height, largest_image[0]), min(width, largest_image[1])
        while any((height, width) == other.canvas_size for other in frames):
            # Bounded by the same largest image: a few columns, or rows, tell them apart.
            is_tall = size[0] > size[1]
            height, width = height + _TOLD_APART * is_tall, width + _TOLD_APART * (not is_tall)
        frames.append(Frames(tuple(size), (height, width), resize_on_host, side_limits))
    return tuple(frames)


def fit_size(original_size: tf.Tensor, frames: Frames) -> tf.Tensor | None:
    """Returns the float32 [2] size that an image is scaled to fit into; none: the network size.

    Args:
      original_size: float32 [2] (height, width), pixels.
      frames: the image's.
    """
    if frames.side_limits is None:
        return None
    network = tf.constant(frames.network_size, tf.float32)
    return tf.minimum(network, original_size * _limit_scale(original_size, frames.side_limits))


def best_frame(original_size: tf.Tensor, choices: Sequence[Frames]) -> tf.Tensor:
    """Chooses the smallest frame in which an image is as large as its side limits allow.

    Where none holds it at that size, the one in which it becomes largest.

    Args:
      original_size: float32 [2] (height, width), pixels.
      choices: frames with the same side limits, smallest first.

    Returns:
      int32 [], index of the choice.
    """
    networks = tf.constant([frames.network_size for frames in choices], tf.float32)
    scales = tf.reduce_min(networks / original_size, axis=-1)
    scales = tf.minimum(scales, _limit_scale(original_size, choices[0].side_limits))
    is_best = scales >= tf.reduce_max(scales) * (1.0 - _SAME_SCALE)
    return tf.argmax(tf.cast(is_best, tf.int32), output_type=tf.int32)


def frames_in_use(
    choices: Sequence[Frames], smallest: tuple[int, int], largest: tuple[int, int]
) -> list[Frames]:
    """Returns the frames that images of a set may go to; all where a size is not known.

    Args:
      choices: as of `best_frame`.
      smallest, largest: least and largest (height, width) of the set, pixels.
    """
    if len(choices) == 1 or min(*smallest, *largest) <= 0:
        return list(choices)
    heights, widths = (
        np.geomspace(least, most, _SIZES_TRIED) for least, most in zip(smallest, largest)
    )
    sizes = np.stack(np.meshgrid(heights, widths), axis=-1).reshape([-1, 2]).astype(np.float32)
    best = tf.map_fn(lambda size: best_frame(size, choices), sizes, fn_output_signature=tf.int32)
    return [choices[index] for index in np.unique(best)]


def group_by_frame(
    stream: tf.data.Dataset,
    choices: Sequence[Frames],
    *,
    group_size: int,
    usual_size: tuple[int, int] | None = None,
) -> tf.data.Dataset:
    """Groups records by their image's frame, in the order in which groups become full.

    A record whose image size cannot be found out goes where the one before went: reading it will
    tell why, and no frame comes into use for it.

    Args:
      stream: (data_epoch, record_index, serialized).
      choices: as of `best_frame`.
      group_size: records of a group; the last ones of a finite stream may be smaller.
      usual_size: (height, width) that stands for the first records if theirs are not known.

    Returns:
      (data_epoch, record_index, serialized, int32 choice) of each group, all [n].
    """

    def with_choice(*record):
        return *record, best_frame(_image_size(record[-1]), choices)

    def with_any_choice(*record):
        one = tf.data.Dataset.from_tensors(record)
        unknown = one.map(lambda *record: (*record, tf.constant(_UNKNOWN)))
        return one.map(with_choice).ignore_errors().concatenate(unknown).take(1)

    def as_before(last, record):
        choice = tf.where(record[3] == _UNKNOWN, last, record[3])
        return choice, (*record[:3], choice)

    first = tf.constant(0)
    if usual_size is not None and min(usual_size) > 0:
        first = best_frame(tf.constant(usual_size, tf.float32), choices)
    return (
        stream.flat_map(with_any_choice)
        .scan(first, as_before)
        .group_by_window(
            key_func=lambda *record: tf.cast(record[3], tf.int64),
            reduce_func=lambda _, records: records.batch(group_size),
            window_size=group_size,
        )
    )


def _limit_scale(original_size: tf.Tensor, side_limits: tuple[int, int]) -> tf.Tensor:
    short, long = sorted(side_limits)
    return tf.minimum(short / tf.reduce_min(original_size), long / tf.reduce_max(original_size))


def _image_size(serialized: tf.Tensor) -> tf.Tensor:
    """Returns float32 [2] (height, width): of the record's fields, else of the image itself."""
    spec = schema.parse_spec()
    names = (schema.ENCODED, schema.HEIGHT, schema.WIDTH)
    fields = tf.io.parse_single_example(serialized, {name: spec[name] for name in names})
    size = tf.cast(tf.stack([fields[schema.HEIGHT], fields[schema.WIDTH]]), tf.float32)
    return tf.cond(
        tf.reduce_all(size > 0.0),
        lambda: size,
        lambda: crop_decode.open_image(fields[schema.ENCODED]).size,
    )
