"""Reads a COCO instances file and checks it once, for the converter and for evaluation alike.

Image ids are compared as text, so `7` in one place and `"7"` in another meet, and a data set may
use names as ids; that text is the record's `source_id`. Class ids are contiguous, in order of
category id, so that two splits listing the same categories in another order agree.
Boxes here are still COCO's `[x, y, width, height]` in pixels.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

CocoObject = Mapping[str, Any]
"""One entry of the file's "annotations", as it stands there."""


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


@dataclasses.dataclass(frozen=True)
class CocoAnnotations:
    """A checked annotation file.

    Attributes:
      path: where it was read.
      sha256: hash of the file.
      images: in the file's order.
      categories: in order of class_id.
      objects: source_id to the annotations of that image; images without any are absent.
      num_orphans: annotations left out because no such image or category exists.
    """

    path: str
    sha256: str
    images: tuple[CocoImage, ...]
    categories: tuple[CocoCategory, ...]
    objects: Mapping[str, Sequence[CocoObject]]
    num_orphans: int = 0

    @property
    def num_objects(self) -> int:
        """Number of annotations, over all images."""
        return sum(map(len, self.objects.values()))

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names, indexed by class_id."""
        return tuple(category.name for category in self.categories)

    def class_id_of(self) -> dict[int, int]:
        """Returns category_id to class_id."""
        return {category.category_id: category.class_id for category in self.categories}

    def subset(self, source_ids: Iterable[str]) -> CocoAnnotations:
        """Returns the same data set with only the given images, in the original order."""
        kept = set(source_ids)
        return dataclasses.replace(
            self,
            images=tuple(image for image in self.images if image.source_id in kept),
            objects={key: value for key, value in self.objects.items() if key in kept},
        )

    def to_coco(self) -> dict[str, Any]:
        """Returns a COCO instances dict that pycocotools scores without surprises.

        Annotation ids are renumbered from 1 (pycocotools takes a ground truth of id 0 for
        unmatched, and keeps only one of two equal ids); missing `iscrowd` and `area` are filled
        in; boxes that are not finite or empty, which nothing could match, are left out.
        """
        image_ids = {image.source_id: image.image_id for image in self.images}
        annotations: list[dict[str, Any]] = []
        for source_id, objects in self.objects.items():
            for entry in objects:
                box = finite_box(entry)
                if box is None or min(box[2:]) <= 0:
                    continue
                annotations.append(
                    {
                        **entry,
                        "id": len(annotations) + 1,
                        "image_id": image_ids[source_id],
                        "category_id": int(entry["category_id"]),
                        "bbox": box,
                        "area": object_area(entry, default=box[2] * box[3]),
                        "iscrowd": int(entry.get("iscrowd") or 0),
                    }
                )
        return {
            "images": [
                {
                    "id": image.image_id,
                    "file_name": image.file_name,
                    **({"height": image.height, "width": image.width} if image.height else {}),
                }
                for image in self.images
            ],
            "categories": [
                {"id": c.category_id, "name": c.name, "supercategory": c.supercategory}
                for c in self.categories
            ],
            "annotations": annotations,
        }


def read_annotations(
    path: str | os.PathLike[str], *, on_orphan: str = "stop", require_objects: bool = True
) -> CocoAnnotations:
    """Reads and checks a COCO instances file.

    Args:
      path: the JSON file.
      on_orphan: what to do with annotations whose image or category is not in the file: "stop"
        raises, "skip" leaves them out and counts them.
      require_objects: whether the file must have annotations; image lists such as
        image_info_test-dev2017.json have none.

    Raises:
      FileNotFoundError: no such file.
      ValueError: the file is no COCO instances file; says what is wrong and where.
    """
    content, digest = _load_json(path)
    images = _read_images(content, path)
    categories = _read_categories(content, path)
    if require_objects and "annotations" not in content:
        raise ValueError(f"{path}: no 'annotations': expected a COCO instances file")
    objects, num_orphans = _read_objects(content, path, images, categories, on_orphan=on_orphan)
    return CocoAnnotations(os.fspath(path), digest, images, categories, objects, num_orphans)


def read_captions(path: str | os.PathLike[str]) -> dict[str, list[str]]:
    """Reads a COCO captions file: source_id to the image's captions."""
    content, _ = _load_json(path)
    captions: dict[str, list[str]] = {}
    for entry in content.get("annotations", ()):
        if "caption" not in entry:
            raise ValueError(f"{path}: annotation without 'caption': expected a captions file")
        captions.setdefault(_id_text(entry.get("image_id")), []).append(entry["caption"])
    return captions


def read_images(path: str | os.PathLike[str]) -> tuple[CocoImage, ...]:
    """Reads only the image list of any COCO file (instances, captions, image_info)."""
    content, _ = _load_json(path)
    return _read_images(content, path)


def write_annotations(annotations: CocoAnnotations, path: str | os.PathLike[str]) -> None:
    """Writes annotations as a COCO instances file, aside and then renamed."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.partial")
    partial.write_text(json.dumps(annotations.to_coco()))
    os.replace(partial, target)


def finite_box(entry: CocoObject) -> list[float] | None:
    """Returns the `[x, y, width, height]` of an annotation, or None unless it has four numbers."""
    try:
        values = [float(value) for value in entry.get("bbox") or ()]
    except (TypeError, ValueError):
        return None
    return values if len(values) == 4 and all(map(math.isfinite, values)) else None


def object_area(entry: CocoObject, *, default: float) -> float:
    """Returns the annotation's area in square pixels, or the default if it states none."""
    area = entry.get("area")
    if isinstance(area, (int, float)) and math.isfinite(area) and area > 0:
        return float(area)
    return default


