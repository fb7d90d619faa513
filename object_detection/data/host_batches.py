"""From streams of serialised records to batches of HostExamples: parse, crop-decode, collect.

A batch is made from a group of as many records as it has places. A record of the group that cannot
be read leaves a placeholder at the group's end: so one undecodable image neither ends the run nor
shifts the records of later batches, and a resumed run meets the same groups. In training the
placeholder is then replaced by another example of the batch; in evaluation it stays, marked
invalid, as does the padding of the last batch.

What a newcomer gets wrong: work that does not need the pixels belongs after collecting, where one
operation serves the whole batch. For each image only what decoding needs is computed.
"""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from object_detection import geometry as geometry_lib
from object_detection.data import crop_decode, schema, tfrecord_file
from object_detection.data.example import COLUMN_PADDING, object_rows
from object_detection.data.input_problems import InputProblems
from object_detection.geometry import GEOMETRY_SIZE

_Fields = dict[str, tf.Tensor]

# A record's fields on the way to the batch, with what fills up shorter ones.
_FIELDS = {
    "place": ((), tf.int32, 0),  # in the group; -1: placeholder
    "group": ((None,), tf.int64, -1),  # placeholders: the group's record indices; others: none
    "record_index": ((), tf.int64, 0),
    "source_id": ((), tf.string, ""),
    "image": ((None, None, 3), tf.uint8, 0),
    "geometry": ((GEOMETRY_SIZE,), tf.float32, 0.0),
    "boxes_norm": ((None, 4), tf.float32, COLUMN_PADDING["boxes_norm"]),
    "category_ids": ((None,), tf.int64, COLUMN_PADDING["category_ids"]),
    "is_crowd": ((None,), tf.int64, COLUMN_PADDING["is_crowd"]),
    "areas": ((None,), tf.float32, COLUMN_PADDING["areas"]),
}
_CORNERS = (schema.YMIN, schema.XMIN, schema.YMAX, schema.XMAX)
_PARSED = (schema.ENCODED, schema.SOURCE_ID, schema.LABEL, schema.IS_CROWD, schema.AREA, *_CORNERS)
# Batches that are completed at the same time; little work each.
_COMPLETED_AT_ONCE = 2
_EPOCH_STRIDE = 1 << 32
# What TensorFlow puts around its messages.
_NODE_NAMES = re.compile(r"\{\{[^}]*\}\}|\[Op:.*")


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
    num_batches: int | None = None,
) -> tf.data.Dataset:
    """Makes batches of HostExamples from records.

    Args:
      stream: (data_epoch, record_index, serialized) as the reader gives them. A finite stream's
        last batch is filled up with invalid examples.
      batch_size: of every batch.
      frames: sizes and where to resample.
      augmentation: of training; None: whole images, as in evaluation.
      class_of_category: category_id -> class_id.
      max_instances: rows for boxes.
      drop_crowd: leave crowd regions out.
      problems: takes what is wrong with the records.
      threads: images decoded at the same time.
      num_batches: of a finite stream: as many batches, the last ones wholly invalid if need be.

    Returns:
      A dataset of dicts as in `example.host_example_spec`, in the order of the stream.
    """
    groups = stream.batch(batch_size)
    if num_batches is not None:
        empty = tuple(tf.zeros([0], dtype) for dtype in (tf.int64, tf.int64, tf.string))
        groups = groups.concatenate(tf.data.Dataset.from_tensors(empty).repeat())
        groups = groups.take(num_batches)
    read = functools.partial(_read_record, frames=frames, augmentation=augmentation)

    def read_group(epochs, indices, serialized):
        members = (tf.range(tf.size(indices)), epochs, indices, serialized)
        records = tf.data.Dataset.from_tensor_slices(members)
        # Twice the threads: half of them may be done and waiting while a batch is being filled.
        examples = records.map(read, num_parallel_calls=2 * threads, deterministic=True)
        placeholders = tf.data.Dataset.from_tensors(_placeholder(frames, group=indices))
        filled = examples.ignore_errors().concatenate(placeholders.repeat(batch_size))
        return filled.take(batch_size)

    read_whole = functools.partial(_read_record, frames=frames, augmentation=None)

    def complete(batch):
        batch = _mend(
            batch, read=read_whole, is_training=augmentation is not None, problems=problems
        )
        return _to_host_example(
            batch,
            class_of_category=class_of_category,
            max_instances=max_instances,
            drop_crowd=drop_crowd,
            problems=problems,
        )

    # Fills the rest of the canvas while it copies: padding each image first would copy twice.
    batches = groups.flat_map(read_group).padded_batch(
        batch_size,
        {
            name: (*frames.canvas_size, 3) if name == "image" else shape
            for name, (shape, _, _) in _FIELDS.items()
        },
        {name: tf.constant(padding, dtype) for name, (_, dtype, padding) in _FIELDS.items()},
        drop_remainder=True,
    )
    return batches.map(complete, num_parallel_calls=_COMPLETED_AT_ONCE, deterministic=True)


