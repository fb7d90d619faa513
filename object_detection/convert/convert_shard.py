"""Turns the images and annotations of one shard into records: what a conversion worker does.

Boxes that reach outside their image are clipped, never dropped for it. Every such case is counted
under a reason. The image file's own size counts, not the JSON's. What else can be wrong with an
annotation was settled when it was read (`object_detection.coco`). Nothing here imports TensorFlow.
"""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from object_detection.coco.listed import CocoImage
from object_detection.coco.objects import MASK_UNKNOWN, CocoObject
from object_detection.coco.values import SMALLEST_SIDE_PX
from object_detection.convert.image_headers import BadImageError, ImageFile, inspect_image
from object_detection.masks import rle
from object_detection.records import schema
from object_detection.records.card_builder import Tally
from object_detection.records.tfrecord_file import write_records


@dataclasses.dataclass(frozen=True)
class ConversionSettings:
    """What is the same for every shard.

    Attributes:
      image_dir: folder that file names are relative to.
      category_names: category_id to name.
      mask_format: "png", "bitpacked" or None for no masks.
      on_bad_image: "skip" or "stop".
      max_bad_images: how many may be skipped in the whole set.
    """

    image_dir: str
    category_names: Mapping[int, str]
    mask_format: str | None = None
    on_bad_image: str = "skip"
    max_bad_images: int = 10


@dataclasses.dataclass(frozen=True)
class ShardTask:
    """One record file to write; `objects` is None for a set without object annotations."""

    path: str
    images: Sequence[CocoImage]
    objects: Mapping[str, Sequence[CocoObject]] | None
    captions: Mapping[str, Sequence[str]] | None


def convert_shard(
    task: ShardTask, settings: ConversionSettings, *, on_image: Callable[[], None]
) -> Tally:
    """Writes one record file.

    Args:
      task: what goes into it.
      settings: how.
      on_image: called after each image; may raise to stop.

    Returns:
      The counts over its records.

    Raises:
      ValueError: a bad image under "stop", or more than the limit under "skip"; names the file.
    """
    tally = Tally()
    write_records(task.path, _records(task, settings, tally, on_image))
    return tally


def check_bad_images(tally: Tally, settings: ConversionSettings) -> None:
    """Raises ValueError if more images were skipped than the settings allow."""
    bad = tally.skipped_images
    if len(bad) > settings.max_bad_images:
        examples = "; ".join(f"{name}: {reason}" for _, name, reason in bad[:3])
        raise ValueError(
            f"more than max_bad_images={settings.max_bad_images} unusable image files in "
            f"{settings.image_dir} ({examples}; ...). If none is found, check --image_dir; else "
            "repair or remove them, or raise --max_bad_images"
        )


def _records(
    task: ShardTask, settings: ConversionSettings, tally: Tally, on_image: Callable[[], None]
) -> Iterator[bytes]:
    for image in task.images:
        entries = None if task.objects is None else task.objects.get(image.source_id, ())
        try:
            file = inspect_image(_read_file(settings.image_dir, image.file_name))
        except BadImageError as error:
            _skip(image, str(error), settings, tally, num_objects=len(entries or ()))
        else:
            _note_corrections(image, file, tally)
            captions = None if task.captions is None else task.captions.get(image.source_id, ())
            yield _record(image, file, entries, captions, settings=settings, tally=tally)
        on_image()


def _read_file(image_dir: str, file_name: str) -> bytes:
    try:
        with open(os.path.join(image_dir, file_name), "rb") as file:
            return file.read()
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
        raise BadImageError("no such file") from error
    except PermissionError as error:
        raise BadImageError("no permission to read") from error


def _skip(
    image: CocoImage, reason: str, settings: ConversionSettings, tally: Tally, *, num_objects: int
) -> None:
    if settings.on_bad_image == "stop":
        raise ValueError(
            f"{os.path.join(settings.image_dir, image.file_name)} (image id {image.source_id}): "
            f"{reason}. Repair or remove it, or pass --on_bad_image=skip"
        )
    tally.skipped_images.append((image.source_id, image.file_name, reason))
    tally.dropped[f"image: {reason}"] += 1
    if num_objects:
        tally.dropped["box: its image was dropped"] += num_objects
    check_bad_images(tally, settings)


