"""What data cards alone say of a training: no image and no annotation file is read."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from object_detection.check.anchor_fit import AnchorLayout
from object_detection.records.card import DataCard
from object_detection.records.class_map import plain_name

_MUCH = 0.03  # of the boxes
_FAR_CLIPPED = "box: clipped by more than 1 pixel"


def card_faults(
    trained: DataCard, scored: DataCard | None, layout: AnchorLayout | None, *, max_instances: int
) -> Iterator[str]:
    """Yields warnings for the log of a training, with rows for `max_instances` boxes."""
    if trained.max_boxes_per_image > max_instances:
        yield (
            f"image {trained.max_boxes_source_id} has {trained.max_boxes_per_image} boxes"
            f"{' (crowd regions counted)' if trained.num_crowd else ''}: beyond "
            f"max_instances_per_image={max_instances} the smallest of an image are left out"
        )
    relative = trained.box_statistics.get("sqrt_area_relative", {})
    shapes, limits = (layout.shapes, layout.limits) if layout else ((), (0, 0))
    smallest = min((float(np.sqrt(shape.prod(axis=1)).min()) for shape in shapes), default=0)
    side = float(np.sqrt(limits[0] * limits[1]))
    if relative and relative["p50"] * side < 0.75 * smallest:
        yield (
            f"half of the boxes are smaller than {relative['p50'] * side:.0f} pixels at this input "
            f"size, and the smallest anchor is {smallest:.0f}: raise --image_size or make "
            "anchors smaller (python -m dataset.check says what helps)"
        )
    for card in (trained, scored):
        total = max(card.num_instances, 1) if card else 1
        for counts in (card.dropped, card.corrected) if card else ():
            for what, count in counts.items():
                is_loss = counts is card.dropped and what.startswith(("box", "mask"))
                if count > _MUCH * total and (is_loss or what == _FAR_CLIPPED):
                    yield (
                        f"{card.split}: {count} of {total} boxes: {what}; look at them with "
                        "python -m dataset.check"
                    )
    taught = {plain_name(category.name) for category in trained.categories if category.instances}
    asked = [c.name for c in (scored.categories if scored else ()) if c.instances]
    missing = [name for name in asked if plain_name(name) not in taught]
    if missing:
        yield (
            f"{len(missing)} of {len(asked)} classes of {scored.split} have no object to learn "
            f"from, so their AP will be 0: {', '.join(missing[:10])}"
        )
