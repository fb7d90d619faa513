"""Says in plain text what a record set holds and what a conversion did; shows progress and ETA."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import TextIO

from object_detection.coco.findings import describe_counts
from object_detection.convert.convert import Conversion
from object_detection.records.card import DataCard
from outside_data.text import MOST_OF_A_LINE, clean, counted

ROWS_BY_DEFAULT = 100
"""What training keeps of an image's boxes: the default of `max_instances_per_image`."""

_LISTED_IMAGES = 10
_LINE_SECONDS = 10.0


def describe_card(card: DataCard, *, rows: int = ROWS_BY_DEFAULT) -> str:
    """Returns what a record set holds: images, boxes, a table of its classes, what was dropped.

    Training has rows for `rows` boxes of an image.
    """
    lines = [
        f"{clean(card.split)}: {counted(card.num_images, 'image')}, "
        + f"{card.num_images_without_boxes:,} without a box",
        f"image height {card.min_height} to {card.max_height}, width {card.min_width} to "
        + f"{card.max_width} pixels",
        f"{counted(card.num_instances, 'instance')} of {counted(card.num_classes, 'class')}, "
        + f"{card.num_crowd:,} of them crowd regions; masks: {card.mask_format or 'none'}",
        f"largest number of boxes in one image: {card.max_boxes_per_image}"
        + (f" (image id {clean(card.max_boxes_source_id)})" if card.max_boxes_per_image else ""),
    ]
    beyond = card.max_boxes_per_image - rows
    if beyond > 0:
        lines.append(
            f"WARNING: training leaves out the smallest {beyond} of them unless "
            f"--max_instances_per_image is raised from {rows}"
        )
    sizes = card.box_statistics.get("sqrt_area_px", {})
    if sizes:
        shown = ", ".join(f"{name} {sizes[name]:g}" for name in ("min", "p05", "p50", "p95", "max"))
        lines.append(f"box size, square root of area in pixels: {shown}")
    if not card.num_instances:
        lines.append("WARNING: not one box: this set can be looked at, but not trained on")
    lines += ["", *_class_table(card), ""]
    for title, counts in (("dropped", card.dropped), ("corrected", card.corrected)):
        lines += describe_counts(title, counts, card.examples)
    return "\n".join(lines)


def describe_conversion(conversion: Conversion, *, rows: int = ROWS_BY_DEFAULT) -> str:
    """Returns the report of a conversion: the card's (see there), and what became of files."""
    card = conversion.card
    lines = [describe_card(card, rows=rows)]
    skipped = conversion.skipped_images
    for i, name, reason in skipped[:_LISTED_IMAGES]:
        lines.append(f"  {clean(name)} (image id {clean(i)}): {clean(reason)}")
    if len(skipped) > _LISTED_IMAGES:
        lines.append(f"  ... and {len(skipped) - _LISTED_IMAGES} more")
    warnings = conversion.warnings
    lines += [
        f"WARNING: {clean(warning, most=MOST_OF_A_LINE)}" for warning in warnings[:_LISTED_IMAGES]
    ]
    if len(warnings) > _LISTED_IMAGES:
        lines.append(f"WARNING: ... and {len(warnings) - _LISTED_IMAGES} more such images")
    if conversion.removed_files:
        lines.append(
            f"removed {len(conversion.removed_files)} files of an earlier conversion "
            f"({conversion.removed_files[0]}, ...)"
        )
    rate = card.num_images / max(conversion.seconds, 1e-9)
    lines.append(
        f"wrote {len(card.shards)} files {card.shards[0].file} ... and {conversion.card_file} "
        f"in {format_seconds(conversion.seconds)} ({rate:.0f} images/s)"
    )
    return "\n".join(lines)


def progress_printer(
    label: str, *, stream: TextIO | None = None, clock: Callable[[], float] = time.monotonic
) -> Callable[[int, int], None]:
    """Returns a progress callback that keeps one line up to date on a terminal.

    Elsewhere (a log file, a pipe) it prints a line every ten seconds and one at the end.
    """
    out = stream or sys.stderr
    start = clock()
    last_line = start
    finished = False

    def show(done: int, total: int) -> None:
        nonlocal last_line, finished
        is_end = done >= total
        if finished or (not out.isatty() and not is_end and clock() - last_line < _LINE_SECONDS):
            return
        finished, last_line = is_end, clock()
        elapsed = clock() - start
        text = f"{label}: {done:,}/{total:,} images ({done / max(total, 1):.0%})"
        if is_end:
            text += f", {format_seconds(elapsed)}"
        elif done:
            text += f", {done / elapsed:.0f}/s" if elapsed > 0 else ""
            text += f", {format_seconds(elapsed * (total - done) / done)} left"
        out.write(f"\r{text}\033[K" + "\n" * is_end if out.isatty() else f"{text}\n")
        out.flush()

    return show


def format_seconds(seconds: float) -> str:
    """Returns a duration for people: 42 s, 3 min 05 s, 2 h 10 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def _class_table(card: DataCard) -> list[str]:
    """Returns the classes by falling number of instances; those without any in one line."""
    present = sorted(card.categories, key=lambda category: -category.instances)
    present = [category for category in present if category.instances]
    absent = [clean(category.name) for category in card.categories if not category.instances]
    names = [clean(category.name) for category in present]
    width = max([*map(len, names), 4])
    lines = [f"  {'name':{width}}  class_id  category_id  instances  images"] if present else []
    for name, c in zip(names, present):
        ids = f"{c.class_id:>8}  {c.category_id:>11}"
        lines.append(f"  {name:{width}}  {ids}  {c.instances:>9,}  {c.images:>6,}")
    if absent and card.num_instances:
        lines.append(f"  no instance of {len(absent)} classes: {', '.join(absent)}")
    return lines
