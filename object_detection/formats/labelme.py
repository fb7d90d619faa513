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

from object_detection.formats.folder import DataFolder, head_of, read_class_list
from object_detection.formats.labelled import (
    LabelledImage,
    LabelledObject,
    LabelledSet,
    box_of_corners,
    ellipse_points,
    mask_object,
    polygon_object,
)
from outside_data.files import MOST_JSON_BYTES, read_json
from outside_data.picture_file import open_picture

_LEAST_POINTS = {"rectangle": 2, "polygon": 3, "circle": 2, "mask": 1}


def files(folder: DataFolder) -> list[Path]:
    """Returns the annotation files of this format."""
    heads = ((path, head_of(path)) for path in folder.files(".json"))
    return [path for path, head in heads if head.startswith(b"{") and b'"shapes"' in head]


def read(folder: DataFolder) -> LabelledSet:
    """Reads all files; splits are folders' names. `labels.txt` gives the order of classes."""
    result = LabelledSet(class_names=read_class_list(folder, "labels.txt", "classes.txt"))
    for path in files(folder):
        content = read_json(path, most=MOST_JSON_BYTES)
        file = folder.find_image(str(content.get("imagePath") or ""), path.stem, near=path)
        width, height = (content.get(f"image{side}") or 0 for side in ("Width", "Height"))
        size = (int(width), int(height)) if width and height else None
        objects = _objects(content["shapes"], path, size, result)
        result.splits[folder.split_of(path)].append(LabelledImage(file, objects, size))
    return result


def _objects(
    shapes: list[dict[str, Any]], path: Path, size: tuple[int, int] | None, result: LabelledSet
) -> list[LabelledObject]:
    objects: list[LabelledObject] = []
    groups: dict[tuple[str, Any], list[list[float]]] = {}
    for index, shape in enumerate(shapes):
        kind = shape.get("shape_type") or "polygon"
        name, group = str(shape.get("label", "")).strip(), shape.get("group_id")
        where = f"{path} shapes[{index}]"
        if kind not in _LEAST_POINTS:
            result.counts[f"{kind} left out: it has no area"] += 1
            continue
        try:
            points = [(float(x), float(y)) for x, y in shape["points"]]
        except (KeyError, TypeError, ValueError):
            raise ValueError(f"{where}: expected 'points' of two numbers each") from None
        if len(points) < _LEAST_POINTS[kind]:
            what = f"{kind} of fewer than {_LEAST_POINTS[kind]} points left out"
            result.counts[what] += 1
        elif kind == "mask":
            if size is None:
                raise ValueError(
                    f"{where}: a mask, but the file states no imageHeight and imageWidth"
                )
            objects.append(mask_object(name, _pixels(shape, where), points[0], size))
        elif kind == "rectangle":
            xs, ys = zip(*points)
            box = box_of_corners(min(xs), min(ys), max(xs), max(ys))
            objects.append(LabelledObject(name, box))
        else:
            if kind == "circle":
                radius = math.dist(*points[:2])
                points = ellipse_points(radius, radius) + points[0]
            polygon = np.ravel(points).tolist()
            if group is None:
                objects.append(polygon_object(name, [polygon]))
            else:
                groups.setdefault((name, group), []).append(polygon)
    return objects + [polygon_object(name, parts) for (name, _), parts in groups.items()]


def _pixels(shape: dict[str, Any], where: str) -> np.ndarray:
    """Returns a mask, which LabelMe stores as a PNG of its box."""
    try:
        picture = open_picture(base64.b64decode(shape.get("mask") or ""))
        return np.asarray(picture.image) > 0
    except (OSError, ValueError) as error:
        raise ValueError(f"{where}: its 'mask' is no picture: {error}") from error
