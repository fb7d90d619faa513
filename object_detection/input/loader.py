"""From streams of serialised records to batches of HostExamples: parse, crop-decode, collect.

A batch is made from a group of as many records as it has places. A record of the group that cannot
be read leaves a placeholder at the group's end: so one undecodable image neither ends the run nor
shifts the records of later batches, and a resumed run meets the same groups. In training the
placeholder is then replaced by another example of the batch; in evaluation it stays, marked
invalid, as does the padding of the last batch.

Images of different shapes may go to canvases of different shapes (`canvases`); a group then
holds images of one canvas only.

Work that does not need the pixels belongs after collecting, where one operation serves the whole
batch. For each image only what decoding needs is computed.
"""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from object_detection.input import canvases, crop_decode
from object_detection.input import geometry as geometry_lib
from object_detection.input.accelerator import has_accelerator
from object_detection.input.example import COLUMN_PADDING, object_rows
from object_detection.input.geometry import ANTIALIASED, GEOMETRY_SIZE, Frames
from object_detection.input.problems import InputProblems
from object_detection.masks.png_masks import packed_from_png
from object_detection.records import example_proto, schema, tfrecord_file

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
_MASKS = {"masks": ((None,), tf.string, COLUMN_PADDING["masks"])}
_MIXING = {"mixing": ((), tf.bool, False)}
_PARSED = (schema.ENCODED, schema.SOURCE_ID, schema.LABEL, schema.IS_CROWD, schema.AREA)
_PARSED += schema.CORNERS
# Batches that are completed at the same time; little work each.
_COMPLETED_AT_ONCE = 2
_EPOCH_STRIDE = 1 << 32
# What TensorFlow puts around its messages.
_NODE_NAMES = re.compile(r"\{\{[^}]*\}\}|\[Op:.*")


class Augmentation(NamedTuple):
    """What is random on the host. Ranges and meaning: `crop_decode.sample_crop`.

    seed: of the order of the records too; the same on every rank.
    mixing_end_epoch: passes over the set after which the device shall not mix images any more; 0:
      there is no such end, and no field `mixing`.
    """

    jitter: tuple[float, float]
    flip_probability: float
    seed: int
    translate: float = 0.0
    mixing_end_epoch: int = 0


class Reading(NamedTuple):
    """How records become the batches of one rank, in training and in evaluation alike.

    batch_size: images of every batch; may exceed the number of records.
    frames: sizes and where images are resampled; of several each image takes the one of
      `canvases.best_frame`.
    class_of_category: category_id -> class_id.
    problems: takes what is wrong with the records, and knows how many rows there are for boxes.
    threads: cores for this rank's input, so many images are decoded at the same time.
    prefetch_batches: batches prepared ahead.
    with_masks: read the packed masks.
    png_masks: with them, make packed masks from PNG ones where a record has no others; slow.
    usual_size: (height, width) of an image of the set, None where none is known; only needed with
      several frames.
    """

    batch_size: int
    frames: tuple[Frames, ...]
    class_of_category: Mapping[int, int]
    problems: InputProblems
    threads: int = 2
    prefetch_batches: int = 2
    with_masks: bool = False
    png_masks: bool = False
    usual_size: tuple[int, int] | None = None

    @property
    def is_grouped(self) -> bool:
        """Whether a batch's records depend on the shapes of all images before them."""
        return len(self.frames) > 1


def resizes_on_host(choice: str, resampling: str = ANTIALIASED) -> bool:
    """Returns whether images are resampled on the host.

    Conventions without antialiasing need pixels that no decoder has reduced, which only the host
    has of images larger than the canvas.

    Args:
      choice: `host`, `device` or `auto`: on the accelerator if there is one. Without, both are the
        same cores, and the host's way is the cheaper one: about 7 against 40 CPU ms per image for
        640 to 512 pixels, measured on 2 cores, 2026-11-22.
      resampling: of `geometry.RESAMPLINGS`; '' is the first.
    """
    if resampling not in ("", ANTIALIASED):
        return True
    return not has_accelerator() if choice == "auto" else choice == "host"


