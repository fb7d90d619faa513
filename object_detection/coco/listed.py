"""The images and categories that a COCO file lists."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping, Sequence
from typing import Any

from object_detection.coco import values
from object_detection.coco.findings import Finding
from outside_data.files import BadFileError
from outside_data.text import clean, encodable


@dataclasses.dataclass(frozen=True)
class CocoImage:
    """One image; sizes in pixels as the file states them, None where it does not."""

    source_id: str
    image_id: int | str
    file_name: str
    height: int | None
    width: int | None


@dataclasses.dataclass(frozen=True)
class CocoCategory:
    """One category: the model's class_id (0-based) and the data set's category_id."""

    class_id: int
    category_id: int
    name: str
    supercategory: str = ""


def some(named: Sequence[Any], limit: int = 5) -> str:
    """Returns the first few values for a message."""
    shown = ", ".join(map(clean, named[:limit]))
    return shown + (", ..." if len(named) > limit else "")


def entries_of(content: Mapping[str, Any], key: str, path: object) -> list[dict[str, Any]]:
    """Returns a list of objects that a file must have; ValueError if it has something else."""
    entries = content.get(key)
    if not isinstance(entries, list) or not all(isinstance(entry, Mapping) for entry in entries):
        raise no_list(content, key, path)
    return entries


def no_list(content: Mapping[str, Any], key: str, path: object) -> BadFileError:
    """Returns the error that there is no list of objects under a key."""
    value = content.get(key)
    found = f"{key!r} is a {type(value).__name__}" if key in content else f"no {key!r}"
    if isinstance(value, list):
        wrong = next(i for i, entry in enumerate(value) if not isinstance(entry, Mapping))
        found = f"{key}[{wrong}] is {value[wrong]!r}"
    return BadFileError(
        f"{path}: {found}: expected a COCO file with a list of objects under {key!r}, got the "
        f"keys {sorted(content)}{misspelt(content)}"
    )


def misspelt(content: Mapping[str, Any]) -> str:
    """Names a key that may be a misspelt one."""
    for wanted in ("images", "annotations", "categories"):
        near = {str(key).lower(): key for key in content if key != wanted}
        found = difflib.get_close_matches(wanted, near, n=1, cutoff=0.8)
        if wanted not in content and found:
            return f"; is {near[found[0]]!r} meant for {wanted!r}?"
    return ""


def name_of_url(url: str) -> str:
    """Returns the file that a `coco_url` means, as train2017/000000000009.jpg."""
    return "/".join(url.split("/")[-2:])


def read_listed_images(
    content: Mapping[str, Any], path: object, findings: list[Finding]
) -> tuple[CocoImage, ...]:
    """Reads "images"; ValueError for images without id or name, and ids of two images."""
    images: dict[str, CocoImage] = {}
    for index, entry in enumerate(entries_of(content, "images", path)):
        source_id, name = values.id_text(entry.get("id")), entry.get("file_name")
        if name is None and isinstance(url := entry.get("coco_url"), str):
            name = name_of_url(url)
            what = "image: without file_name, named by coco_url (of LVIS; scores are COCO's)"
            findings.append(Finding(False, what, name, source_id))
        has_name = name not in (None, "") and not isinstance(name, (bool, list, dict))
        missing = [
            k for k, is_there in (("id", source_id), ("file_name", has_name)) if not is_there
        ]
        if missing:
            raise BadFileError(
                f"{path}: images[{index}] has no {' and no '.join(missing)}: {entry}"
            )
        name = str(name)
        if source_id in images:
            if images[source_id].file_name == name:
                findings.append(Finding(True, "image: listed twice", name, source_id))
                continue
            raise BadFileError(
                f"{path}: image id {source_id} occurs twice ({images[source_id].file_name} and "
                f"{name}): give every image an id of its own"
            )
        sides = [entry.get("height"), entry.get("width")]
        height, width = map(values.positive_pixels, sides)
        if height is None or width is None:
            if any(side is not None for side in sides):
                what = "image: no usable height and width in the JSON, those of the file count"
                findings.append(Finding(False, what, name, source_id))
            height = width = None
        is_number = not isinstance(entry["id"], str) and source_id.isdecimal()
        images[source_id] = CocoImage(
            source_id, int(source_id) if is_number else entry["id"], name, height, width
        )
    if not images:
        raise BadFileError(f"{path}: the list of images is empty")
    return tuple(images.values())


def read_categories(
    content: Mapping[str, Any], path: object, findings: list[Finding]
) -> tuple[CocoCategory, ...]:
    """Reads "categories"; ValueError for ids that are no integers, and ids of two categories."""
    names: dict[int, tuple[str, str]] = {}
    for index, entry in enumerate(entries_of(content, "categories", path)):
        category_id = values.category_number(entry.get("id"))
        where = f"category {entry.get('id')}"
        if category_id is None:
            raise BadFileError(
                f"{path}: categories[{index}] has id {entry.get('id')!r}: expected an integer of "
                "at least 0 (records store labels as integers)"
            )
        stated = entry.get("name")
        name = "" if stated is None or isinstance(stated, (list, dict)) else str(stated)
        name = encodable(name.strip())
        if not name:
            name = str(category_id)
            findings.append(Finding(False, "category: without a name, called by its id", where))
        if category_id in names:
            if names[category_id][0] != name:
                raise BadFileError(
                    f"{path}: category id {category_id} occurs twice ({names[category_id][0]} and "
                    f"{name}): merge the two or renumber"
                )
            findings.append(Finding(True, "category: listed twice", where))
            continue
        names[category_id] = (name, str(entry.get("supercategory") or ""))
    if not names:
        raise BadFileError(f"{path}: the list of categories is empty: nothing to detect")
    return tuple(
        CocoCategory(class_id, category_id, *names[category_id])
        for class_id, category_id in enumerate(sorted(names))
    )
