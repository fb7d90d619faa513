"""CVAT's own XML, for images and for video (whose frames lie there as pictures).

Boxes, rotated boxes, ellipses, polygons and masks are read; lines, points, cuboids, skeletons and
tags of a whole image are left out and counted.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from pathlib import Path
from xml.etree.ElementTree import Element

import numpy as np

from object_detection.formats.folder import DataFolder
from object_detection.formats.labelled import (
    LabelledImage,
    LabelledObject,
    LabelledSet,
    box_of_corners,
    ellipse_points,
    mask_object,
    polygon_object,
    turned,
)
from object_detection.formats.plain_xml import number, parse_xml, root_tag
from outside_data.files import expecting

_OTHER_SHAPES = ("polyline", "points", "cuboid", "skeleton", "tag")
_SHAPES = ("box", "polygon", "ellipse", "mask", *_OTHER_SHAPES)


def files(folder: DataFolder) -> list[Path]:
    """Returns the annotation files of this format."""
    return [path for path in folder.files(".xml") if root_tag(path) == "annotations"]


def read(folder: DataFolder) -> LabelledSet:
    """Reads all files; splits are the images' subsets in CVAT, else folders' or files' names."""
    result = LabelledSet()
    for path in files(folder):
        with expecting(path, "CVAT's annotations of images or a video"):
            root = parse_xml(path)
            labels = [
                node.findtext("name", "").strip()
                for node in root.iter("label")
                if node.find("parent") is None  # else a part of a skeleton
            ]
            result.class_names += [
                name for name in labels if name and name not in result.class_names
            ]
            for node in root.iterfind("image"):
                file = result.find_image(folder, node.get("name", ""), near=path)
                size = (int(number(node, "@width", path)), int(number(node, "@height", path)))
                shapes = (_shape(shape, size, path, result) for shape in node)
                # A subset's name becomes a file's.
                subset = re.sub(r"[^\w-]+", "_", node.get("subset", ""))
                objects = [shape for shape in shapes if shape is not None]
                split = subset or folder.split_of(path, file)
                result.splits[split].append(LabelledImage(file, objects, size))
            if root.find("track") is not None:
                _read_tracks(root, path, folder, result)
    return result


def _read_tracks(root: Element, path: Path, folder: DataFolder, result: LabelledSet) -> None:
    """Adds the frames of a video that lie beside it, or in the folder, as numbered pictures."""
    frames: dict[int, Path] = {}
    for picture in [p for p in folder.images if path.parent in p.parents] or folder.images:
        if found := re.findall(r"\d+", picture.stem):
            other = frames.setdefault(int(found[-1]), picture)
            if other != picture:
                raise ValueError(
                    f"{path}: frame {found[-1]} may be {other} or {picture}: put the frames of "
                    "each video into a folder with its annotations"
                )
    seen = {
        int(number(shape, "@frame", path))
        for shape in root.iterfind("track/*")
        if shape.get("outside") != "1"
    }
    # Programs that cut videos number their pictures from 1, CVAT its frames from 0.
    if 0 in seen and max(seen) < len(frames) and sorted(frames) == [*range(1, len(frames) + 1)]:
        frames = {frame - 1: picture for frame, picture in frames.items()}
        result.note("video whose pictures are numbered from 1: picture 1 is frame 0", path)
    size = tuple(
        int(root.findtext(f"meta/task/original_size/{side}", "0")) for side in ("width", "height")
    )
    objects: dict[int, list[LabelledObject]] = {frame: [] for frame in frames}
    for track in root.iterfind("track"):
        for frame, shape in _shapes_of_track(track, frames, path, result):
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


def _shapes_of_track(
    track: Element, frames: Collection[int], path: Path, result: LabelledSet
) -> Iterator[tuple[int, Element]]:
    """Yields the frames of a track with their shapes.

    CVAT writes every frame in which the object is seen. Other tools leave out those between key
    frames: boxes are interpolated in those of `frames`, and stay as they are behind the last one.
    """
    shapes = sorted(((int(number(s, "@frame", path)), s) for s in track), key=lambda pair: pair[0])
    lacks_frames = any(
        after > frame + 1 and shape.get("outside") != "1"
        for (frame, shape), (after, _) in zip(shapes, shapes[1:])
    )
    for index, (frame, shape) in enumerate(shapes):
        if shape.get("outside") == "1":
            continue
        yield frame, shape
        if not lacks_frames or shape.tag != "box":
            continue
        is_last = index + 1 == len(shapes)
        following, after = (max(frames) + 1, shape) if is_last else shapes[index + 1]
        target = shape if after.get("outside") == "1" else after
        for between in (f for f in range(frame + 1, following) if f in frames):
            result.counts["box between key frames interpolated"] += 1
            yield between, _between(shape, target, (between - frame) / (following - frame), path)


def _between(start: Element, end: Element, share: float, path: Path) -> Element:
    """Returns a box of which a share of the way to another one is gone."""
    sides = ("xtl", "ytl", "xbr", "ybr")
    made = Element(start.tag, start.attrib)
    for side in sides:
        low, high = (number(node, f"@{side}", path) for node in (start, end))
        made.set(side, str(low + share * (high - low)))
    return made


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
        return _rotated(node, ellipse_points(rx, ry) + (x, y))
    elif node.tag == "mask":
        return _mask(node, size, path)
    elif node.tag in _SHAPES:
        result.counts[f"{node.tag} left out: it has no area"] += 1
    return None


def _box(node: Element, path: Path) -> LabelledObject:
    x1, y1, x2, y2 = (number(node, f"@{key}", path) for key in ("xtl", "ytl", "xbr", "ybr"))
    if not float(node.get("rotation", "0")):
        return LabelledObject(node.get("label", ""), box_of_corners(x1, y1, x2, y2))
    return _rotated(node, np.array([(x1, y1), (x2, y1), (x2, y2), (x1, y2)]))


def _rotated(node: Element, points: np.ndarray) -> LabelledObject:
    """Returns a polygon, turned about the middle of its bounds by the node's degrees."""
    middle = (points.min(axis=0) + points.max(axis=0)) / 2
    points = turned(points - middle, node.get("rotation")) + middle
    return polygon_object(node.get("label", ""), [points.ravel().tolist()])


def _mask(node: Element, size: tuple[int, ...], path: Path) -> LabelledObject:
    """Returns a mask, whose runs go along the rows of its box."""
    left, top, width, height = (
        int(number(node, f"@{key}", path)) for key in ("left", "top", "width", "height")
    )
    runs = [int(run) for run in node.get("rle", "").split(",") if run.strip()]
    if sum(runs) != width * height or left < 0 or top < 0:
        raise ValueError(
            f"{path}: a mask of {node.get('label')!r} has runs of {sum(runs)} pixels, but is "
            f"{width} x {height}"
        )
    inside = np.repeat(np.arange(len(runs)) % 2, runs).reshape(height, width)
    return mask_object(node.get("label", ""), inside, (left, top), size)


def _points(node: Element, path: Path) -> Iterator[float]:
    for point in filter(None, node.get("points", "").split(";")):
        try:
            x, y = point.split(",")
            yield from (float(x), float(y))
        except ValueError:
            raise ValueError(f"{path}: <{node.tag}> has the point {point!r}: not x,y") from None
