"""Turns the images and annotations of one shard into records: what a conversion worker does.

Boxes that reach outside their image are clipped, never dropped for it. Every such case is counted
under a reason. Records are in the pixels of the image file: where the JSON states another size of
the same shape, its objects are scaled, otherwise the image is left out. What else can be wrong with
an annotation was settled when it was read (`object_detection.coco`). Nothing here imports
TensorFlow.
"""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from object_detection.coco.image_paths import FoundFiles
from object_detection.coco.listed import CocoImage
from object_detection.coco.objects import MASK_UNKNOWN, CocoObject
from object_detection.coco.values import SMALLEST_SIDE_PX
from object_detection.convert.image_headers import ImageFile, inspect_image, upright
from object_detection.masks import rle
from object_detection.masks.rescale import Size, is_same_shape, rescale_object
from object_detection.records import schema
from object_detection.records.card_builder import Tally
from object_detection.records.tfrecord_file import write_records
from outside_data.picture_file import BadImageError, PictureRules, read_regular_file


@dataclasses.dataclass(frozen=True)
class ConversionSettings:
    """What is the same for every shard.

    Attributes:
      image_dir: folder that file names are relative to.
      category_names: category_id to name.
      mask_format: "png", "bitpacked" or None for no masks.
      on_bad_image: "skip" or "stop".
      max_bad_images: how many may be skipped in the whole set.
      pictures: how image files are read.
    """

    image_dir: str
    category_names: Mapping[int, str]
    mask_format: str | None
    on_bad_image: str
    max_bad_images: int
    pictures: PictureRules


@dataclasses.dataclass(frozen=True)
class ShardTask:
    """One record file to write; `objects` is None for a set without object annotations."""

    path: str
    images: Sequence[CocoImage]
    files: FoundFiles
    objects: Mapping[str, Sequence[CocoObject]] | None
    captions: Mapping[str, Sequence[str]] | None


def convert_shard(
    task: ShardTask, settings: ConversionSettings, *, on_image: Callable[[], None]
) -> Tally:
    """Writes one record file and returns the counts over its records.

    Calls `on_image` after each image, which may raise to stop.

    Raises:
      ValueError: a bad image under "stop", or more than the limit under "skip"; names the file.
    """
    shard = _Shard(task, settings)
    write_records(task.path, shard.records(on_image))
    return shard.tally


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


