"""Create ML's JSON: a list of images with boxes about their middle, in pixels.

Roboflow and RectLabel write it as `image` and `annotations`, Apple's later tools as `imagefilename`
and `annotation`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from object_detection.formats.folder import DataFolder, head_of
from object_detection.formats.labelled import (
    LabelledImage,
    LabelledObject,
    LabelledSet,
    class_name,
    viewed_size,
)
from outside_data.files import MOST_JSON_BYTES, expecting, read_json

_OF_OTHERS = (b'"data"', b'"result"', b"labels", b'"annotation_id"')


def files(folder: DataFolder) -> list[Path]:
    """Returns the annotation files of this format."""
    return [path for path in folder.files(".json") if _is_createml(head_of(path))]


def read(folder: DataFolder) -> LabelledSet:
    """Reads all files; splits are folders' or files' names."""
    result = LabelledSet()
    for path in files(folder):
        with expecting(path, "a list of Create ML's images, each with a list of annotations"):
            for index, entry in enumerate(read_json(path, most=MOST_JSON_BYTES)):
                name = str(entry.get("image") or entry.get("imagefilename") or "")
                if not name:
                    raise ValueError(f"{path}: entry {index} names no 'image'")
                file = result.find_image(folder, name, near=path)
                listed = entry.get("annotations") or entry.get("annotation") or []
                objects = [_object(item, f"{path} image {name}") for item in listed]
                result.splits[folder.split_of(path, file)].append(
                    LabelledImage(file, objects, viewed_size(file))
                )
    return result


def _is_createml(head: bytes) -> bool:
    if not head.startswith(b"["):
        return False
    has_images = b'"image"' in head or b'"imagefilename"' in head
    has_lists = b'"annotations"' in head or b'"annotation"' in head
    is_of_others = any(mark in head for mark in _OF_OTHERS)
    return has_images and has_lists and (b'"coordinates"' in head or not is_of_others)


def _object(item: dict[str, Any], where: str) -> LabelledObject:
    try:
        x, y, width, height = (
            float(item["coordinates"][key]) for key in ("x", "y", "width", "height")
        )
    except (KeyError, TypeError, ValueError):
        raise ValueError(
            f"{where}: expected 'coordinates' with numbers x, y (of the middle), width, height; "
            f"got {item.get('coordinates')!r}"
        ) from None
    box = (x - width / 2, y - height / 2, width, height)
    return LabelledObject(class_name(item.get("label"), where), box)
