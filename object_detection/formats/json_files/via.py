"""VGG Image Annotator's annotations of versions 1 and 2: JSON, also as a project, or CSV.

Rectangles, circles, ellipses and polygons are read; points and lines are left out and counted. The
class is the region's attribute. Where a region has several, the one that is called so is taken.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from object_detection.formats.folder import DataFolder, head_of
from object_detection.formats.labelled import (
    LabelledImage,
    LabelledObject,
    LabelledSet,
    ellipse_points,
    polygon_object,
    turned,
    viewed_size,
)
from outside_data.files import MOST_JSON_BYTES, expecting, parse_json, read_json, read_text

_OF_CLASSES = ("class", "label", "name", "type", "category", "object")
_ONLY_CLASS = "object"


def files(folder: DataFolder) -> list[Path]:
    """Returns the annotation files of this format."""
    return [path for path in folder.files(".json", ".csv") if _is_via(head_of(path))]


def read(folder: DataFolder) -> LabelledSet:
    """Reads all files; splits are folders' or files' names."""
    result, without = LabelledSet(), []
    for path in files(folder):
        with expecting(path, "VGG Image Annotator's images, each with a list of 'regions'"):
            for entry in _entries(path):
                name, regions = str(entry["filename"]), entry["regions"]
                file = result.find_image(folder, name, near=path)
                regions = [*regions.values()] if isinstance(regions, Mapping) else regions
                where = [f"{path} image {name} region {number}" for number in range(len(regions))]
                found = [_object(r, w, result) for r, w in zip(regions, where)]
                objects = [item for item in found if item is not None]
                without += [w for w, o in zip(where, found) if o is not None and not o.name]
                result.splits[folder.split_of(path, file)].append(
                    LabelledImage(file, objects, viewed_size(file))
                )
    if without and not result.all_class_names()[1:]:  # not one region has an attribute
        result.note(f"file without classes: all its objects are called {_ONLY_CLASS}", path)
        for image in (image for images in result.splits.values() for image in images):
            image.objects[:] = [item._replace(name=_ONLY_CLASS) for item in image.objects]
    elif without:
        raise ValueError(f"{without[0]} has no attribute with its class, others have: give it one")
    return result


def _entries(path: Path) -> Iterable[Mapping[str, Any]]:
    """Returns the images of a file, each with its regions; those of a CSV are a line each."""
    if path.suffix.lower() == ".json":
        content = read_json(path, most=MOST_JSON_BYTES)
        return content.get("_via_img_metadata", content).values()
    images: dict[str, dict[str, Any]] = {}
    lines = read_text(path, most=MOST_JSON_BYTES).removeprefix("#").splitlines()
    for row in csv.DictReader(lines):
        name = row["filename"]
        image = images.setdefault(name, {"filename": name, "regions": []})
        columns = (row[f"region_{name}"] for name in ("shape_attributes", "attributes"))
        shape, attributes = (parse_json(column, path) for column in columns)
        if shape:  # a picture without regions has a line as well
            image["regions"].append({"shape_attributes": shape, "region_attributes": attributes})
    return images.values()


def _is_via(head: bytes) -> bool:
    if head.removeprefix(b"#").startswith(b"filename,") and b",region_shape_attributes" in head:
        return True
    marks = (b'"_via_img_metadata"', b'"shape_attributes"', b'"file_attributes"')
    return head.startswith(b"{") and any(mark in head for mark in marks)


def _object(region: dict[str, Any], where: str, result: LabelledSet) -> LabelledObject | None:
    """Returns an object, its name "" where none is given; None for a shape without an area."""
    shape, name = (
        region["shape_attributes"],
        _class_of(region.get("region_attributes") or {}, where),
    )
    kind = shape.get("name")
    try:
        if kind == "rect":
            box = tuple(float(shape[key]) for key in ("x", "y", "width", "height"))
            return LabelledObject(name, box)
        if kind == "polygon":
            points = np.array([shape["all_points_x"], shape["all_points_y"]], np.float64).T
        elif kind in ("circle", "ellipse"):
            radii = [shape["r"]] * 2 if kind == "circle" else [shape["rx"], shape["ry"]]
            points = turned(ellipse_points(*radii), math.degrees(shape.get("theta") or 0))
            points = points + [shape["cx"], shape["cy"]]
        else:
            result.note(f"{kind} left out: no shape with an area", where)
            return None
        return polygon_object(name, [points.ravel().tolist()])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{where}: a {kind} whose numbers are not there: {error}") from error


def _class_of(attributes: Mapping[str, Any], where: str) -> str:
    """Returns the value of the attribute that names the class; of check boxes the only one set."""
    values = {}
    for key, value in attributes.items():
        chosen = [k for k, on in value.items() if on] if isinstance(value, Mapping) else [value]
        if len(chosen) == 1 and str(chosen[0] or "").strip():
            values[key] = str(chosen[0]).strip()
    if len({*values.values()}) > 1:
        named = {key.casefold(): value for key, value in values.items()}
        first = next((named[key] for key in _OF_CLASSES if key in named), None)
        if first is None:
            raise ValueError(
                f"{where} has the attributes {', '.join(values)}: which one is the class? Call it "
                "'class' in the file"
            )
        return first
    return next(iter(values.values()), "")
