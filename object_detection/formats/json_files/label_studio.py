"""Label Studio's JSON and JSON-MIN exports: boxes, ellipses and polygons in percent of the image.

A file is a list of tasks, one task, or, as synchronised storage has it, one annotation with its
task. Of several annotations of a task the last that was not cancelled counts. Images are found by
the path behind `/data/local-files/?d=`, by a URL's path, or by the name before the upload.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np

from object_detection.formats.folder import DataFolder, head_of
from object_detection.formats.labelled import (
    LabelledImage,
    LabelledObject,
    LabelledSet,
    class_name,
    ellipse_points,
    image_size,
    polygon_object,
    turned,
)
from outside_data.files import MOST_JSON_BYTES, expecting, read_json

_NAMES = ("rectanglelabels", "polygonlabels", "ellipselabels", "labels")
_LABELS = re.compile(rb'"(?:\w+labels"|labels"\s*:\s*\[\s*")')
_IMAGE_SUFFIX_OR_PATH = ("/", ".")


def files(folder: DataFolder) -> list[Path]:
    """Returns the annotation files of this format; JSON lists of detections are none."""
    # Those of storage have no suffix.
    return [path for path in folder.files(".json", "") if _is_label_studio(path)]


def read(folder: DataFolder) -> LabelledSet:
    """Reads all files; splits are folders' or files' names."""
    result = LabelledSet()
    for path in files(folder):
        with expecting(path, "a list of Label Studio's tasks, or one of them"):
            content = read_json(path, most=MOST_JSON_BYTES)
            for index, task in enumerate([content] if isinstance(content, dict) else content):
                if "result" in task and isinstance(task.get("task"), dict):
                    task = {**task["task"], "annotations": [task]}
                _read_task(task, f"{path} task {task.get('id', index)}", path, folder, result)
    return result


def _read_task(
    task: dict[str, Any], where: str, path: Path, folder: DataFolder, result: LabelledSet
) -> None:
    shapes = _shapes(task, result)
    if shapes is None:
        result.note("task without an annotation left out", task.get("id"))
        return
    file = result.find_image(folder, _image_name(task, where), near=path)
    size = next((s for s in map(_stated_size, shapes) if s), None) or image_size(file)
    if min(size) <= 0:
        result.note("objects of an image without a size left out", file.name)
        shapes = []
    objects = [_object(shape, where, size, result) for shape in shapes]
    found = [item for item in objects if item is not None]
    result.splits[folder.split_of(path, file)].append(LabelledImage(file, found, size))


def _is_label_studio(path: Path) -> bool:
    head = head_of(path)
    # Of a long file only the beginning is seen: a task's data may come behind its shapes.
    has_lists = b'"annotations"' in head or b'"completions"' in head
    if head.startswith(b"["):
        is_task = has_lists and (b'"data"' in head or b'"result"' in head)
        return is_task or b'"annotation_id"' in head or _LABELS.search(head) is not None
    has_shapes = b'"result"' in head or has_lists
    marks = (b'"data"', b'"task"', b'"from_name"')
    return head.startswith(b"{") and has_shapes and any(mark in head for mark in marks)


def _image_name(task: dict[str, Any], where: str) -> str:
    values = task.get("data") if isinstance(task.get("data"), dict) else task
    first = [values.get(key) for key in ("image", "img", "image_url")]
    texts = [v for v in (*first, *values.values()) if isinstance(v, str)]
    for text in texts:
        if all(mark in text for mark in _IMAGE_SUFFIX_OR_PATH) or "?d=" in text:
            return text
    if first[0]:
        return str(first[0])
    raise ValueError(f"{where}: its data name no image (keys {sorted(values)})")


def _shapes(task: dict[str, Any], result: LabelledSet) -> list[dict[str, Any]] | None:
    """Returns the shapes of a task, [] for an image without objects, None if it is not annotated.

    A shape has `value`, and the size of the image; JSON-MIN has them in one.
    """
    if isinstance(task.get("data"), dict):
        given = task.get("annotations") or task.get("completions") or []
        kept = [a for a in given if not a.get("was_cancelled")]
        if len(kept) > 1:
            result.note("task with several annotations: the last is taken", task.get("id"))
        if not kept:
            return None
        return [r for r in kept[-1].get("result") or [] if isinstance(r.get("value"), dict)]
    lists = [value for value in task.values() if isinstance(value, list)]
    shapes = [entry for entries in lists for entry in entries if isinstance(entry, dict)]
    return [{"value": entry, **entry} for entry in shapes]


def _stated_size(shape: dict[str, Any]) -> tuple[int, int] | None:
    size = (shape.get("original_width"), shape.get("original_height"))
    return size if all(isinstance(side, int) and side > 0 for side in size) else None


def _object(
    shape: dict[str, Any], where: str, size: tuple[int, int], result: LabelledSet
) -> LabelledObject | None:
    value = shape["value"]
    names = next((value[key] for key in _NAMES if value.get(key)), None)
    if not names:
        kind = shape.get("type") or ", ".join(sorted(value))
        result.counts[f"{kind} left out: neither box, ellipse nor polygon with a label"] += 1
        return None
    names = [names] if isinstance(names, str) else names
    if len(names) > 1:
        result.note("object with several labels: the first is taken", where)
    if shape.get("image_rotation"):
        result.note("object drawn on a turned image: see whether it lies right", where)
    name, (width, height) = class_name(names[0], where), size
    scale = np.array([width, height]) / 100.0
    try:
        if "points" in value:
            points = np.array(value["points"], np.float64).reshape(-1, 2) * scale
            return polygon_object(name, [points.ravel().tolist()])
        if "radiusX" in value:
            points = ellipse_points(value["radiusX"], value["radiusY"]) * scale
            middle = np.array([value["x"], value["y"]], np.float64) * scale
            points = turned(points, value.get("rotation")) + middle
            return polygon_object(name, [points.ravel().tolist()])
        low = np.array([value["x"], value["y"]], np.float64) * scale
        sides = np.array([value["width"], value["height"]], np.float64) * scale
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{where}: a shape of {name!r} lacks {error}") from error
    if value.get("rotation"):  # about the upper left corner
        corners = np.array([(0, 0), (1, 0), (1, 1), (0, 1)]) * sides
        return polygon_object(name, [(turned(corners, value["rotation"]) + low).ravel().tolist()])
    return LabelledObject(name, tuple(round(float(v), 3) for v in (*low, *sides)))
