"""LabelMe's JSON (also of AnyLabeling and ISAT's exports to it), one file for each image.

A picture that only a file itself holds is written among what is made of the data. Rectangles,
polygons, circles and masks are read; points and lines are left out and counted. Shapes
of one label and one `group_id` are parts of one object.
"""

from __future__ import annotations

import base64
import math
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from object_detection.formats.folder import (
    NO_CLASSES,
    DataFolder,
    head_of,
    is_labelme,
    read_class_list,
)
from object_detection.formats.labelled import (
    LabelledImage,
    LabelledObject,
    LabelledSet,
    box_of_corners,
    class_name,
    ellipse_points,
    mask_object,
    polygon_object,
)
from outside_data.files import MOST_JSON_BYTES, expecting, read_json
from outside_data.picture_file import MAX_PIXELS, Picture, open_picture

_LEAST_POINTS = {"rectangle": 2, "polygon": 3, "circle": 2, "mask": 1, "rotation": 3}
_MOST_CHARACTERS = 1 << 30  # of a picture in base64


def files(folder: DataFolder) -> list[Path]:
    """Returns the annotation files of this format."""
    return [path for path in folder.files(".json") if is_labelme(head_of(path))]


def read(folder: DataFolder, *, pictures: Path) -> LabelledSet:
    """Reads all files; splits are folders' names. `labels.txt` gives the order of classes.

    Pictures that only the files hold are written to the folder `pictures`.
    """
    result = LabelledSet(class_names=read_class_list(folder, "labels.txt", "classes.txt"))
    for path in files(folder):
        with expecting(path, "LabelMe's annotations of an image, with a list of 'shapes'"):
            content = read_json(path, most=MOST_JSON_BYTES)
            names = (str(content.get("imagePath") or ""), path.stem)
            file = _written_picture(content, names, path, folder, pictures)
            if file is None:
                file = result.find_image(folder, *names, near=path)
            else:
                result.note("picture taken out of an annotation file", path)
            width, height = (content.get(f"image{side}") for side in ("Width", "Height"))
            size = (int(width), int(height)) if width and height else None
            objects = _objects(content["shapes"], path, size, result)
            result.splits[folder.split_of(path)].append(LabelledImage(file, objects, size))
    _gather(result, folder, pictures)
    return result


def _written_picture(
    content: dict[str, Any], names: Sequence[str], path: Path, folder: DataFolder, pictures: Path
) -> Path | None:
    """Writes the picture inside of a file; None if it holds none, or there is one in the folder."""
    if not content.get("imageData"):
        return None
    try:
        folder.find_image(*names, near=path)
        return None
    except FileNotFoundError:
        pass
    # The conversion has its own limit of pixels.
    data, picture = _inside(
        content["imageData"], f"{path}: its 'imageData'", max_pixels=sys.maxsize
    )
    target = pictures / path.relative_to(folder.root)
    target = target.with_suffix("." + picture.image_format.lower())
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(data)
    return target


def _gather(result: LabelledSet, folder: DataFolder, pictures: Path) -> None:
    """Copies the other pictures beside those that were written: a split's lie in one folder."""
    for images in result.splits.values():
        if not any(pictures in image.file.parents for image in images):
            continue
        for image in images:
            if pictures in image.file.parents or image.file in result.missing:
                continue
            target = pictures / image.file.relative_to(folder.root)
            target.parent.mkdir(parents=True, exist_ok=True)
            image.file = Path(shutil.copyfile(image.file, target))


def _objects(
    shapes: list[dict[str, Any]], path: Path, size: tuple[int, int] | None, result: LabelledSet
) -> list[LabelledObject]:
    objects: list[LabelledObject] = []
    groups: dict[tuple[str, str], list[list[float]]] = {}
    for index, shape in enumerate(shapes):
        kind = shape.get("shape_type") or "polygon"
        where = f"{path} shapes[{index}]"
        name, group = class_name(shape.get("label"), where), shape.get("group_id")
        if name in NO_CLASSES:
            result.note(f"object called {name} left out", path.name)
            continue
        if kind not in _LEAST_POINTS:
            result.note(f"{kind} left out: no shape with an area that is known", where)
            continue
        try:
            points = [(float(x), float(y)) for x, y in shape["points"]]
        except (KeyError, TypeError, ValueError):
            raise ValueError(f"{where}: expected 'points' of two numbers each") from None
        if len(points) < _LEAST_POINTS[kind]:
            what = f"{kind} of fewer than {_LEAST_POINTS[kind]} points left out"
            result.note(what, where)
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
                groups.setdefault((name, str(group)), []).append(polygon)
    return objects + [polygon_object(name, parts) for (name, _), parts in groups.items()]


def _pixels(shape: dict[str, Any], where: str) -> np.ndarray:
    """Returns a mask, which LabelMe stores as a PNG of its box."""
    _, picture = _inside(shape.get("mask") or "", f"{where}: its 'mask'")
    try:
        return np.asarray(picture.image) > 0
    except (OSError, ValueError) as error:
        raise ValueError(f"{where}: its 'mask' is no picture: {error}") from error


def _inside(text: Any, what: str, *, max_pixels: int = MAX_PIXELS) -> tuple[bytes, Picture]:
    """Returns a picture that JSON holds, as bytes and opened.

    Args:
      text: base64, perhaps with a browser's `data:image/png;base64,` before it.
      what: names it, for messages.
      max_pixels: see `open_picture`.

    Raises:
      ValueError: it is no picture, or too large.
    """
    try:
        if len(text) > _MOST_CHARACTERS:
            raise ValueError(f"{len(text):,} characters, more than {_MOST_CHARACTERS:,}")
        data = base64.b64decode(text.rsplit(",", 1)[-1])
        return data, open_picture(data, max_pixels=max_pixels, whole=False)
    except (AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"{what} is no picture: {error}") from error
