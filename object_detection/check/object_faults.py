"""Faults of single boxes and masks: their form, their size, their place, their doubles."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import numpy as np

from object_detection.check.findings import CheckFinding
from object_detection.check.split_table import SplitTable
from object_detection.coco.box_frame import REMEDY, frame_problems

_FEWEST = 3
_ERROR_SHARE = 0.05
_MOSTLY = 0.25  # of the boxes, where clipping is no matter of loose edges any more
_LOST_AREA = 0.2  # of a box, outside its image
_LEAST_OVERLAP = 0.5  # IoU of a box with the bounds of its mask
_READER_ERROR_SHARE = 0.2


def object_faults(table: SplitTable) -> Iterator[CheckFinding]:
    """Yields what is wrong with the objects of a split."""
    if not len(table.boxes):
        yield _no_objects(table)
        return
    is_plain = np.ones(len(table.boxes), bool)
    for problem in frame_problems(table.boxes, table.sizes, table.outlines, table.image):
        is_plain &= ~problem.where
        yield table.boxes_finding(
            "error" if problem.is_fatal else "warning",
            f"{problem.kind}_boxes",
            problem.where,
            problem.what,
            f"{problem.remedy}. {REMEDY}",
        )
    yield from _reader_findings(table)
    if is_plain.any():
        yield from _small(table, is_plain)
        yield from _clipped(table, is_plain)
        yield from _doubles(table, is_plain)
        yield from _masks_elsewhere(table, is_plain & ~table.is_crowd)
    if table.is_crowd.any():
        share = table.is_crowd.mean()
        yield table.boxes_finding(
            "error" if share == 1 else "warning" if share > 0.2 else "note",
            "crowds",
            table.is_crowd,
            f"{table.is_crowd.sum():,} of {len(table.boxes):,} objects are crowd regions "
            f"({share:.1%}): training leaves them out, and scoring counts them neither way",
            "Set iscrowd to 0 where single objects are meant",
        )


def _no_objects(table: SplitTable) -> CheckFinding:
    """Says why there is none; a test set may well be without."""
    counts = table.annotations.counts(with_masks=False)
    reasons = "; ".join(f"{count:,} x {what}" for what, count in counts.dropped.items())
    is_test = table.name.startswith("test") and not reasons
    return CheckFinding(
        "note" if is_test else "error",
        "no_objects",
        table.name,
        f"{len(table.annotations.images)} images and not one object"
        + f": {reasons}" * bool(reasons),
        "Correct the annotations"
        if reasons
        else "Fine for a test set: it is not evaluated"
        if is_test
        else "Use an instances file: a detector would learn only background, and scores of nothing "
        "say nothing",
        examples=[place for what in counts.dropped for place in counts.examples.get(what, ())],
    )


def _reader_findings(table: SplitTable) -> Iterator[CheckFinding]:
    """Yields what the reader drops and corrects."""
    has_masks = bool(np.isfinite(table.outlines).any())
    counts = table.annotations.counts(with_masks=has_masks)
    for title, found in (("dropped", counts.dropped), ("corrected", counts.corrected)):
        for what, count in found.items():
            is_loss = title == "dropped" or what.startswith("mask unknown")
            much = count >= max(_FEWEST, _READER_ERROR_SHARE * len(table.boxes))
            yield CheckFinding(
                "error" if is_loss and much else "warning" if is_loss else "note",
                title,
                table.name,
                f"{count:,} x {what}",
                "Correct them; conversion leaves out what is dropped, and an unknown mask is not "
                "learned"
                if is_loss
                else "Nothing: conversion does the same",
                count=count,
                examples=counts.examples.get(what, ()),
            )


def _small(table: SplitTable, where: np.ndarray) -> Iterator[CheckFinding]:
    side = table.boxes[:, 2:].min(axis=1)
    small = where & (side < 1) & (side > 0)
    if small.any():
        share = small.sum() / where.sum()
        yield table.boxes_finding(
            "error" if share >= _ERROR_SHARE and small.sum() >= _FEWEST else "warning",
            "tiny_boxes",
            small,
            f"{small.sum():,} of {where.sum():,} boxes are less than a pixel wide or high",
            "Remove them, or look whether their numbers are in other units than pixels",
        )


def _clipped(table: SplitTable, where: np.ndarray) -> Iterator[CheckFinding]:
    low, side = table.boxes[:, :2], table.boxes[:, 2:]
    with np.errstate(invalid="ignore", divide="ignore"):
        inside = np.clip(np.minimum(low + side, table.sizes) - np.maximum(low, 0), 0, None)
        lost = 1 - inside.prod(axis=1) / side.prod(axis=1)
    much = where & (lost > _LOST_AREA)
    some = where & (lost > 0.01)
    if not some.any():
        return
    is_error = much.sum() >= max(_FEWEST, _ERROR_SHARE * where.sum())
    level = "error" if is_error else "warning" if some.sum() > 0.03 * where.sum() else "note"
    order = np.argsort(np.where(some, -lost, np.inf), kind="stable")[: some.sum()]
    yield table.boxes_finding(
        level,
        "clipped_boxes" if much.sum() < _MOSTLY * where.sum() else "far_clipped_boxes",
        order,
        f"{some.sum():,} of {where.sum():,} boxes reach out of their image by more than 1% of "
        f"their area, {much.sum():,} by more than {_LOST_AREA:.0%}",
        "Conversion clips them. That many say that boxes are centres or corners, belong to other "
        "images (shifted ids), or were drawn on pictures of another size"
        if is_error
        else "Conversion clips them; look at the examples",
    )


def _doubles(table: SplitTable, where: np.ndarray) -> Iterator[CheckFinding]:
    where = where & ~table.is_crowd
    rounded = np.round(10 * table.boxes).astype(np.int64)
    same_class: Counter = Counter()
    classes: dict[tuple, set[int]] = {}
    doubles, two_classes = [], []
    for index in np.flatnonzero(where).tolist():
        box = (int(table.image[index]), *rounded[index].tolist())
        category = int(table.category[index])
        known = classes.setdefault(box, set())
        same_class[box, category] += 1
        if same_class[box, category] > 1:
            doubles.append(index)
        elif known:
            two_classes.append(index)
        known.add(category)
    for code, found, what, remedy in (
        (
            "duplicate_boxes",
            doubles,
            "repeat another box of their image and class",
            "Remove the copies: each counts as an object that cannot be found twice",
        ),
        (
            "two_classes",
            two_classes,
            "lie just where a box of another class lies",
            "Decide for one class, unless both are meant",
        ),
    ):
        if found:
            share = len(found) / where.sum()
            yield table.boxes_finding(
                "warning" if share > 0.005 or len(found) >= 10 else "note",
                code,
                np.array(found),
                f"{len(found):,} of {where.sum():,} boxes {what}",
                remedy,
            )


def _masks_elsewhere(table: SplitTable, where: np.ndarray) -> Iterator[CheckFinding]:
    where = where & np.isfinite(table.outlines).all(axis=1)
    if not where.any():
        return
    corners = np.concatenate([table.boxes[:, :2], table.boxes[:, :2] + table.boxes[:, 2:]], axis=1)
    apart = where & (overlaps(corners, table.outlines) < _LEAST_OVERLAP)
    if apart.any():
        share = apart.sum() / where.sum()
        is_error = share >= _ERROR_SHARE and apart.sum() >= _FEWEST
        yield table.boxes_finding(
            "error" if is_error else "warning",
            "masks_elsewhere",
            apart,
            f"{apart.sum():,} of {where.sum():,} masks do not lie where their boxes lie (IoU below "
            f"{_LEAST_OVERLAP:g})",
            "Boxes and masks of different annotations were put together (shifted ids?), or one of "
            "them is in other units: export again, or leave bbox out and it is taken from the mask",
        )


def overlaps(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Returns [n], the IoU of boxes (x1, y1, x2, y2) row by row."""
    shared = np.clip(np.minimum(a[:, 2:], b[:, 2:]) - np.maximum(a[:, :2], b[:, :2]), 0, None)
    shared = shared.prod(axis=1)
    areas = [np.clip(box[:, 2:] - box[:, :2], 0, None).prod(axis=1) for box in (a, b)]
    return shared / np.maximum(areas[0] + areas[1] - shared, 1e-12)
