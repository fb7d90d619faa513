"""Runs all checks on the splits of a data set."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from object_detection.check.anchor_fit import AnchorLayout, anchor_fit
from object_detection.check.findings import LEVELS, CheckFinding, Report
from object_detection.check.image_faults import image_faults
from object_detection.check.object_faults import object_faults
from object_detection.check.shifted_ids import shifted_ids
from object_detection.check.split_faults import split_faults
from object_detection.check.split_table import Progress, SplitTable, read_table
from object_detection.coco import box_frame

HOPELESS = frozenset(
    ("no_objects", "tiny_boxes", "far_clipped_boxes", "masks_elsewhere", "shifted_ids")
) | {f"{kind}_boxes" for kind in box_frame.KINDS}
"""Errors of boxes that nothing later corrects or refuses by itself: a training must not start."""


def check_splits(
    splits: Mapping[str, tuple[Path, Path]],
    *,
    layout: AnchorLayout | None,
    max_instances: int = 100,
    max_detections: int = 100,
    follow_links: bool = False,
    progress: Callable[[str], Progress] = lambda name: lambda done, total: None,
) -> tuple[Report, dict[str, SplitTable]]:
    """Checks a data set.

    Args:
      splits: name to (annotation file, image folder); the one trained on comes first.
      layout: anchors to compare the boxes with; None: not compared.
      max_instances, max_detections: see `image_faults`.
      follow_links: whether links in the image folders may lead outside.
      progress: see `read_table`.

    Returns:
      The report, and the splits that could be read.
    """
    findings: list[CheckFinding] = []
    tables: dict[str, SplitTable] = {}
    for name, (annotation_file, image_dir) in splits.items():
        try:
            tables[name] = read_table(
                *(name, annotation_file, image_dir),
                follow_links=follow_links,
                progress=progress,
            )
        except (ValueError, OSError) as error:
            findings.append(
                CheckFinding("error", "unreadable", name, str(error), "Correct the annotation file")
            )
    anchors: dict = {}
    for name, table in tables.items():
        own = list(object_faults(table))
        wrong = {item.code for item in own if item.level == "error"}
        if wrong <= {"clipped_boxes", "far_clipped_boxes", "dropped", "corrected"}:
            own += shifted_ids(table)
        own += image_faults(table, max_instances=max_instances, max_detections=max_detections)
        is_sound = not any(item.level == "error" for item in own)
        if layout is not None and is_sound and name == next(iter(splits)):
            anchors, more = anchor_fit(table, layout)
            own += more
        findings += own
    findings += split_faults(tables, next(iter(splits)))
    facts = {name: _facts(table) for name, table in tables.items()}
    findings.sort(key=lambda item: LEVELS.index(item.level))
    return Report(findings, facts, anchors), tables


def _facts(table: SplitTable) -> dict[str, int]:
    counts = np.bincount(table.image, minlength=max(len(table.facts), 1))
    return {
        "images": len(table.facts),
        "objects": len(table.boxes),
        "classes": len(table.annotations.categories),
        "objects at most in an image": int(counts.max()),
    }
