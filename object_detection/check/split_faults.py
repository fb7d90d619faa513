"""Faults between splits: classes that do not agree, classes without objects, shared images."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence

from object_detection.check.findings import CheckFinding
from object_detection.check.split_table import SplitTable
from object_detection.records.card import content_of
from object_detection.records.class_map import plain_name
from outside_data.picture_file import read_regular_file


def split_faults(tables: Mapping[str, SplitTable], trained: str) -> Iterator[CheckFinding]:
    """Yields what does not fit between splits; the one trained on may not be among them."""
    for name, table in tables.items():
        yield from _unused_classes(table)
        yield from _alike_classes(table)
        if trained in tables and name != trained:
            yield from _class_lists(tables[trained], table)
            yield from _untaught(tables[trained], table)
    yield from _shared_images(list(tables.values()))


def _unused_classes(table: SplitTable) -> Iterator[CheckFinding]:
    used = set(table.category.tolist())
    unused = [c.name for c in table.annotations.categories if c.category_id not in used]
    if unused:
        yield CheckFinding(
            "note",
            "unused_classes",
            table.name,
            f"{len(unused)} of {len(table.annotations.categories)} classes have no object",
            "Nothing, if so; they have no AP here",
            count=len(unused),
            examples=[", ".join(unused[:20]) + (", ..." if len(unused) > 20 else "")],
        )


def _alike_classes(table: SplitTable) -> Iterator[CheckFinding]:
    groups: dict[str, list[str]] = defaultdict(list)
    for number, name in table.annotations.category_names.items():
        groups[plain_name(name)].append(f"{name!r} (id {number})")
    alike = [", ".join(group) for group in groups.values() if len(group) > 1]
    if alike:
        yield CheckFinding(
            "warning",
            "alike_classes",
            table.name,
            f"{len(alike)} classes are listed more than once, under names that are alike",
            "Give their objects one category, unless they are different things",
            examples=alike,
        )


def _class_lists(trained: SplitTable, other: SplitTable) -> Iterator[CheckFinding]:
    ours, theirs = trained.annotations.category_names, other.annotations.category_names
    pair = f"{trained.name}, {other.name}"
    renamed = [
        f"id {number}: {ours[number]!r} in {trained.name}, {theirs[number]!r} in {other.name}"
        for number in sorted(ours.keys() & theirs.keys())
        if plain_name(ours[number]) != plain_name(theirs[number])
    ]
    numbers = {plain_name(name): number for number, name in ours.items()}
    repeated = [name for name, n in Counter(map(plain_name, ours.values())).items() if n > 1]
    if renamed:
        is_permuted = set(map(plain_name, theirs.values())) <= set(numbers)
        yield CheckFinding(
            "error" if not is_permuted else "warning",
            "class_names",
            pair,
            f"{len(renamed)} category ids mean other classes in the two splits"
            + (" (the same names in another order)" if is_permuted else ""),
            "Give each class one id in all splits; where the names are the same they are matched "
            "by name, else objects would be scored as the wrong class",
            examples=renamed,
        )
    moved = [
        f"{name!r}: id {own} in {trained.name}, {number} in {other.name}"
        for number, name in sorted(theirs.items())
        if (own := numbers.get(plain_name(name), number)) != number
        and plain_name(name) not in repeated
    ]
    if moved and not renamed:
        yield CheckFinding(
            "warning",
            "class_ids",
            pair,
            f"{len(moved)} classes have other ids in the two splits",
            "Give each class one id in all splits",
            examples=moved,
        )
    unknown = [f"{name!r} (id {n})" for n, name in sorted(theirs.items()) if n not in ours]
    unknown = [] if moved else unknown
    if unknown:
        yield CheckFinding(
            "warning",
            "unknown_classes",
            pair,
            f"{other.name} lists {len(unknown)} classes that {trained.name} does not",
            "List the same classes in both; what is not trained cannot be found",
            examples=unknown,
        )


def _untaught(trained: SplitTable, other: SplitTable) -> Iterator[CheckFinding]:
    names, ours = other.annotations.category_names, trained.annotations.category_names
    taught = {plain_name(ours[number]) for number in set(trained.category.tolist())}
    asked = Counter(names[number] for number in other.category.tolist())
    missing = {name: count for name, count in asked.items() if plain_name(name) not in taught}
    if missing:
        is_all = len(missing) == len(asked)
        yield CheckFinding(
            "error" if is_all else "warning",
            "untaught_classes",
            f"{trained.name}, {other.name}",
            f"{len(missing)} of {len(asked)} classes with objects in {other.name} have none in "
            f"{trained.name}: their AP will be 0",
            "Cut the splits so that every class is in both, or remove the class",
            examples=[f"{name!r}: {count:,} objects" for name, count in missing.items()],
        )


def _shared_images(tables: Sequence[SplitTable]) -> Iterator[CheckFinding]:
    """Finds equal files; read are only those of equal length, and whole if they look alike."""
    files = [
        (table, index, fact)
        for table in tables
        for index, fact in enumerate(table.facts)
        if fact.num_bytes > 0
    ]
    groups = [files]
    for key in (
        lambda fact: fact.num_bytes,
        lambda fact: content_of(fact.path),
        lambda fact: hashlib.sha256(read_regular_file(fact.path)).digest(),
    ):
        parts = defaultdict(list)
        for number, group in enumerate(groups):
            for file in group:
                parts[number, key(file[-1])].append(file)
        groups = [part for part in parts.values() if len(part) > 1]
    across, within = [], []
    for group in groups:
        named = " = ".join(f"{table.name}/{table.image_name(i)}" for table, i, _ in group)
        is_across = len({table.name for table, _, _ in group}) > 1
        (across if is_across else within).append(named)
    if across:
        yield CheckFinding(
            "warning",
            "shared_images",
            ", ".join(table.name for table in tables),
            f"{len(across):,} images are in more than one split, byte by byte: what is scored was "
            "trained on, and scores are too good",
            "Keep each image in one split",
            examples=across,
        )
    if within:
        yield CheckFinding(
            "warning",
            "repeated_images",
            "",
            f"{len(within):,} images occur more than once in a split, byte by byte",
            "Keep one of each, with all its objects",
            examples=within,
        )