def _read_record(
    place: tf.Tensor,
    data_epoch: tf.Tensor,
    record_index: tf.Tensor,
    serialized: tf.Tensor,
    *,
    frames: Frames,
    augmentation: Augmentation | None,
) -> _Fields:
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
    return {
        "place": place,
        "group": tf.zeros([0], tf.int64),
        "record_index": record_index,
        "source_id": fields[schema.SOURCE_ID],
        "image": pixels,
        "geometry": geometry,
        "boxes_norm": tf.stack([fields[name] for name in _CORNERS], axis=-1),
        "category_ids": fields[schema.LABEL],
        "is_crowd": fields[schema.IS_CROWD],
        "areas": fields[schema.AREA],
    }


def _placeholder(frames: Frames, *, group: tf.Tensor) -> _Fields:
    """An example without pixels and objects, marked by -1, that knows the group's records."""
    size = tf.constant(frames.canvas_size, tf.float32)
    height, width = frames.network_size
    geometry = geometry_lib.fit_inside(size, height=height, width=width)
    known = {
        "place": tf.constant(-1),
        "record_index": tf.constant(-1, tf.int64),
        "geometry": geometry_lib.pack(geometry),
        "group": group,
    }
    empty = {
        name: tf.fill([side or 0 for side in shape], tf.constant(padding, dtype))
        for name, (shape, dtype, padding) in _FIELDS.items()
    }
    return {**empty, **known}


def _mend(batch: _Fields, *, read: Callable, is_training: bool, problems: InputProblems) -> _Fields:
    """Names the records that could not be read and, in training, fills their places.

    The places are filled with the good examples from the first on, so that every batch has its
    full number of images.
    """
    is_good = batch["place"] >= 0
    num_good = tf.reduce_sum(tf.cast(is_good, tf.int32))
    # Zero if there is no placeholder.
    group_size = tf.shape(batch["group"])[1]

    def name_bad(good_places, group):
        bad_places = set(range(len(group))) - set(good_places.numpy().tolist())
        for place in sorted(bad_places):
            record_index = int(group[place])
            if record_index not in problems.bad_records:
                problems.bad_record(record_index, _why_unreadable(read, problems, record_index))
        return np.int32(len(bad_places))

    def mended():
        inputs = [tf.boolean_mask(batch["place"], is_good), batch["group"][-1]]
        with tf.control_dependencies([tf.py_function(name_bad, inputs, tf.int32)]):
            if not is_training:
                return tf.nest.map_structure(tf.identity, batch)
            source = tf.range(tf.size(is_good)) % tf.maximum(num_good, 1)
            return tf.nest.map_structure(lambda field: tf.gather(field, source), batch)

    filled = tf.cond(group_size > num_good, mended, lambda: batch)
    for name, value in filled.items():
        value.set_shape(batch[name].shape)
    return filled


def _why_unreadable(read: Callable, problems: InputProblems, record_index: int) -> str:
    """Reads a record again, eagerly and with the whole image, for the error's text."""
    file, position = problems.records.locate(record_index)
    with_position = itertools.islice(tfrecord_file.iterate_records(file), position, None)
    serialized = tf.constant(bytes(next(with_position)))
    zero = tf.constant(0, tf.int64)
    try:
        read(tf.constant(0), zero, zero, serialized)
    except (tf.errors.OpError, ValueError) as error:
        return _NODE_NAMES.sub("", str(error).splitlines()[0]).strip()
    return "it could not be read, and could when tried again: check the storage"


def _to_host_example(
    batch: _Fields,
    *,
    class_of_category: Mapping[int, int],
    max_instances: int,
    drop_crowd: bool,
    problems: InputProblems,
) -> _Fields:
    """Makes the objects' rows and passes on what is wrong with them."""
    rows = object_rows(
        batch,
        original_size=geometry_lib.unpack(batch["geometry"]).original_size,
        class_of_category=class_of_category,
        max_instances=max_instances,
        drop_crowd=drop_crowd,
    )
    complained = problems.complain_about_objects(
        rows,
        record_indices=batch["record_index"],
        source_ids=batch["source_id"],
    )
    with tf.control_dependencies([complained]):
        classes = tf.identity(rows.classes)
    return {
        "image": batch["image"],
        "geometry": batch["geometry"],
        "boxes": rows.boxes,
        "classes": classes,
        "is_crowd": rows.is_crowd,
        "areas": rows.areas,
        "valid": batch["place"] >= 0,
        "record_index": batch["record_index"],
        "source_id": batch["source_id"],
    }
