"""From streams of serialised records to batches of HostExamples: parse, crop-decode, collect.

A batch is made from a group of as many records as it has places. The images of a group are decoded
by a small pipeline of its own, whose errors are dropped and whose missing places are filled with
placeholders: so one undecodable image neither ends the run nor shifts the records of later
batches, and a resumed run meets the same groups. In training a placeholder is then replaced by
another example of the batch; in evaluation it stays, marked invalid.

What a newcomer gets wrong: work that does not need the pixels belongs after collecting, where one
operation serves the whole batch. For each image only what decoding needs is computed.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from object_detection import geometry as geometry_lib
from object_detection.data import crop_decode, schema
from object_detection.data.example import object_rows
from object_detection.data.input_problems import InputProblems
from object_detection.geometry import GEOMETRY_SIZE

# Batches put together at the same time: the second fills the cores while the first waits for its
# last images.
_GROUPS_AT_ONCE = 2
_EPOCH_STRIDE = 1 << 32


class Augmentation(NamedTuple):
    """What is random on the host. Ranges and meaning: `crop_decode.sample_crop`."""

    jitter: tuple[float, float]
    flip_probability: float
    seed: int


class Frames(NamedTuple):
    """Sizes (height, width) in pixels, and where images are resampled."""

    network_size: tuple[int, int]
    canvas_size: tuple[int, int]
    resize_on_host: bool


def make_frames(
    network_size: tuple[int, int],
    *,
    resize_on_host: bool,
    canvas_size: tuple[int, int] | None = None,
    largest_image: tuple[int, int] | None = None,
) -> Frames:
    """Chooses the canvas: 1.25 times the network, but no larger than the largest image.

    Images at most that large are sent as they are. Of larger ones the canvas holds a reduced
    region, see `crop_decode.decode_crop`.

    Args:
      network_size: (height, width), pixels.
      resize_on_host: the canvas is then the network frame.
      canvas_size: (height, width) in pixels instead of the choice.
      largest_image: largest (height, width) of the set, if known.
    """
    if resize_on_host:
        return Frames(network_size, network_size, True)
    if canvas_size is None:
        canvas_size = tuple(-(-side * 5 // 32) * 8 for side in network_size)
        if largest_image is not None:
            canvas_size = tuple(map(min, canvas_size, largest_image))
    return Frames(network_size, tuple(canvas_size), False)


def collect_batches(
    stream: tf.data.Dataset,
    *,
    batch_size: int,
    frames: Frames,
    augmentation: Augmentation | None,
    class_of_category: Mapping[int, int],
    max_instances: int,
    drop_crowd: bool,
    problems: InputProblems,
    threads: int,
) -> tf.data.Dataset:
    """Makes batches of HostExamples from records.

    Args:
      stream: (data_epoch, record_index, serialized) as the reader gives them. A finite stream's
        last group may be smaller; its batch is filled with invalid examples.
      batch_size: of every batch.
      frames: sizes and where to resample.
      augmentation: of training; None: whole images, as in evaluation.
      class_of_category: category_id -> class_id.
      max_instances: rows for boxes.
      drop_crowd: leave crowd regions out.
      problems: takes what is wrong with the records.
      threads: images decoded at the same time.

    Returns:
      A dataset of dicts as in `example.host_example_spec`, in the order of the stream.
    """
    read = functools.partial(_read_record, frames=frames, augmentation=augmentation)
    assemble = functools.partial(
        _assemble,
        read=read,
        batch_size=batch_size,
        frames=frames,
        is_training=augmentation is not None,
        class_of_category=class_of_category,
        max_instances=max_instances,
        drop_crowd=drop_crowd,
        problems=problems,
        threads=threads,
    )
    groups = stream.batch(batch_size)
    return groups.map(assemble, num_parallel_calls=_GROUPS_AT_ONCE, deterministic=True)


def _read_record(
    place: tf.Tensor,
    data_epoch: tf.Tensor,
    record_index: tf.Tensor,
    serialized: tf.Tensor,
    *,
    frames: Frames,
    augmentation: Augmentation | None,
) -> dict[str, tf.Tensor]:
    """Parses and decodes one record; everything random in it comes from seed, epoch and index.

    Returns the fields of _FIELDS. Objects stay columns as stored: see `example.object_rows`.
    """
    spec = schema.parse_spec()
    fields = tf.io.parse_single_example(serialized, {name: spec[name] for name in _PARSED})
    image = crop_decode.open_image(fields[schema.ENCODED])
    if augmentation is None:
        crop = crop_decode.whole_image(image.size, network_size=frames.network_size)
    else:
        stream_seed = augmentation.seed * _EPOCH_STRIDE + data_epoch
        uniforms = tf.random.stateless_uniform([4], seed=tf.stack([stream_seed, record_index]))
        crop = crop_decode.sample_crop(
            uniforms,
            image.size,
            network_size=frames.network_size,
            jitter=augmentation.jitter,
            flip_probability=augmentation.flip_probability,
        )
    pixels, geometry = crop_decode.decode_crop(
        image,
        crop,
        network_size=frames.network_size,
        canvas_size=frames.canvas_size,
        resize_on_host=frames.resize_on_host,
    )
    corners = (schema.YMIN, schema.XMIN, schema.YMAX, schema.XMAX)
    return {
        "place": place,
        "record_index": record_index,
        "image": pixels,
        "geometry": geometry,
        "boxes_norm": tf.stack([fields[name] for name in corners], axis=-1),
        "category_ids": fields[schema.LABEL],
        "is_crowd": fields[schema.IS_CROWD],
        "areas": fields[schema.AREA],
        "source_id": fields[schema.SOURCE_ID],
    }


_PARSED = (
    schema.ENCODED, schema.SOURCE_ID, schema.LABEL, schema.IS_CROWD, schema.AREA,
    schema.YMIN, schema.XMIN, schema.YMAX, schema.XMAX,
)  # fmt: skip
_FIELDS = {
    "place": ((), tf.int32),
    "record_index": ((), tf.int64),
    "image": ((None, None, 3), tf.uint8),
    "geometry": ((GEOMETRY_SIZE,), tf.float32),
    "boxes_norm": ((None, 4), tf.float32),
    "category_ids": ((None,), tf.int64),
    "is_crowd": ((None,), tf.int64),
    "areas": ((None,), tf.float32),
    "source_id": ((), tf.string),
}


def _placeholder(frames: Frames) -> dict[str, tf.Tensor]:
    """An example without pixels and objects, marked by place and record_index -1."""
    empty = {
        name: tf.zeros([side or 0 for side in shape], dtype) if dtype != tf.string else ""
        for name, (shape, dtype) in _FIELDS.items()
    }
    size = tf.constant(frames.canvas_size, tf.float32)
    height, width = frames.network_size
    geometry = geometry_lib.fit_inside(size, height=height, width=width)
    return {
        **empty,
        "place": tf.constant(-1),
        "record_index": tf.constant(-1, tf.int64),
        "geometry": geometry_lib.pack(geometry),
    }


def _assemble(
    data_epochs: tf.Tensor,
    record_indices: tf.Tensor,
    serialized: tf.Tensor,
    *,
    read,
    batch_size: int,
    frames: Frames,
    is_training: bool,
    class_of_category: Mapping[int, int],
    max_instances: int,
    drop_crowd: bool,
    problems: InputProblems,
    threads: int,
) -> dict[str, tf.Tensor]:
    """Makes one batch from one group of records."""
    group_size = tf.shape(serialized)[0]
    group = (tf.range(group_size), data_epochs, record_indices, serialized)
    fillers = tf.data.Dataset.from_tensors(_placeholder(frames)).repeat(batch_size)
    batch = (
        tf.data.Dataset.from_tensor_slices(group)
        .map(read, num_parallel_calls=threads, deterministic=True)
        .ignore_errors()
        .concatenate(fillers)
        .take(batch_size)
        # Fills the canvas' rest while it copies: padding each image first would copy twice.
        .padded_batch(
            batch_size,
            {
                name: (*frames.canvas_size, 3) if name == "image" else shape
                for name, (shape, _) in _FIELDS.items()
            },
            drop_remainder=True,
        )
        .get_single_element()
    )
    batch = _mend(batch, group, read=read, is_training=is_training, problems=problems)
    geometry = geometry_lib.unpack(batch["geometry"])
    rows = object_rows(
        batch,
        original_size=geometry.original_size,
        class_of_category=class_of_category,
        max_instances=max_instances,
        drop_crowd=drop_crowd,
    )
    example = {
        "image": batch["image"],
        "geometry": batch["geometry"],
        "boxes": rows.boxes,
        "classes": rows.classes,
        "is_crowd": rows.is_crowd,
        "areas": rows.areas,
        "valid": batch["place"] >= 0,
        "record_index": batch["record_index"],
        "source_id": batch["source_id"],
    }
    complaints = tf.stack(
        [
            tf.cast(tf.where(rows.num_usable > max_instances, rows.num_usable, 0), tf.int64),
            tf.cast(rows.num_unusable, tf.int64),
            rows.unknown_category + 1,
        ],
        axis=-1,
    )
    with tf.control_dependencies([_complain(complaints, example, problems)]):
        return tf.nest.map_structure(tf.identity, example)


def _mend(batch, group, *, read, is_training: bool, problems: InputProblems):
    """Names the records that could not be read and, in training, fills their places.

    The places are filled with the good examples from the first on, so that every batch has its
    full number of images.
    """
    places, _, record_indices, serialized = group
    group_size = tf.shape(places)[0]
    is_good = batch["place"] >= 0
    num_good = tf.reduce_sum(tf.cast(is_good, tf.int32))

    def name_bad(good_places, indices, records):
        for place in sorted(set(range(len(indices))) - set(good_places.numpy().tolist())):
            record_index = int(indices[place])
            problems.bad_record(record_index, _why_unreadable(read, records[place]))
        return np.int32(0)

    def mended():
        good_places = tf.boolean_mask(batch["place"], is_good)
        inputs = [good_places, record_indices, serialized]
        named = tf.py_function(name_bad, inputs, tf.int32)
        with tf.control_dependencies([named]):
            if not is_training:
                return tf.nest.map_structure(tf.identity, batch)
            source = tf.range(tf.shape(is_good)[0]) % tf.maximum(num_good, 1)
            return tf.nest.map_structure(lambda t: tf.gather(t, source), batch)

    filled = tf.cond(num_good < group_size, mended, lambda: batch)
    for name, value in filled.items():
        value.set_shape(batch[name].shape)
    return filled


def _why_unreadable(read, serialized: tf.Tensor) -> str:
    """Reads a record again, eagerly, for the error's text."""
    zero = tf.constant(0, tf.int64)
    try:
        read(tf.constant(0), zero, zero, serialized)
    except tf.errors.OpError as error:
        return error.message.splitlines()[0]
    return "reading it failed once and succeeded when repeated"


def _complain(complaints: tf.Tensor, example: Mapping[str, tf.Tensor], problems: InputProblems):
    """Passes on what `object_rows` found, if anything."""

    def pass_on(complaints, record_indices, source_ids):
        rows = zip(complaints.numpy(), record_indices.numpy(), source_ids.numpy())
        for (num_boxes, num_unusable, category), index, source_id in rows:
            name = source_id.decode()
            if category > 0:
                problems.unknown_category(int(index), name, int(category) - 1)
            if num_boxes > 0:
                problems.too_many_boxes(int(index), name, int(num_boxes))
            if num_unusable > 0:
                problems.unusable_boxes(int(index), name, int(num_unusable))
        return np.int32(0)

    inputs = [complaints, example["record_index"], example["source_id"]]
    return tf.cond(
        tf.reduce_any(complaints > 0),
        lambda: tf.py_function(pass_on, inputs, tf.int32),
        lambda: tf.constant(0),
    )