def collect_batches(
    stream: tf.data.Dataset,
    reading: Reading,
    *,
    augmentation: Augmentation | None,
    drop_crowd: bool,
    num_batches: int | None = None,
    skip_batches: int = 0,
) -> tf.data.Dataset:
    """Makes batches of HostExamples from records.

    Args:
      stream: (data_epoch, record_index, serialized) as the reader gives them. A finite stream's
        last batch is filled up with invalid examples.
      reading: how; `prefetch_batches` is the caller's.
      augmentation: of training; None: whole images, as in evaluation.
      drop_crowd: leave crowd regions out.
      num_batches: of a finite stream: as many batches, the last ones wholly invalid if need be.
        Not with several frames, whose groups cannot be counted beforehand.
      skip_batches: leave out so many of the first ones, without decoding them.

    Returns:
      A dataset of the dicts of `example`, in the order of the stream.
    """
    batch_size, choices = reading.batch_size, reading.frames
    fields = {**_FIELDS, **_MASKS} if reading.with_masks else _FIELDS
    if augmentation and augmentation.mixing_end_epoch:
        fields = fields | _MIXING
    if reading.is_grouped:
        groups = canvases.group_by_frame(
            stream, choices, group_size=batch_size, usual_size=reading.usual_size
        )
    else:
        groups = stream.batch(batch_size)
    if num_batches is not None:
        if reading.is_grouped:
            raise ValueError("num_batches: expected one frame, as groups of several are not known")
        empty = tuple(tf.zeros([0], dtype) for dtype in (tf.int64, tf.int64, tf.string))
        groups = groups.concatenate(tf.data.Dataset.from_tensors(empty).repeat())
        groups = groups.take(num_batches)
    groups = groups.skip(skip_batches) if skip_batches else groups
    canvas_sizes = tf.constant([(*choice.canvas_size, 3) for choice in choices], tf.int64)
    read_one = functools.partial(_read_record, fields=fields, png_masks=reading.png_masks)
    read_as = [
        functools.partial(read_one, frames=choice, augmentation=augmentation) for choice in choices
    ]
    read_whole = functools.partial(read_one, frames=choices[0], augmentation=None)

    # AutoGraph has nothing to convert here, and would take a second of every start to find out.
    @tf.autograph.experimental.do_not_convert
    def read_group(epochs, indices, serialized, choice=None):
        @tf.autograph.experimental.do_not_convert
        def read(*record):
            if choice is None:
                return read_as[0](*record)
            branches = [functools.partial(read, *record) for read in read_as]
            return tf.switch_case(choice[0], branches)

        members = (tf.range(tf.size(indices)), epochs, indices, serialized)
        records = tf.data.Dataset.from_tensor_slices(members)
        # Twice the threads: half of them may be done and waiting while a batch is being filled.
        examples = records.map(read, num_parallel_calls=2 * reading.threads, deterministic=True)
        placeholder = _placeholder(choices[0], fields=fields, group=indices)
        placeholders = tf.data.Dataset.from_tensors(placeholder)
        filled = examples.ignore_errors().concatenate(placeholders.repeat(batch_size))
        # Fills the rest of the canvas while it copies: padding each image first would copy twice.
        canvas_size = canvas_sizes[0 if choice is None else choice[0]]
        return filled.take(batch_size).padded_batch(
            batch_size,
            {n: canvas_size if n == "image" else shape for n, (shape, _, _) in fields.items()},
            {name: tf.constant(padding, dtype) for name, (_, dtype, padding) in fields.items()},
            drop_remainder=True,
        )

    @tf.autograph.experimental.do_not_convert
    def complete(batch):
        if not reading.is_grouped:
            batch["image"].set_shape([batch_size, *choices[0].canvas_size, 3])
        is_training = augmentation is not None
        batch = _mend(batch, read_whole, is_training=is_training, problems=reading.problems)
        return _to_host_example(batch, reading, drop_crowd=drop_crowd)

    batches = groups.flat_map(read_group)
    return batches.map(complete, num_parallel_calls=_COMPLETED_AT_ONCE, deterministic=True)


