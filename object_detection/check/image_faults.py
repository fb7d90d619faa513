"""Faults of images: files that are missing or of another size, EXIF, empty and crowded ones."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from object_detection.check.findings import CheckFinding
from object_detection.check.split_table import SplitTable
from object_detection.masks.rescale import is_same_shape


def image_faults(
    table: SplitTable, *, max_instances: int, max_detections: int
) -> Iterator[CheckFinding]:
    """Yields what is wrong with the images of a split.

    Training has rows for `max_instances` boxes; `max_detections` of an image are scored.
    """
    yield from _unusable(table)
    yield from _sizes(table)
    counts = np.bincount(table.image[~table.is_crowd], minlength=len(table.facts))
    empty = np.flatnonzero(np.bincount(table.image, minlength=len(table.facts)) == 0)
    if len(empty):
        share = len(empty) / len(table.facts)
        yield CheckFinding(
            "warning" if share > 0.5 else "note",
            "empty_images",
            table.name,
            f"{len(empty):,} of {len(table.facts):,} images have no object ({share:.0%})",
            "Fine where nothing is to be seen; else their annotations are missing",
            examples=[table.image_name(i) for i in empty],
        )
    for limit, code, consequence, remedy in (
        (
            max_instances,
            "too_many_for_training",
            "training leaves out the smallest of the rest",
            "Raise max_instances_per_image (--max_instances_per_image) to {most}",
        ),
        (
            max_detections,
            "too_many_for_scoring",
            "no more detections of an image are scored: AP cannot reach 1",
            "COCO's own limit is 100. Cut the images into tiles, or raise the model's detections "
            "and the scorer's limit to {most}, and say so beside the score",
        ),
    ):
        over = np.flatnonzero(counts > limit)
        if len(over):
            worst = over[np.argsort(-counts[over], kind="stable")]
            rest = int((counts[over] - limit).sum())
            yield CheckFinding(
                "warning",
                code,
                table.name,
                f"{len(over):,} images have more than {limit} objects, at most {counts.max():,} "
                f"({rest:,} objects beyond the limit, {rest / max(counts.sum(), 1):.1%}): "
                f"{consequence}",
                remedy.format(most=int(counts.max())),
                examples=[f"{table.image_name(i)}: {counts[i]:,} objects" for i in worst],
            )


def _unusable(table: SplitTable) -> Iterator[CheckFinding]:
    problems = {i: fact.problem for i, fact in enumerate(table.facts) if fact.problem}
    missing = [i for i, problem in problems.items() if problem.startswith("no such file")]
    for code, what, remedy, gone in (
        (
            "missing_images",
            "image files do not exist",
            "Put them there, or correct file_name or the image folder",
            missing,
        ),
        (
            "unreadable_images",
            "image files cannot be used",
            "Repair or remove them",
            [i for i in problems if i not in missing],
        ),
    ):
        if gone:
            share = len(gone) / len(table.facts)
            yield CheckFinding(
                "error" if share > 0.05 else "warning",
                code,
                table.name,
                f"{len(gone):,} of {len(table.facts):,} {what}",
                remedy,
                examples=[f"{table.image_name(i)}: {problems[i]}" for i in gone],
            )


def _sizes(table: SplitTable) -> Iterator[CheckFinding]:
    groups: dict[str, list[int]] = {"turned": [], "scaled": [], "other": [], "tagged": []}
    for index, (image, fact) in enumerate(zip(table.annotations.images, table.facts)):
        if not fact.width:
            continue
        stored = (fact.height, fact.width)
        stated = (image.height or fact.height, image.width or fact.width)
        if not is_same_shape(stated, stored):
            is_turned = fact.orientation >= 5 and is_same_shape(stated, stored[::-1])
            groups["turned" if is_turned else "other"].append(index)
        elif stated != stored:
            groups["scaled"].append(index)
        elif fact.orientation != 1:
            groups["tagged"].append(index)
    for group, level, code, what, remedy in (
        (
            "other",
            "error",
            "other_sizes",
            "have another size and shape than the annotations say",
            "The boxes were drawn on other pictures: use those, or correct the annotations",
        ),
        (
            "scaled",
            "warning",
            "scaled_images",
            "have another size than the annotations say, of the same shape",
            "Make sure that the boxes fit the annotations' size: they are scaled by the ratio",
        ),
        (
            "turned",
            "warning",
            "exif_turned",
            "are turned by EXIF, and the annotations state the turned size",
            "Conversion leaves them out unless --exif=apply turns them; or turn the files yourself",
        ),
        (
            "tagged",
            "warning",
            "exif_tag",
            "have an EXIF orientation that the annotations' size does not call for",
            "Look at the drawn examples. If boxes do not fit: --exif=apply turns those whose size "
            "does not tell on which picture boxes were drawn; else turn the files",
        ),
    ):
        found = groups[group]
        if found:
            yield CheckFinding(
                level,
                code,
                table.name,
                f"{len(found):,} of {len(table.facts):,} images {what}",
                remedy,
                examples=[_size_note(table, index) for index in found],
            )


def _size_note(table: SplitTable, index: int) -> str:
    image, fact = table.annotations.images[index], table.facts[index]
    tag = f", EXIF orientation {fact.orientation}" if fact.orientation != 1 else ""
    stated = f"annotations {image.width} x {image.height}"
    return f"{table.image_name(index)}: {stated}, file {fact.width} x {fact.height}{tag}"