def _load_json(path: str | os.PathLike[str]) -> tuple[dict[str, Any], str]:
    source = Path(path)
    if not source.is_file():
        raise FileNotFoundError(f"no annotation file {source} (looked from {os.getcwd()})")
    data = source.read_bytes()
    try:
        content = json.loads(data)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(
            f"{source} is no valid JSON: {error}. If it was cut short, copy or download it again"
        ) from error
    if isinstance(content, dict):
        return content, hashlib.sha256(data).hexdigest()
    raise ValueError(
        f"{source}: expected an object with images, annotations and categories, got a "
        f"{type(content).__name__}" + (" (of detections?)" if content else "")
    )


def _entries(content: Mapping[str, Any], key: str, path: object) -> list[dict[str, Any]]:
    entries = content.get(key)
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        found = f"{key!r} is a {type(entries).__name__}" if key in content else f"no {key!r}"
        raise ValueError(
            f"{path}: {found}: expected a COCO file with a list of objects under {key!r}, got the "
            f"keys {sorted(content)}"
        )
    return entries


def _read_images(content: Mapping[str, Any], path: object) -> tuple[CocoImage, ...]:
    images: dict[str, CocoImage] = {}
    for index, entry in enumerate(_entries(content, "images", path)):
        missing = [key for key in ("id", "file_name") if entry.get(key) in (None, "")]
        if missing:
            raise ValueError(f"{path}: images[{index}] has no {' and no '.join(missing)}: {entry}")
        source_id = _id_text(entry["id"])
        if source_id in images:
            raise ValueError(
                f"{path}: image id {source_id} occurs twice ({images[source_id].file_name} and "
                f"{entry['file_name']}): give every image an id of its own"
            )
        images[source_id] = CocoImage(
            source_id,
            int(source_id) if isinstance(entry["id"], float) else entry["id"],
            str(entry["file_name"]),
            _positive_int(entry.get("height")),
            _positive_int(entry.get("width")),
        )
    if not images:
        raise ValueError(f"{path}: the list of images is empty")
    return tuple(images.values())


def _read_categories(content: Mapping[str, Any], path: object) -> tuple[CocoCategory, ...]:
    entries: dict[int, dict[str, Any]] = {}
    for index, entry in enumerate(_entries(content, "categories", path)):
        text = _id_text(entry.get("id"))
        if not text.isdecimal():
            raise ValueError(
                f"{path}: categories[{index}] has id {entry.get('id')!r}: expected an integer of "
                "at least 0 (records store labels as integers)"
            )
        if int(text) in entries:
            raise ValueError(f"{path}: category id {text} occurs twice: merge the two or renumber")
        entries[int(text)] = entry
    if not entries:
        raise ValueError(f"{path}: the list of categories is empty: nothing to detect")
    return tuple(
        CocoCategory(
            class_id,
            category_id,
            str(entries[category_id].get("name", category_id)),
            str(entries[category_id].get("supercategory", "")),
        )
        for class_id, category_id in enumerate(sorted(entries))
    )


def _read_objects(
    content: Mapping[str, Any],
    path: object,
    images: Sequence[CocoImage],
    categories: Sequence[CocoCategory],
    *,
    on_orphan: str,
) -> tuple[dict[str, list[CocoObject]], int]:
    """Groups annotations by image and finds those that name no image or no category."""
    if on_orphan not in ("stop", "skip"):
        raise ValueError(f"on_orphan: expected 'stop' or 'skip', got {on_orphan!r}")
    source_ids = {image.source_id for image in images}
    category_ids = {str(category.category_id) for category in categories}
    objects: dict[str, list[CocoObject]] = {}
    orphans: list[str] = []
    entries = _entries(content, "annotations", path) if "annotations" in content else []
    for index, entry in enumerate(entries):
        source_id, category = _id_text(entry.get("image_id")), _id_text(entry.get("category_id"))
        if source_id in source_ids and category in category_ids:
            objects.setdefault(source_id, []).append(entry)
            continue
        key = "category_id" if source_id in source_ids else "image_id"
        orphans.append(f"annotation {entry.get('id', index)}: {key} {entry.get(key)!r}")
    if orphans and on_orphan == "stop":
        hint = " None fits: is this the file of another data set?" if not objects else ""
        raise ValueError(
            f"{path}: {len(orphans)} of {len(entries)} annotations name an image or category that "
            f"is not in the file ({'; '.join(orphans[:3])}; ...).{hint} Correct the file, or pass "
            "--on_orphan_annotation=skip to leave them out"
        )
    return objects, len(orphans)


def _id_text(value: object) -> str:
    """Returns an id as text; 7, 7.0 and "7" are one id."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value)


def _positive_int(value: object) -> int | None:
    if isinstance(value, (int, float)) and math.isfinite(value) and value > 0:
        return int(value)
    return None