def _note_corrections(image: CocoImage, file: ImageFile, tally: Tally) -> None:
    stated = (image.height, image.width)
    if file.converted_from:
        tally.corrected[f"image: {file.converted_from} rewritten as PNG"] += 1
    if None not in stated and stated != (file.height, file.width):
        what = "image: size taken from the file, not from the JSON"
        if file.is_turned and stated == (file.width, file.height):
            what += " (EXIF turns it: were the boxes drawn on the turned picture?)"
        tally.corrected[what] += 1


def _record(
    image: CocoImage,
    file: ImageFile,
    entries: Sequence[CocoObject] | None,
    captions: Sequence[str] | None,
    *,
    settings: ConversionSettings,
    tally: Tally,
) -> bytes:
    size = (file.height, file.width)
    objects: dict[str, Any] = {"boxes": None}
    if entries is not None:
        boxes, kept = _boxes(image, entries, size, tally)
        category_ids = [entry["category_id"] for entry in kept]
        objects = {
            "boxes": boxes,
            "category_ids": category_ids,
            "category_names": [settings.category_names[i] for i in category_ids],
            "is_crowd": [bool(entry["iscrowd"]) for entry in kept],
            "areas": [entry["area"] for entry in kept],
        }
        if settings.mask_format is not None:
            objects["mask_format"] = settings.mask_format
            objects["masks"] = [
                _mask(image, entry, box, size, mask_format=settings.mask_format, tally=tally)
                for entry, box in zip(kept, boxes)
            ]
    tally.add_image(
        image.source_id,
        size,
        boxes=objects["boxes"] if entries is not None else np.zeros((0, 4)),
        category_ids=objects.get("category_ids", ()),
        is_crowd=objects.get("is_crowd", ()),
    )
    return schema.encode_record(
        file.encoded,
        image_format=file.image_format,
        height=file.height,
        width=file.width,
        source_id=image.source_id,
        file_name=image.file_name,
        captions=captions,
        **objects,
    )


def _boxes(
    image: CocoImage, entries: Sequence[CocoObject], size: tuple[int, int], tally: Tally
) -> tuple[np.ndarray, list[CocoObject]]:
    """Returns the usable boxes [n, 4], (y1, x1, y2, x2), pixels, clipped, and their entries."""
    boxes, kept = [], []
    for entry in entries:
        x, y, width, height = entry["bbox"]
        corners = np.array([y, x, y + height, x + width])
        clipped = np.clip(corners, 0, np.array(size * 2))
        if min(clipped[2:] - clipped[:2]) < SMALLEST_SIDE_PX:
            tally.counts.drop("box: outside the image", _place(image, entry))
            continue
        overhang = np.abs(corners - clipped).max()
        if overhang > SMALLEST_SIDE_PX:
            tally.counts.correct("box: clipped to the image", _place(image, entry))
        if overhang > 1:
            tally.counts.correct("box: clipped by more than 1 pixel", _place(image, entry))
        boxes.append(clipped)
        kept.append(entry)
    return np.array(boxes, np.float64).reshape(-1, 4), kept


def _place(image: CocoImage, entry: CocoObject) -> str:
    return f"{image.file_name}, annotation {entry['id']}"


def _mask(
    image: CocoImage,
    entry: CocoObject,
    box: np.ndarray,
    size: tuple[int, int],
    *,
    mask_format: str,
    tally: Tally,
) -> bytes:
    """Returns the stored mask; that of an unknown one was counted when it was read."""
    height, width = size
    segmentation = entry["segmentation"]
    if segmentation is None:
        return _unknown_mask(mask_format, height, width)
    try:
        if mask_format == "bitpacked":
            return rle.crop_to_box(segmentation, box, height=height, width=width)
        return rle.encode_png(rle.decode_mask(segmentation, height, width))
    except rle.BadMaskError as error:
        tally.counts.correct(f"{MASK_UNKNOWN}{error}", _place(image, entry))
        return _unknown_mask(mask_format, height, width)


@functools.lru_cache(maxsize=8)
def _unknown_mask(mask_format: str, height: int, width: int) -> bytes:
    if mask_format == "bitpacked":
        return bytes(schema.MASK_BYTES)
    return rle.encode_png(np.zeros((height, width), np.uint8))
