"""COCO annotations and images -> TFRecord shards and a data card, on all cores.

Image i goes to shard i mod num_shards, as in the reference, so the records do not depend on the
number of workers. Workers are spawned, so a script that calls this must guard its own start with
`if __name__ == "__main__"`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from object_detection.coco.annotations import CocoAnnotations
from object_detection.coco.image_paths import FoundFiles, find_image_files
from object_detection.coco.listed import CocoImage
from object_detection.coco.objects import MASK_UNKNOWN
from object_detection.convert.convert_shard import ConversionSettings, ShardTask
from object_detection.convert.convert_workers import Progress, run_shards
from object_detection.convert.staging import publish, staged
from object_detection.records import schema
from object_detection.records.card import DataCard, RecordFile, card_path, content_of
from object_detection.records.card_builder import Tally, build_card
from object_detection.records.tfrecord_file import shard_name
from outside_data.picture_file import DEFAULT_RULES, PictureRules

_IMAGES_WORTH_A_WORKER = 300  # starting one takes as long as converting so many images


@dataclasses.dataclass(frozen=True)
class Conversion:
    """Outcome of a conversion.

    Attributes:
      card: as written beside the shards.
      card_file: where.
      skipped_images: (source_id, file name, reason) of each image without a record.
      warnings: what may be wrong with images that have one, file by file.
      removed_files: files of an earlier conversion under the same prefix that were removed.
      seconds: how long it took.
    """

    card: DataCard
    card_file: Path
    skipped_images: Sequence[tuple[str, str, str]]
    warnings: Sequence[str]
    removed_files: Sequence[str]
    seconds: float


def convert(
    annotations: CocoAnnotations | None,
    image_dir: str | os.PathLike[str],
    output_prefix: str | os.PathLike[str],
    *,
    images: Sequence[CocoImage] | None = None,
    captions: Mapping[str, Sequence[str]] | None = None,
    num_shards: int = 32,
    num_workers: int | None = None,
    mask_format: str | None = None,
    on_bad_image: str = "skip",
    max_bad_images: int = 10,
    pictures: PictureRules = DEFAULT_RULES,
    progress: Progress | None = None,
) -> Conversion:
    """Writes a record set: `PREFIX-00000-of-00032.tfrecord`, ..., and `PREFIX-card.json`.

    Nothing is to be seen under the prefix until all is complete. A set that was there is replaced.

    Args:
      annotations: objects, or None for records without object fields.
      image_dir: folder that the file names of the images are relative to.
      output_prefix: `dir/train`; its last part names the split. The folder is created.
      images: in this order; default those of `annotations`.
      captions: source_id to sentences, or None for no caption field.
      num_shards: record files; fewer if there are fewer images.
      num_workers: processes; default one for each core that this process may use.
      mask_format: "png" or "bitpacked" to store instance masks, None not to.
      on_bad_image: "skip" or "stop" at a file that is missing, empty or undecodable.
      max_bad_images: how many may be skipped.

    Raises:
      ValueError: settings that make no sense, bad images, or masks asked for where none are.
      OSError: the disk is full, the folder cannot be written.
    """
    started = time.monotonic()
    images = images if images is not None else annotations.images if annotations else ()
    split = os.path.basename(output_prefix)
    if not split or split.startswith("."):
        raise ValueError(
            f"{os.fspath(output_prefix)}: expected FOLDER/NAME, such as records/train, whose name "
            "begins those of the record files (--output_file_prefix)"
        )
    _check_arguments(images, image_dir, num_shards, mask_format, on_bad_image)
    num_shards = min(num_shards, len(images))
    categories = annotations.categories if annotations else ()
    settings = ConversionSettings(
        image_dir=os.fspath(image_dir),
        category_names={category.category_id: category.name for category in categories},
        mask_format=mask_format if annotations else None,
        on_bad_image=on_bad_image,
        max_bad_images=max_bad_images,
        pictures=pictures,
    )
    files = find_image_files(images, image_dir, follow_links=pictures.follow_links)
    if not files.paths:
        some = (f"{image.file_name}: {files.problems[image.source_id]}" for image in images[:3])
        raise ValueError(
            f"none of the {len(images)} images has a file that can be read in {image_dir}: "
            f"{'; '.join(some)}. Check --image_dir"
        )
    names = [shard_name(split, index=i, num_shards=num_shards) for i in range(num_shards)]
    with _disk_full_explained(output_prefix), staged(output_prefix) as folder:
        tasks = [
            _make_task(
                folder / name, images[index::num_shards], files, annotations, captions, settings
            )
            for index, name in enumerate(names)
        ]
        tallies = run_shards(
            tasks,
            settings,
            num_workers=min(
                num_workers or len(os.sched_getaffinity(0)),
                num_shards,
                -(-len(images) // _IMAGES_WORTH_A_WORKER),
            ),
            progress=progress or (lambda done, total: None),
        )
        total = Tally()
        if annotations:
            total.counts.merge(annotations.counts(with_masks=settings.mask_format is not None))
        for tally in tallies:
            total.merge(tally)
        _check_most_usable(total, settings)
        _check_masks(total, settings)
        card = build_card(
            total,
            split=split,
            categories=[(category.category_id, category.name) for category in categories],
            shards=[
                RecordFile(name, len(tally.image_sizes), content_of(folder / name))
                for name, tally in zip(names, tallies)
            ],
            mask_format=settings.mask_format,
            annotations_file=os.path.abspath(annotations.path) if annotations else "",
            annotations_sha256=annotations.sha256 if annotations else "",
        )
        removed = publish(card, folder, output_prefix)
    seconds = time.monotonic() - started
    return Conversion(
        card, card_path(output_prefix), total.skipped_images, total.warnings, removed, seconds
    )


@contextlib.contextmanager
def _disk_full_explained(prefix: str | os.PathLike[str]) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise OSError(
            errno.ENOSPC,
            f"the disk is full; nothing was left of the new set {os.fspath(prefix)}-*. Records "
            "need about as much space as their images: free some, or choose another folder",
        ) from error


def _check_arguments(
    images: Sequence[CocoImage],
    image_dir: str | os.PathLike[str],
    num_shards: int,
    mask_format: str | None,
    on_bad_image: str,
) -> None:
    if not images:
        raise ValueError("no image to convert: give annotations or a list of images")
    if not os.path.isdir(image_dir):
        raise FileNotFoundError(f"no image folder {image_dir} (looked from {os.getcwd()})")
    if num_shards < 1:
        raise ValueError(f"num_shards: expected at least 1, got {num_shards}")
    if mask_format not in (None, *schema.MASK_FIELDS):
        raise ValueError(f"mask_format: expected png or bitpacked, got {mask_format!r}")
    if on_bad_image not in ("skip", "stop"):
        raise ValueError(f"on_bad_image: expected skip or stop, got {on_bad_image!r}")


def _check_most_usable(tally: Tally, settings: ConversionSettings) -> None:
    """Raises ValueError if a set would be replaced by less than half of its images."""
    usable, skipped = len(tally.image_sizes), tally.skipped_images
    if len(skipped) > usable:
        reasons = "; ".join(f"{name}: {reason}" for _, name, reason in skipped[:3])
        raise ValueError(
            f"{len(skipped)} of {usable + len(skipped)} images in {settings.image_dir} cannot be "
            f"used, more than half ({reasons}; ...): correct that first"
        )


def _check_masks(tally: Tally, settings: ConversionSettings) -> None:
    unknown = sum(n for what, n in tally.counts.corrected.items() if what.startswith(MASK_UNKNOWN))
    if settings.mask_format is not None and 0 < sum(tally.instances.values()) <= unknown:
        raise ValueError(
            f"masks were asked for, but none of the {unknown} annotations has a usable "
            "'segmentation': convert without --include_masks (with --data: train a model without "
            "masks), or use annotations with masks"
        )


def _make_task(
    path: Path,
    images: Sequence[CocoImage],
    files: FoundFiles,
    annotations: CocoAnnotations | None,
    captions: Mapping[str, Sequence[str]] | None,
    settings: ConversionSettings,
) -> ShardTask:
    """Selects what one worker needs; polygons only where masks are wanted (they are most of it)."""
    objects = None
    if annotations is not None:
        objects = {
            image.source_id: [
                entry if settings.mask_format else {**entry, "segmentation": None}
                for entry in annotations.objects[image.source_id]
            ]
            for image in images
            if image.source_id in annotations.objects
        }
    if captions is not None:
        captions = {image.source_id: captions.get(image.source_id, ()) for image in images}
    return ShardTask(os.fspath(path), images, files.of(images), objects, captions)
