"""Supervisely's JSON, one file for each image: `DATASET/ann/NAME.json` beside `DATASET/img/NAME`.

Rectangles, polygons with their holes and bitmaps are read; lines, points and graphs are left out
and counted. Corners of rectangles are pixels that belong to them. `meta.json` orders the classes.
"""

from __future__ import annotations

import base64
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as mask_api

from object_detection.formats.folder import DataFolder, head_of
from object_detection.formats.labelled import (
    LabelledImage,
    LabelledObject,
    LabelledSet,
    box_of_corners,
    class_name,
    mask_object,
    polygon_object,
)
from outside_data.files import expecting, read_json
from outside_data.picture_file import open_picture

_MOST_BITMAP_BYTES = 64 << 20


def files(folder: DataFolder) -> list[Path]:
    """Returns the annotation files of this format."""
    return [path for path in folder.files(".json") if _is_supervisely(head_of(path))]


def read(folder: DataFolder) -> LabelledSet:
    """Reads all files; splits are folders' names."""
    result = LabelledSet()
    for path in folder.files(".json"):
        if path.name == "meta.json":
            with expecting(path, "Supervisely's list of classes, each with a title"):
                titles = [entry["title"] for entry in read_json(path)["classes"]]
                result.class_names += [class_name(title, path) for title in titles]
    for path in files(folder):
        with expecting(path, "Supervisely's annotations of an image, with its size and objects"):
            content = read_json(path)
            size = (int(content["size"]["width"]), int(content["size"]["height"]))
            file = result.find_image(folder, path.stem, near=path)
            objects = [
                item
                for number, entry in enumerate(content["objects"])
                if (item := _object(entry, f"{path} object {number}", size, result)) is not None
            ]
            result.splits[folder.split_of(path)].append(LabelledImage(file, objects, size))
    return result


def _is_supervisely(head: bytes) -> bool:
    is_empty = b'"size"' in head and b'"tags"' in head
    return head.startswith(b"{") and b'"objects"' in head and (b'"classTitle"' in head or is_empty)


def _object(
    entry: dict[str, Any], where: str, size: tuple[int, int], result: LabelledSet
) -> LabelledObject | None:
    kind, name = entry.get("geometryType"), class_name(entry.get("classTitle"), where)
    try:
        if kind == "bitmap":
            inside = _bitmap(entry["bitmap"]["data"])
            return mask_object(name, inside, entry["bitmap"]["origin"], size)
        if kind not in ("rectangle", "polygon"):
            result.note(f"{kind} left out: no shape with an area that is known", where)
            return None
        outline = np.array(entry["points"]["exterior"], np.float64).reshape(-1, 2)
        if kind == "rectangle":
            low, high = outline.min(axis=0), outline.max(axis=0) + 1
            return LabelledObject(name, box_of_corners(*low.tolist(), *high.tolist()))
        if len(outline) < 3:
            result.note("polygon of fewer than 3 points left out", where)
            return None
        holes = [np.ravel(hole).tolist() for hole in entry["points"].get("interior") or []]
        whole = polygon_object(name, [outline.ravel().tolist()])
        return _with_holes(whole, holes, size) if holes else whole
    except (KeyError, TypeError, ValueError, zlib.error) as error:
        raise ValueError(f"{where}: a {kind} that cannot be read: {error}") from error


def _with_holes(
    whole: LabelledObject, holes: list[list[float]], size: tuple[int, int]
) -> LabelledObject:
    width, height = size
    outline, inner = (
        mask_api.decode(mask_api.frPyObjects(polygons, height, width)).any(axis=2)
        for polygons in (whole.segmentation, holes)
    )
    left, top = (max(int(side), 0) for side in whole.box[:2])
    pixels = (outline & ~inner)[top:, left:]
    rows, columns = np.flatnonzero(pixels.any(axis=1)), np.flatnonzero(pixels.any(axis=0))
    inside = pixels[: rows.max(initial=-1) + 1, : columns.max(initial=-1) + 1]
    return mask_object(whole.name, inside, (left, top), size)


def _bitmap(data: str) -> np.ndarray:
    """Returns [height, width], true where a packed PNG is not transparent, or else not black."""
    unpacker = zlib.decompressobj()
    png = unpacker.decompress(base64.b64decode(data), _MOST_BITMAP_BYTES)
    if unpacker.unconsumed_tail:
        raise ValueError(f"a bitmap of more than {_MOST_BITMAP_BYTES:,} bytes")
    image = open_picture(png).image
    is_transparent = "A" in image.getbands() or "transparency" in image.info
    channel = image.convert("RGBA").getchannel("A") if is_transparent else image.convert("L")
    return np.asarray(channel) > 0
