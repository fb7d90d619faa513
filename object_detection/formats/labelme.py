"""LabelMe's JSON (also of AnyLabeling and ISAT's exports to it), one file for each image.

Rectangles, polygons, circles and masks are read; points and lines are left out and counted. Shapes
of one label and one `group_id` are parts of one object.
"""

from __future__ import annotations

import base64
import math
from pathlib import Path
from typing import Any

import numpy as np

from object_detection.formats.cvat import runs_of_mask
from object_detection.formats.folder import DataFolder, read_class_list
from object_detection.formats.labelled import (
    LabelledImage,
    LabelledObject,
    LabelledSet,
    box_of_corners,
    polygon_object,
)
from outside_data.files import MOST_JSON_BYTES, open_file, read_json
from outside_data.picture_file import open_picture

_HEAD_BYTES = 65536
_CIRCLE_POINTS = 36
_ROLES = ("rectangle", "polygon", "circle", "mask")


def files(folder: DataFolder) -> list[Path]:
    """Returns the annotation files of this format."""
    return [path for path in folder.files(".json") if _is_labelme(path)]


def read(folder: DataFolder) -> LabelledSet:
    """Reads all files; splits are folders' names. `labels.txt` gives the order of classes.

    Raises:
      ValueError, FileNotFoundError: names the file and what is wrong in it.
    """
    result = LabelledSet(class_names=read_class_list(folder, "labels.txt", "classes.txt"))
    for path in files(folder):
        content = read_json(path, most=MOST_JSON_BYTES)
        file = folder.find_image(str(content.get("imagePath") or ""), path.stem, near=path)
        width, height = (content.get(f"image{side}") or 0 for side in ("Width", "Height"))
        size = (int(width), int(height)) if width and height else None
        objects = _objects(content["shapes"], path, size, result)
        result.splits[folder.split_of(path)].append(LabelledImage(file, objects, size))
    return result


def _is_labelme(path: Path) -> bool:
    with open_file(path, most=None) as file:
        head = file.read(_HEAD_BYTES)
    return head.lstrip(b"\xef\xbb\xbf \r\n\t").startswith(b"{") and b'"shapes"' in head


def _objects(
    shapes: list[dict[str, Any]], path: Path, size: tuple[int, int] | None, result: LabelledSet
) -> list[LabelledObject]:
    objects: list[LabelledObject] = []
    groups: dict[tuple[str, Any], list[list[float]]] = {}
    for index, shape in enumerate(shapes):
        kind = shape.get("shape_type") or "polygon"
        name, group = str(shape.get("label", "")).strip(), shape.get("group_id")
        where = f"{path} shapes[{index}]"
        if kind not in _ROLES:
            result.counts[f"{kind} left out: it has no area"] += 1
            continue
        try:
            points = [(float(x), float(y)) for x, y in shape["points"]]
        except (KeyError, TypeError, ValueError):
            raise ValueError(f"{where}: expected 'points' of two numbers each") from None
        if kind == "mask":
            objects.append(_mask(name, shape, points, where, size))
        elif kind == "rectangle":
            xs, ys = zip(*points)
            box = box_of_corners(min(xs), min(ys), max(xs), max(ys))
            objects.append(LabelledObject(name, box))
        elif kind == "polygon" and len(points) < 3:
            result.counts["polygon of fewer than 3 points left out"] += 1
        else:
            polygon = (
                _circle(*points) if kind == "circle" else [v for point in points for v in point]
            )
            if group is None:
                objects.append(polygon_object(name, [polygon]))
            else:
                groups.setdefault((name, group), []).append(polygon)
    return objects + [polygon_object(name, parts) for (name, _), parts in groups.items()]


def _circle(middle: tuple[float, float], edge: tuple[float, float], *_: Any) -> list[float]:
    radius = math.dist(middle, edge)
    turns = np.linspace(0, 2 * math.pi, _CIRCLE_POINTS, endpoint=False)
    points = np.stack([np.cos(turns), np.sin(turns)], axis=1) * radius + middle
    return points.ravel().tolist()


def _mask(
    name: str,
    shape: dict[str, Any],
    points: list[tuple[float, float]],
    where: str,
    size: tuple[int, int] | None,
) -> LabelledObject:
    """Returns a mask, which LabelMe stores as a PNG of its box."""
    (left, top), (right, bottom) = ((int(x), int(y)) for x, y in points[:2])
    try:
        picture = open_picture(base64.b64decode(shape.get("mask") or ""))
        inside = (np.asarray(picture.image) > 0).astype(np.uint8)
    except (OSError, ValueError) as error:
        raise ValueError(f"{where}: its 'mask' is no picture: {error}") from error
    if size is None:
        raise ValueError(f"{where}: a mask, but the file states no imageHeight and imageWidth")
    pixels = np.zeros((size[1], size[0]), np.uint8)
    place = pixels[top : bottom + 1, left : right + 1]
    place[: inside.shape[0], : inside.shape[1]] = inside[: place.shape[0], : place.shape[1]]
    box = (left, top, right + 1 - left, bottom + 1 - top)
    return LabelledObject(name, box, runs_of_mask(pixels))