def _read_record(
    place: tf.Tensor,
    data_epoch: tf.Tensor,
    record_index: tf.Tensor,
    serialized: tf.Tensor,
    *,
    frames: Frames,
    fields: Mapping[str, tuple],
    augmentation: Augmentation | None,
    png_masks: bool,
) -> _Fields:
    """Parses and decodes one record; everything random in it comes from seed, epoch and index.

    Returns `fields`. Objects stay columns as stored: see `example.object_rows`.
    """
    with_masks, knows_mixing = "masks" in fields, "mixing" in fields
    spec = schema.parse_spec(mask_format="bitpacked" if with_masks else None)
    parsed_fields = (*_PARSED, schema.MASK_112) if with_masks else _PARSED
    if with_masks and png_masks:
        spec |= schema.parse_spec(mask_format="png")
        parsed_fields += (schema.MASK_PNG,)
    fields = tf.io.parse_single_example(serialized, {name: spec[name] for name in parsed_fields})
    image = crop_decode.open_image(fields[schema.ENCODED])
    fit_size = canvases.fit_size(image.size, frames)
    if augmentation is None:
        crop = crop_decode.whole_image(
            image.size, network_size=frames.network_size, fit_size=fit_size
        )
    else:
        stream_seed = augmentation.seed * _EPOCH_STRIDE + data_epoch
        count = 6 if augmentation.translate else 4
        uniforms = tf.random.stateless_uniform([count], seed=tf.stack([stream_seed, record_index]))
        crop = crop_decode.sample_crop(
            uniforms,
            image.size,
            network_size=frames.network_size,
            jitter=augmentation.jitter,
            flip_probability=augmentation.flip_probability,
            fit_size=fit_size,
            translate=augmentation.translate,
        )
    pixels, geometry = crop_decode.decode_crop(image, crop, frames)
    if with_masks and png_masks:
        fields[schema.MASK_112] = packed_from_png(fields, image.size)
    more = {"masks": _checked_masks(fields)} if with_masks else {}
    if knows_mixing:
        is_mixing = augmentation is not None and data_epoch < augmentation.mixing_end_epoch
        more["mixing"] = tf.convert_to_tensor(is_mixing)
    return more | {
        "place": place,
        "group": tf.zeros([0], tf.int64),
        "record_index": record_index,
        "source_id": fields[schema.SOURCE_ID],
        "image": pixels,
        "geometry": geometry,
        "boxes_norm": tf.stack([fields[name] for name in schema.CORNERS], axis=-1),
        "category_ids": fields[schema.LABEL],
        "is_crowd": fields[schema.IS_CROWD],
        "areas": fields[schema.AREA],
    }


def _checked_masks(fields: _Fields) -> tf.Tensor:
    """Returns the packed masks of a record, which are as many as its boxes or none."""
    masks = fields[schema.MASK_112]
    num_boxes = tf.size(fields[schema.LABEL])
    sizes = tf.strings.length(masks)
    checks = [
        tf.debugging.Assert(
            tf.reduce_all(sizes == schema.MASK_BYTES),
            [f"expected masks of {schema.MASK_BYTES} bytes in {schema.MASK_112}, got", sizes],
        ),
        tf.debugging.Assert(
            (tf.size(masks) == num_boxes) | (tf.size(masks) == 0),
            [f"expected one {schema.MASK_112} for each box, got", tf.size(masks), num_boxes],
        ),
    ]
    with tf.control_dependencies([check for check in checks if check is not None]):
        return tf.identity(masks)


def _placeholder(frames: Frames, *, fields: Mapping[str, tuple], group: tf.Tensor) -> _Fields:
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
        for name, (shape, dtype, padding) in fields.items()
    }
    return {**empty, **known}


def _mend(batch: _Fields, read: Callable, *, is_training: bool, problems: InputProblems) -> _Fields:
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
            reason = problems.bad_records.get(record_index)
            if reason is None:
                reason = _why_unreadable(read, problems, record_index)
            problems.bad_record(record_index, reason)
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
    """Reads a record again, eagerly and with the whole image: its image and the error's text."""
    file, position = problems.records.locate(record_index)
    with_position = itertools.islice(tfrecord_file.iterate_records(file), position, None)
    record = bytes(next(with_position))
    zero = tf.constant(0, tf.int64)
    try:
        read(tf.constant(0), zero, zero, tf.constant(record))
    except (tf.errors.OpError, ValueError) as error:
        return _image_of(record) + _NODE_NAMES.sub("", str(error).splitlines()[0]).strip()
    return "it could not be read, and could when tried again: check the storage"


def _image_of(record: bytes) -> str:
    """Returns what names a record's image, for the beginning of a message; '' if it is lost."""
    try:
        known = example_proto.decode_example(record, (schema.SOURCE_ID, schema.FILE_NAME))
    except ValueError:
        return ""
    named = [b"".join(known.get(key, [])) for key in (schema.FILE_NAME, schema.SOURCE_ID)]
    file_name, image_id = (name.decode(errors="replace") for name in named)
    return f"{file_name} (image_id={image_id}): " if file_name or image_id else ""


def _to_host_example(batch: _Fields, reading: Reading, *, drop_crowd: bool) -> _Fields:
    """Makes the objects' rows and passes on what is wrong with them."""
    rows = object_rows(
        batch,
        original_size=geometry_lib.unpack(batch["geometry"]).original_size,
        class_of_category=reading.class_of_category,
        max_instances=reading.problems.max_instances,
        drop_crowd=drop_crowd,
    )
    complained = reading.problems.complain_about_objects(
        rows,
        record_indices=batch["record_index"],
        source_ids=batch["source_id"],
    )
    with tf.control_dependencies([complained]):
        classes = tf.identity(rows.classes)
    more = {"masks": rows.masks} if "masks" in batch else {}
    if "mixing" in batch:
        more["mixing"] = batch["mixing"]
    return more | {
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
