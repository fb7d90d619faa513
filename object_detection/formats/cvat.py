"""CVAT's own XML, for images and for video (whose frames lie there as pictures).

Boxes, rotated boxes, ellipses, polygons and masks are read; lines, points, cuboids, skeletons and
tags of a whole image are left out and counted.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from pathlib import Path
from xml.etree.ElementTree import Element

import numpy as np

from object_detection.formats.folder import DataFolder
from object_detection.formats.labelled import (
    LabelledImage,
    LabelledObject,
    LabelledSet,
    box_of_corners,
    polygon_object,
)
from object_detection.formats.plain_xml import number, parse_xml, root_tag

_OTHER_SHAPES = ("polyline", "points", "cuboid", "skeleton", "tag")
_SHAPES = ("box", "polygon", "ellipse", "mask", *_OTHER_SHAPES)
_ELLIPSE_POINTS = 36


def files(folder: DataFolder) -> list[Path]:
    """Returns the annotation files of this format."""
    return [path for path in folder.files(".xml") if root_tag(path) == "annotations"]


def read(folder: DataFolder) -> LabelledSet:
    """Reads all files; splits are the images' subsets in CVAT, else folders' or files' names.

    Raises:
      ValueError, FileNotFoundError: names the file and what is wrong in it.
    """
    result = LabelledSet()
    for path in files(folder):
        root = parse_xml(path)
        labels = [
            node.findtext("name", "").strip()
            for node in root.iter("label")
            if node.find("parent") is None  # else a part of a skeleton
        ]
        result.class_names += [name for name in labels if name and name not in result.class_names]
        for node in root.iterfind("image"):
            file = folder.find_image(node.get("name", ""), near=path)
            size = (int(number(node, "@width", path)), int(number(node, "@height", path)))
            shapes = (_shape(shape, size, path, result) for shape in node)
            split = node.get("subset") or folder.split_of(path)
            if split == "all":
                split = folder.split_of(file)
            objects = [shape for shape in shapes if shape is not None]
            result.splits[split].append(LabelledImage(file, objects, size))
        if root.find("track") is not None:
            _read_tracks(root, path, folder, result)
    return result


def _read_tracks(root: Element, path: Path, folder: DataFolder, result: LabelledSet) -> None:
    """Adds the frames of a video that lie in the folder as pictures with a frame number."""
    frames = {int(found[-1]): p for p in folder.images if (found := re.findall(r"\d+", p.stem))}
    size = tuple(
        int(root.findtext(f"meta/task/original_size/{side}", "0")) for side in ("width", "height")
    )
    objects: dict[int, list[LabelledObject]] = {frame: [] for frame in frames}
    for track in root.iterfind("track"):
        for shape in track:
            frame = int(number(shape, "@frame", path))
            if shape.get("outside") == "1":
                continue
            if frame not in frames:
                result.counts["shape of a video frame that is no picture in the folder"] += 1
                continue
            shape.set("label", track.get("label", ""))
            read_shape = _shape(shape, size, path, result)
            if read_shape is not None:
                objects[frame].append(read_shape)
    if not any(objects.values()):
        raise ValueError(
            f"{path}: a video's annotations, but no picture in {folder.root} has the number of one "
            "of its frames: export with images, or extract the frames as frame_000000.jpg, ..."
        )
    split = folder.split_of(path)
    result.splits[split] += [
        LabelledImage(frames[frame], objects[frame], size if all(size) else None)
        for frame in sorted(frames)
    ]


def _shape(
    node: Element, size: tuple[int, ...], path: Path, result: LabelledSet
) -> LabelledObject | None:
    name = node.get("label", "")
    if node.tag == "polygon":
        polygon = list(_points(node, path))
        if len(polygon) >= 6:
            return polygon_object(name, [polygon])
        result.counts["polygon of fewer than 3 points left out"] += 1
    elif node.tag == "box":
        return _box(node, path)
    elif node.tag == "ellipse":
        x, y, rx, ry = (number(node, f"@{key}", path) for key in ("cx", "cy", "rx", "ry"))
        turns = np.linspace(0, 2 * math.pi, _ELLIPSE_POINTS, endpoint=False)
        points = np.stack([x + rx * np.cos(turns), y + ry * np.sin(turns)], axis=1)
        return polygon_object(name, [_rotated(node, points).ravel().tolist()])
    elif node.tag == "mask":
        return _mask(node, size, path)
    elif node.tag in _SHAPES:
        result.counts[f"{node.tag} left out: it has no area"] += 1
    return None


def _box(node: Element, path: Path) -> LabelledObject:
    x1, y1, x2, y2 = (number(node, f"@{key}", path) for key in ("xtl", "ytl", "xbr", "ybr"))
    if not float(node.get("rotation", "0")):
        return LabelledObject(node.get("label", ""), box_of_corners(x1, y1, x2, y2))
    corners = np.array([(x1, y1), (x2, y1), (x2, y2), (x1, y2)])
    return polygon_object(node.get("label", ""), [_rotated(node, corners).ravel().tolist()])


def _rotated(node: Element, points: np.ndarray) -> np.ndarray:
    """Turns [n, 2] points (x, y) about the middle of their bounds by the node's degrees."""
    angle = math.radians(float(node.get("rotation", "0")))
    middle = (points.min(axis=0) + points.max(axis=0)) / 2
    turn = np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
    return (points - middle) @ turn + middle


def _mask(node: Element, size: tuple[int, ...], path: Path) -> LabelledObject:
    """Returns a mask: CVAT's runs go along rows of the mask's box, COCO's down the whole image."""
    left, top, width, height = (
        int(number(node, f"@{key}", path)) for key in ("left", "top", "width", "height")
    )
    runs = [int(run) for run in node.get("rle", "").split(",") if run.strip()]
    if sum(runs) != width * height or left < 0 or top < 0:
        raise ValueError(
            f"{path}: a mask of {node.get('label')!r} has runs of {sum(runs)} pixels, but is "
            f"{width} x {height}"
        )
    pixels = np.zeros((size[1], size[0]), np.uint8)
    inside = np.repeat(np.arange(len(runs)) % 2, runs).astype(np.uint8).reshape(height, width)
    pixels[top : top + height, left : left + width] = inside
    return LabelledObject(node.get("label", ""), (left, top, width, height), runs_of_mask(pixels))


def runs_of_mask(pixels: np.ndarray) -> dict:
    """Returns COCO's uncompressed RLE of a [height, width] mask of 0 and 1."""
    column = np.concatenate([[0], pixels.ravel(order="F"), [0]])
    edges = np.flatnonzero(np.diff(column))
    ends = np.concatenate([[0], edges, [pixels.size]])
    counts = np.diff(ends).tolist()
    return {"size": list(pixels.shape), "counts": counts if counts[-1] else counts[:-1]}


def _points(node: Element, path: Path) -> Iterator[float]:
    for point in node.get("points", "").split(";"):
        try:
            x, y = point.split(",")
            yield from (float(x), float(y))
        except ValueError:
            raise ValueError(f"{path}: <{node.tag}> has the point {point!r}: not x,y") from None
