"""Joins the cards of several record sets that are trained on as one.

Records know category ids only, so the sets must mean the same by each id. A set that lacks a class
of another would teach that its objects are background, so the lists of classes must be equal, not
only free of contradictions.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence

from object_detection.records.card import Category, DataCard, make_fingerprint

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
    first_name, first = next(iter(cards.items()))
    for name, card in cards.items():
        difference = _different_classes(first, card)
        if difference:
            raise ValueError(
                f"{first_name} and {name} cannot be trained on together: {difference}. Convert "
                "them again from annotation files with one list of categories"
            )
    _require_masks_in_all_or_none(cards)
    formats = {card.mask_format for card in cards.values()}
    largest = max(cards.values(), key=lambda card: card.max_boxes_per_image)
    shards = tuple(shard for card in cards.values() for shard in card.shards)
    categories = _summed_categories(list(cards.values()))
    sha256 = hashlib.sha256("".join(c.annotations_sha256 for c in cards.values()).encode())
    return dataclasses.replace(
        largest,
        split="+".join(card.split for card in cards.values()),
        categories=categories,
        **{
            name: sum(getattr(card, name) for card in cards.values())
            for name in ("num_images", "num_instances", "num_crowd", "num_images_without_boxes")
        },
        min_height=min(card.min_height for card in cards.values()),
        max_height=max(card.max_height for card in cards.values()),
        min_width=min(card.min_width for card in cards.values()),
        max_width=max(card.max_width for card in cards.values()),
        shards=shards,
        box_statistics={},
        dropped=_summed([card.dropped for card in cards.values()]),
        corrected=_summed([card.corrected for card in cards.values()]),
        skipped_source_ids=tuple(i for card in cards.values() for i in card.skipped_source_ids),
        mask_format=formats.pop() if len(formats) == 1 else "png",
        annotations_file="",
        annotations_sha256=sha256.hexdigest(),
        fingerprint=make_fingerprint(shards, categories, sha256.hexdigest()),
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


def _summed_categories(cards: Sequence[DataCard]) -> tuple[Category, ...]:
    instances, images = Counter(), Counter()
    for card in cards:
        for category in card.categories:
            instances[category.category_id] += category.instances
            images[category.category_id] += category.images
    return tuple(
        dataclasses.replace(c, instances=instances[c.category_id], images=images[c.category_id])
        for c in cards[0].categories
    )


def _summed(counts: Sequence[Mapping[str, int]]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for count in counts:
        total.update(count)
    return dict(sorted(total.items()))