class _Shard:
    """Makes the records of one task, and counts."""

    def __init__(self, task: ShardTask, settings: ConversionSettings) -> None:
        self._task, self._settings = task, settings
        self.tally = Tally()

    def records(self, on_image: Callable[[], None]) -> Iterator[bytes]:
        """Yields a record for each usable image."""
        listed = self._task.objects
        for image in self._task.images:
            entries = None if listed is None else listed.get(image.source_id, ())
            try:
                file, stated = self._oriented(image, self._open(image))
            except BadImageError as error:
                self._skip(image, error, num_objects=len(entries or ()))
            else:
                self._note_corrections(image, file)
                if stated != file.size:
                    self.tally.resized[image.source_id] = file.size
                if stated is not None and stated != file.size:
                    what = "image: objects scaled from the JSON's size to the file's"
                    self._note(image, what, f"{_text(stated)} to {_text(file.size)}")
                    entries = entries and [rescale_object(e, stated, file.size) for e in entries]
                yield self._record(image, file, entries)
            on_image()

    def _open(self, image: CocoImage) -> ImageFile:
        files, most = self._task.files, self._settings.pictures.max_pixels
        if image.source_id in files.problems:
            raise files.problems[image.source_id]
        data = read_regular_file(files.paths[image.source_id], max_pixels=most)
        return inspect_image(data, max_pixels=most)

    def _skip(self, image: CocoImage, error: BadImageError, *, num_objects: int) -> None:
        if self._settings.on_bad_image == "stop":
            path = os.path.join(self._settings.image_dir, image.file_name)
            raise ValueError(
                f"{path} (image id {image.source_id}): {error}. Repair or remove it, or pass "
                "--on_bad_image=skip"
            )
        self.tally.skipped_images.append((image.source_id, image.file_name, str(error)))
        self.tally.counts.drop(f"image: {error.reason}", image.file_name)
        for _ in range(num_objects):
            self.tally.counts.drop("box: its image was dropped", image.file_name)
        check_bad_images(self.tally, self._settings)

    def _oriented(self, image: CocoImage, file: ImageFile) -> tuple[ImageFile, Size | None]:
        """Turns an image if it is to be turned, and finds the size that its objects are drawn on.

        Returns:
          The image, and the JSON's (height, width), None where it states none.

        Raises:
          BadImageError: the JSON's size has another shape than the image.
        """
        stored, turned = file.size, file.size[::-1]
        stated = None
        if image.height is not None and image.width is not None:
            stated = (image.height, image.width)
        is_stored = stated is None or is_same_shape(stated, stored)
        is_turned = is_stored
        if stated is not None and file.picture.swaps_sides:
            is_turned = is_same_shape(stated, turned)
        sizes = f"{_text(stored)} in the file, {_text(stated or stored)} in the JSON"
        if not (is_stored or is_turned):
            hint = "; boxes of the picture turned?" if is_same_shape(stated, turned) else ""
            raise BadImageError("size of another shape than the JSON's", sizes + hint)
        if file.picture.orientation == 1:
            return file, stated
        tag = f"EXIF orientation {file.picture.orientation}"
        is_applied = self._settings.pictures.exif == "apply"
        if is_applied and is_turned:
            self._note(image, "image: turned upright by its EXIF orientation", tag)
            return upright(file), stated
        if is_turned and not is_stored:
            what = f"{tag}, {sizes}: --exif=apply turns the pixels"
            raise BadImageError("EXIF turns it to the JSON's shape", what)
        if is_turned:
            what = "EXIF orientation ignored; sizes do not tell in which frame its boxes are"
            self._note(image, f"image: {what}", tag)
            hint = "if its boxes were drawn on the upright picture, convert with --exif=apply"
            self.tally.warnings.append(f"{image.file_name}: {tag} ignored; {hint}")
        elif is_applied:
            what = "not turned by its EXIF orientation: the JSON's size is that of stored pixels"
            self._note(image, f"image: {what}", f"{tag}, {sizes}")
        return file, stated

    def _note_corrections(self, image: CocoImage, file: ImageFile) -> None:
        if file.converted_from:
            self._note(image, f"image: {file.converted_from} rewritten as PNG")
        if file.picture.num_frames > 1:
            self._note(image, "image: first of several frames", f"of {file.picture.num_frames}")
        if file.picture.is_damaged:
            self._note(image, "image: damaged JPEG kept; what could not be decoded is grey")
            warning = f"{image.file_name}: damaged JPEG kept: repair or remove it"
            self.tally.warnings.append(warning)
        if correction := self._task.files.corrections.get(image.source_id):
            what = f"image: found under another name ({correction.kinds})"
            self._note(image, what, correction.name)

    def _note(self, image: CocoImage, what: str, detail: str = "") -> None:
        place = f"{image.file_name}: {detail}" if detail else image.file_name
        self.tally.counts.correct(what, place)

    def _record(
        self, image: CocoImage, file: ImageFile, entries: Sequence[CocoObject] | None
    ) -> bytes:
        boxes, kept = self._boxes(image, entries or (), file.size)
        objects: dict[str, Any] = {
            "boxes": boxes,
            "category_ids": [entry["category_id"] for entry in kept],
            "is_crowd": [bool(entry["iscrowd"]) for entry in kept],
        }
        self.tally.add_image(image.source_id, file.size, **objects)
        mask_format = self._settings.mask_format
        if entries is None:
            objects = {}
        else:
            names = self._settings.category_names
            objects["category_names"] = [names[entry["category_id"]] for entry in kept]
            objects["areas"] = [entry["area"] for entry in kept]
        if entries is not None and mask_format is not None:
            objects["mask_format"] = mask_format
            objects["masks"] = [
                self._mask(image, entry, box, file.size, mask_format)
                for entry, box in zip(kept, boxes)
            ]
        captions = self._task.captions
        return schema.encode_record(
            file.encoded,
            image_format=file.image_format,
            height=file.size[0],
            width=file.size[1],
            source_id=image.source_id,
            file_name=image.file_name,
            captions=None if captions is None else captions.get(image.source_id, ()),
            **objects,
        )

    def _boxes(
        self, image: CocoImage, entries: Sequence[CocoObject], size: Size
    ) -> tuple[np.ndarray, list[CocoObject]]:
        """Returns the usable boxes [n, 4], (y1, x1, y2, x2), pixels, clipped, and their entries."""
        boxes, kept = [], []
        for entry in entries:
            x, y, width, height = entry["bbox"]
            corners = np.array([y, x, y + height, x + width])
            clipped = np.clip(corners, 0, np.array(size * 2))
            if min(clipped[2:] - clipped[:2]) < SMALLEST_SIDE_PX:
                self.tally.counts.drop("box: outside the image", _place(image, entry))
                continue
            overhang = np.abs(corners - clipped).max()
            if overhang > SMALLEST_SIDE_PX:
                self.tally.counts.correct("box: clipped to the image", _place(image, entry))
            if overhang > 1:
                self.tally.counts.correct("box: clipped by more than 1 pixel", _place(image, entry))
            boxes.append(clipped)
            kept.append(entry)
        return np.array(boxes, np.float64).reshape(-1, 4), kept

    def _mask(
        self, image: CocoImage, entry: CocoObject, box: np.ndarray, size: Size, mask_format: str
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
            self.tally.counts.correct(f"{MASK_UNKNOWN}{error}", _place(image, entry))
            return _unknown_mask(mask_format, height, width)


def _text(size: Size) -> str:
    return f"{size[1]}x{size[0]}"


def _place(image: CocoImage, entry: CocoObject) -> str:
    return f"{image.file_name}, annotation {entry['id']}"


@functools.lru_cache(maxsize=8)
def _unknown_mask(mask_format: str, height: int, width: int) -> bytes:
    if mask_format == "bitpacked":
        return bytes(schema.MASK_BYTES)
    return rle.encode_png(np.zeros((height, width), np.uint8))
