"""Joins the cards of several record sets that are trained on as one.

Records know category ids only, so the sets must mean the same by each id. A set that lacks a class
of another would teach that its objects are background, so the lists of classes must be equal, not
only free of contradictions.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from object_detection.records.card import DataCard, make_fingerprint

_MOST_NAMED = 5


def merge_cards(parts: Mapping[str, tuple[Sequence[str], DataCard]]) -> DataCard:
    """Returns one card for the records of several sets.

    Args:
      parts: name or pattern of a set -> (its record files, its card); two sets or more.

    Returns:
      The card. Quantiles of box sizes are left out: they do not add up.

    Raises:
      ValueError: a file belongs to two sets, or the sets have different classes, only some of them
        have masks; says which and what differs.
    """
    _refuse_common_files({name: files for name, (files, _) in parts.items()})
    cards = {name: card for name, (_, card) in parts.items()}
    every = list(cards.values())
    for name, card in cards.items():
        difference = _different_classes(every[0], card)
        if difference:
            raise ValueError(
                f"{next(iter(cards))} and {name} cannot be trained on together: {difference}. "
                "Convert them again from annotation files with one list of categories"
            )
    _require_masks_in_all_or_none(cards)
    formats = {card.mask_format for card in every}
    shards = tuple(shard for card in every for shard in card.shards)
    instances = _summed({c.category_id: c.instances for c in card.categories} for card in every)
    images = _summed({c.category_id: c.images for c in card.categories} for card in every)
    categories = tuple(
        dataclasses.replace(c, instances=instances[c.category_id], images=images[c.category_id])
        for c in every[0].categories
    )
    sha256 = hashlib.sha256("".join(card.annotations_sha256 for card in every).encode())
    return dataclasses.replace(
        max(every, key=lambda card: card.max_boxes_per_image),
        split="+".join(card.split for card in every),
        categories=categories,
        **{
            name: sum(getattr(card, name) for card in every)
            for name in ("num_images", "num_instances", "num_crowd", "num_images_without_boxes")
        },
        **{
            f"{name}_{side}": choose(getattr(card, f"{name}_{side}") for card in every)
            for name, choose in (("min", min), ("max", max))
            for side in ("height", "width")
        },
        shards=shards,
        box_statistics={},
        dropped=dict(sorted(_summed(card.dropped for card in every).items())),
        corrected=dict(sorted(_summed(card.corrected for card in every).items())),
        skipped_source_ids=tuple(i for card in every for i in card.skipped_source_ids),
        mask_format=formats.pop() if len(formats) == 1 else "png",
        annotations_file="",
        annotations_sha256=sha256.hexdigest(),
        fingerprint=make_fingerprint(shards, categories, sha256.hexdigest()),
        # Of what several sets have, the places in the first of them.
        examples={what: p for card in reversed(every) for what, p in card.examples.items()},
        resized_images={i: size for card in every for i, size in card.resized_images.items()},
    )


def _refuse_common_files(files: Mapping[str, Sequence[str]]) -> None:
    owners: dict[str, str] = {}
    for name, paths in files.items():
        for path in paths:
            if path in owners:
                raise ValueError(
                    f"{path} belongs to {owners[path]} and to {name}: name each set once"
                )
            owners[path] = name


def _different_classes(ours: DataCard, theirs: DataCard) -> str:
    """Returns what differs between the classes of two cards, '' if nothing does."""
    one = {category.name: category.category_id for category in ours.categories}
    other = {category.name: category.category_id for category in theirs.categories}
    lacking = [
        f"{which} lacks the classes {missing[:_MOST_NAMED]}"
        for which, missing in (
            ("the second", [name for name in one if name not in other]),
            ("the first", [name for name in other if name not in one]),
        )
        if missing
    ]
    renumbered = [
        f"{name!r} is category {one[name]} in the first and {other[name]} in the second"
        for name in one
        if name in other and one[name] != other[name]
    ]
    return "; ".join([*lacking, *renumbered[:_MOST_NAMED]])


def _require_masks_in_all_or_none(cards: Mapping[str, DataCard]) -> None:
    without = [name for name, card in cards.items() if not card.has_masks]
    if without and len(without) < len(cards):
        raise ValueError(
            f"{', '.join(without)} holds no masks, the other sets do: convert it again with "
            "create_coco_tfrecord.py --include_masks"
        )


def _summed(counts: Iterable[Mapping[Any, int]]) -> Counter[Any]:
    total: Counter[Any] = Counter()
    for count in counts:
        total.update(count)
    return total
