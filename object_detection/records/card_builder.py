"""Counts what goes into a record set and makes its data card, while converting or by a scan.

One `Tally` per shard can be filled in any process; merged in shard order they give the same card
whatever the number of workers.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from object_detection.coco.categories import COCO_CATEGORIES
from object_detection.coco.findings import Counts
from object_detection.records import schema
from object_detection.records.card import (
    Category,
    DataCard,
    RecordFile,
    content_of,
    find_card,
    make_fingerprint,
)
from object_detection.records.card_merge import merge_cards
from object_detection.records.class_map import plain_name
from object_detection.records.example_proto import decode_example, feature_kinds
from object_detection.records.tfrecord_file import iterate_records, record_files, shard_prefix
from outside_data.picture_file import open_picture
from path_names.patterns import split_patterns

_PERCENT = (1, 5, 25, 50, 75, 95, 99)
_QUANTILES = {"min": 0.0, **{f"p{p:02d}": p / 100 for p in _PERCENT}, "max": 1.0}
_SCANNED_FIELDS = (
    schema.SOURCE_ID,
    schema.HEIGHT,
    schema.WIDTH,
    schema.LABEL,
    schema.TEXT,
    schema.IS_CROWD,
    *schema.CORNERS,
)


class Tally:
    """Running counts over images; boxes in pixels (y1, x1, y2, x2)."""

    def __init__(self) -> None:
        self.instances: Counter[int] = Counter()  # by category_id
        self.images: Counter[int] = Counter()  # by category_id
        self.counts = Counts()
        self.skipped_images: list[tuple[str, str, str]] = []  # source_id, file name, reason
        self.warnings: list[str] = []  # image file and what may be wrong with it
        self.resized: dict[str, tuple[int, int]] = {}  # source_id to (height, width) of the file
        self.num_crowd = 0
        self.num_far_boxes = 0  # of records of other programs: in other units than shares
        self.far_box: list[float] = []  # the first
        self.max_boxes = 0
        self.max_boxes_source_id = ""
        self.boxes_per_image: list[int] = []
        self.image_sizes: list[tuple[int, int]] = []
        self.sqrt_areas: list[np.ndarray] = []  # float32, of boxes that are no crowd region
        self.relative_sqrt_areas: list[np.ndarray] = []

    def add_image(
        self,
        source_id: str,
        size: tuple[int, int],
        *,
        boxes: np.ndarray,
        category_ids: Sequence[int],
        is_crowd: Sequence[bool],
    ) -> None:
        """Counts one image that goes into a record; size is (height, width)."""
        self.instances.update(category_ids)
        self.images.update(set(category_ids))
        self.boxes_per_image.append(len(boxes))
        self.image_sizes.append(size)
        if len(boxes) > self.max_boxes:
            self.max_boxes, self.max_boxes_source_id = len(boxes), source_id
        if len(boxes):
            crowd = np.asarray(is_crowd, bool)
            self.num_crowd += int(crowd.sum())
            sides = (boxes[:, 2:] - boxes[:, :2])[~crowd]
            sqrt_areas = np.sqrt(np.prod(np.maximum(sides, 0), axis=1)).astype(np.float32)
            self.sqrt_areas.append(sqrt_areas)
            self.relative_sqrt_areas.append(sqrt_areas / np.sqrt(np.float32(size[0] * size[1])))

    def merge(self, other: Tally) -> None:
        """Adds the counts of another tally, which comes after this one."""
        if other.max_boxes > self.max_boxes:
            self.max_boxes = other.max_boxes
            self.max_boxes_source_id = other.max_boxes_source_id
        self.num_crowd += other.num_crowd
        self.counts.merge(other.counts)
        for name in ("instances", "images", "resized"):
            getattr(self, name).update(getattr(other, name))
        for name in (
            "skipped_images",
            "warnings",
            "boxes_per_image",
            "image_sizes",
            "sqrt_areas",
            "relative_sqrt_areas",
        ):
            getattr(self, name).extend(getattr(other, name))


def build_card(
    tally: Tally,
    *,
    split: str,
    categories: Sequence[tuple[int, str]],
    shards: Sequence[RecordFile],
    mask_format: str | None,
    annotations_file: str = "",
    annotations_sha256: str = "",
) -> DataCard:
    """Makes the card of a finished record set; arguments are the card's fields.

    `categories` are (category_id, name) in order of class_id, also those without an instance.
    """
    listed = tuple(
        Category(
            class_id, category_id, name, tally.instances[category_id], tally.images[category_id]
        )
        for class_id, (category_id, name) in enumerate(categories)
    )
    sizes = np.array(tally.image_sizes or [(0, 0)])
    min_height, min_width = sizes.min(axis=0).tolist()
    max_height, max_width = sizes.max(axis=0).tolist()
    return DataCard(
        split=split,
        num_images=len(tally.image_sizes),
        num_instances=sum(tally.instances.values()),
        num_crowd=tally.num_crowd,
        num_images_without_boxes=tally.boxes_per_image.count(0),
        categories=listed,
        max_boxes_per_image=tally.max_boxes,
        max_boxes_source_id=tally.max_boxes_source_id,
        min_height=min_height,
        max_height=max_height,
        min_width=min_width,
        max_width=max_width,
        shards=tuple(shards),
        box_statistics={
            "sqrt_area_px": _quantiles(tally.sqrt_areas),
            "sqrt_area_relative": _quantiles(tally.relative_sqrt_areas),
            "boxes_per_image": _quantiles([np.array(tally.boxes_per_image)]),
        },
        dropped=dict(sorted(tally.counts.dropped.items())),
        corrected=dict(sorted(tally.counts.corrected.items())),
        skipped_source_ids=tuple(source_id for source_id, _, _ in tally.skipped_images),
        mask_format=mask_format,
        annotations_file=annotations_file,
        annotations_sha256=annotations_sha256,
        fingerprint=make_fingerprint(shards, listed, annotations_sha256),
        examples=tally.counts.examples,
        resized_images=dict(tally.resized),
    )


def find_or_scan_card(
    file_pattern: str, *, progress: Callable[[int, int], None] | None = None
) -> DataCard:
    """Returns the card beside the record files of a pattern, or one made by reading them all.

    Patterns separated by commas that mean shards of different sets give one card of them all.

    Raises:
      ValueError: the sets of several patterns do not go together, see `merge_cards`.
    """
    patterns = split_patterns(file_pattern)
    prefixes = [{shard_prefix(file) for file in record_files(part)} for part in patterns]
    if len(patterns) < 2 or all(found == prefixes[0] for found in prefixes):
        return find_card(file_pattern) or card_from_records(
            record_files(file_pattern), progress=progress
        )
    return merge_cards(
        {
            part: (record_files(part), find_or_scan_card(part, progress=progress))
            for part in patterns
        }
    )


def card_from_records(
    files: Sequence[str], *, progress: Callable[[int, int], None] | None = None
) -> DataCard:
    """Makes a card for record files that have none, such as the references' own.

    Image bytes are stepped over. If every (id, name) pair agrees with COCO's, or the records hold
    ids within COCO's and no names, the classes are COCO's 80; otherwise they are the categories
    that occur, under the records' own names.

    `progress` is called with (files done, files in all).

    Raises:
      ValueError: a file is truncated or holds something else.
    """
    tally, names, shards, mask_format = Tally(), {}, [], None
    for index, path in enumerate(files):
        num_records = 0
        for record in iterate_records(path):
            try:
                found = _add_record(tally, record, names)
            except (KeyError, ValueError, OSError) as error:
                raise ValueError(
                    f"{path}: record {num_records} is no image record of the documented fields: "
                    f"{error if isinstance(error, ValueError) else repr(error)}"
                ) from error
            mask_format = mask_format or found
            num_records += 1
        shards.append(RecordFile(os.path.basename(path), num_records, content_of(path)))
        if progress is not None:
            progress(index + 1, len(files))
    if 2 * tally.num_far_boxes > sum(tally.instances.values()):
        raise ValueError(
            f"{files[0]} and its like: {tally.num_far_boxes} boxes as from (y, x) = "
            f"{tally.far_box[:2]} to {tally.far_box[2:]}: expected shares of the image's sides, "
            "from 0 to 1; are these pixels? Divide x by the image's width, y by its height"
        )
    return build_card(
        tally,
        split=os.path.basename(shard_prefix(files[0])),
        categories=_categories(names),
        shards=shards,
        mask_format=mask_format,
    )


def _add_record(tally: Tally, record: memoryview, names: dict[int, str]) -> str | None:
    """Counts one record, collects its category names, and returns its mask format."""
    schema.require_fields(feature_kinds(record))
    wanted = (*_SCANNED_FIELDS, *schema.MASK_FIELDS.values())
    fields = decode_example(record, wanted)

    def values(name: str) -> Any:
        return fields.get(name, ())

    height, width = (int(next(iter(values(name)), 0)) for name in (schema.HEIGHT, schema.WIDTH))
    if min(height, width) <= 0:
        encoded = decode_example(record, [schema.ENCODED])[schema.ENCODED][0]
        picture = open_picture(encoded, whole=False)
        width, height = picture.width, picture.height
    columns = {name: np.asarray(values(name), np.float32) for name in schema.CORNERS}
    if len({len(column) for column in columns.values()}) > 1:
        counts = ", ".join(f"{name} {len(column)}" for name, column in columns.items())
        raise ValueError(f"not as many values in each of the corners' fields ({counts})")
    boxes = np.stack([*columns.values()], axis=1)
    far = schema.are_no_shares(boxes)
    if far.any() and not tally.num_far_boxes:
        tally.far_box = [float(f"{side:.4g}") for side in boxes[far.argmax()]]
    tally.num_far_boxes += int(far.sum())
    boxes = boxes * np.array([height, width, height, width], np.float32)
    category_ids = [int(label) for label in values(schema.LABEL)]
    if len(boxes) and not category_ids:
        raise ValueError(
            f"{len(boxes)} boxes but no {schema.LABEL}, the category ids"
            + f" ({schema.TEXT} alone is not read)" * bool(len(values(schema.TEXT)))
            + ": write them, one int64 for each box, or convert the data set with "
            "dataset/create_coco_tfrecord.py"
        )
    if len(category_ids) != len(boxes):
        raise ValueError(f"{len(boxes)} boxes but {len(category_ids)} labels in {schema.LABEL}")
    if min(category_ids, default=0) < 0:
        raise ValueError(f"{min(category_ids)} in {schema.LABEL}: expected category ids from 0 on")
    crowd = values(schema.IS_CROWD)
    texts = values(schema.TEXT)
    for category_id, text in zip(category_ids, texts if len(texts) == len(category_ids) else ()):
        name, known = _text(text, schema.TEXT), names.get(category_id)
        if name and known and plain_name(name) != plain_name(known):
            raise ValueError(
                f"category id {category_id} is called {name!r}, in another record {known!r}: give "
                f"each class a number of its own in {schema.LABEL}"
            )
        names[category_id] = known or name
    for category_id in category_ids:
        names.setdefault(category_id, "")
    source_id = _text(b"".join(values(schema.SOURCE_ID)), schema.SOURCE_ID)
    tally.add_image(
        source_id,
        (height, width),
        boxes=boxes,
        category_ids=category_ids,
        is_crowd=crowd if len(crowd) == len(boxes) else [False] * len(boxes),
    )
    return next((kind for kind, name in schema.MASK_FIELDS.items() if len(values(name))), None)


def _text(value: bytes, field: str) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError:
        raise ValueError(f"{field} holds {value!r}, which is no UTF-8 text") from None


def _categories(names: dict[int, str]) -> list[tuple[int, str]]:
    is_coco = all(
        category_id in COCO_CATEGORIES and name in ("", COCO_CATEGORIES[category_id])
        for category_id, name in names.items()
    )
    known = COCO_CATEGORIES if names and is_coco else names
    return [(i, known[i] or f"category {i}") for i in sorted(known)]


def _quantiles(parts: Sequence[np.ndarray]) -> dict[str, float]:
    values = np.concatenate([np.zeros(0, np.float32), *parts])
    if not len(values):
        return {}
    found = np.quantile(values, list(_QUANTILES.values()))
    return {name: float(f"{value:.5g}") for name, value in zip(_QUANTILES, found)}
