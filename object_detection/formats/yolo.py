"""YOLO text labels: a line `class x y width height` for each object, as shares of the image.

Also polygons (`class x1 y1 x2 y2 ...`) and key points, whose box is taken. Classes are numbered
from 0; `data.yaml`, `classes.txt`, `obj.names` name them. A picture without a label file is one
without objects. Labels are drawn on the picture as viewers show it, so its size is the turned one
where EXIF turns it.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from object_detection.formats.folder import DataFolder, read_class_list
from object_detection.formats.labelled import (
    LabelledImage,
    LabelledObject,
    LabelledSet,
    picture_of,
    polygon_object,
)
from outside_data.files import expecting, read_text, read_yaml

_MOST_CLASSES = 100_000
_SPLIT_KEYS = ("train", "val", "valid", "test")


def files(folder: DataFolder) -> list[Path]:
    """Returns the files that tell the format: the label files, else the list of classes."""
    labels = [label for label in map(_label_of, folder.images) if label.is_file()]
    return labels or [path for path in [_data_yaml(folder)] if path]


def read(folder: DataFolder) -> LabelledSet:
    """Reads a folder; splits are those of `data.yaml`, of lists of images, else folders' names."""
    described = _data_yaml(folder)
    description = read_yaml(described) if described else {}
    names = description.get("names") or read_class_list(folder)
    with expecting(described or folder.root, "names: a list of classes, or number: name"):
        if isinstance(names, dict):
            by_number = {int(number): str(name) for number, name in names.items()}
            last = min(max(by_number), _MOST_CLASSES)
            names = [by_number.get(number, f"class {number}") for number in range(last + 1)]
        if isinstance(names, str):
            raise ValueError(f"the text {names!r}")
        names = [str(name) for name in names]
    result = LabelledSet(class_names=names)
    has_key_points = "kpt_shape" in description
    splits = _described_splits(folder, described, description) or _listed_splits(folder)
    if not splits:
        for image in folder.images:
            splits.setdefault(folder.split_of(image), []).append(image)
    labels = {image: _label_of(image) for images in splits.values() for image in images}
    unnamed = min(_highest_class(labels.values()), _MOST_CLASSES) + 1 if not names else 0
    result.class_names += [f"class {number}" for number in range(unnamed)]
    for split, images in splits.items():
        for image in images:
            size = _viewed_size(image)
            lines = list(_lines(labels[image]))
            if not labels[image].is_file():
                result.counts["image without a label file: taken as empty"] += 1
            objects = [
                _object(words, where, size, result.class_names, has_key_points=has_key_points)
                for where, words in lines
            ]
            result.splits[split].append(LabelledImage(image, objects, size))
    return result


def _object(
    words: list[str],
    where: str,
    size: tuple[int, int],
    class_names: list[str],
    *,
    has_key_points: bool,
) -> LabelledObject:
    try:
        class_number, values = int(float(words[0])), [float(word) for word in words[1:]]
    except (OverflowError, ValueError):
        raise ValueError(f"{where}: expected numbers, got {' '.join(words)!r}") from None
    if not 0 <= class_number < len(class_names):
        raise ValueError(
            f"{where}: class {class_number}, but {len(class_names)} classes are listed "
            f"({', '.join(class_names[:5])}, ...): add its name to the list, or correct the label"
        )
    name, (width, height) = class_names[class_number], size
    if len(values) >= 6 and len(values) % 2 == 0 and not has_key_points:
        pixels = [v * (height if i % 2 else width) for i, v in enumerate(values)]
        return polygon_object(name, [pixels])
    if len(values) != 4 and not (has_key_points and len(values) > 4):
        raise ValueError(
            f"{where}: {len(values)} numbers behind the class: expected x y width height, or an "
            "even number of polygon coordinates"
        )
    x, y, w, h = values[:4]
    # To a thousandth of a pixel: six decimals of a share are no more exact.
    box = ((x - w / 2) * width, (y - h / 2) * height, w * width, h * height)
    return LabelledObject(name, tuple(round(value, 3) for value in box))


def _lines(path: Path) -> Iterator[tuple[str, list[str]]]:
    if path.is_file():
        for number, line in enumerate(read_text(path).splitlines(), start=1):
            if line.strip():
                yield f"{path} line {number}", line.replace(",", " ").split()


def _highest_class(labels: Any) -> int:
    numbers = [
        int(float(words[0][:20]))
        for label in labels
        for _, words in _lines(label)
        if words[0].isascii() and words[0].replace(".", "", 1).isdigit()
    ]
    return max(numbers, default=-1)


def _label_of(image: Path) -> Path:
    """Returns the place of an image's labels: `labels/` for the last `images/`, else beside it."""
    parts = list(image.with_suffix(".txt").parts)
    for i in range(len(parts) - 2, -1, -1):
        if parts[i].casefold() == "images":
            moved = Path(*parts[:i], "labels", *parts[i + 1 :])
            if moved.is_file():
                return moved
    return image.with_suffix(".txt")


def _viewed_size(path: Path) -> tuple[int, int]:
    """Returns (width, height) as viewers that follow EXIF show a picture."""
    picture = picture_of(path)
    if picture is None:
        return 0, 0
    size = picture.width, picture.height
    return size[::-1] if picture.swaps_sides else size


def _data_yaml(folder: DataFolder) -> Path | None:
    found = folder.files(".yaml", ".yml")
    for path in sorted(found, key=lambda p: (p.name != "data.yaml", len(p.parts))):
        content = read_yaml(path)
        if isinstance(content, dict) and ("names" in content or "nc" in content):
            return path
    return None


def _described_splits(
    folder: DataFolder, path: Path | None, description: dict[str, Any]
) -> dict[str, list[Path]]:
    """Returns the images of `data.yaml`'s splits; its paths are often those of another machine."""
    splits: dict[str, list[Path]] = {}
    for key in _SPLIT_KEYS:
        places = description.get(key) if path else None
        for place in [places] if isinstance(places, str) else places or []:
            target = _find_place(folder, path, str(description.get("path") or "."), str(place))
            if target is None:
                continue
            if target.is_file():
                images = [folder.find_image(name, near=target) for name in _names_in(target)]
            else:
                images = [image for image in folder.images if target in image.parents]
            if images:
                splits.setdefault(key, []).extend(images)
    return splits


def _find_place(folder: DataFolder, path: Path, base: str, place: str) -> Path | None:
    """Returns the folder or list of a split: as written, or by as much of its end as is there."""
    parts = [part for part in place.replace("\\", "/").split("/") if part not in ("", ".", "..")]
    candidates = [Path(base) / place, path.parent / base / place, path.parent / place]
    for start in range(len(parts)):
        end = Path(*parts[start:])
        candidates += [path.parent / end, folder.root / end]
    root = folder.root.resolve()
    for candidate in candidates:
        resolved = candidate.resolve()
        if candidate.exists() and (root == resolved or root in resolved.parents):
            return folder.root / resolved.relative_to(root)
    return None


def _listed_splits(folder: DataFolder) -> dict[str, list[Path]]:
    """Returns the images of `train.txt` and the like, Darknet's lists."""
    splits = {}
    for path in folder.files(".txt"):
        if path.stem.casefold() in _SPLIT_KEYS and path.parent == folder.root:
            names = _names_in(path)
            if names:
                splits[path.stem] = [folder.find_image(name, near=path) for name in names]
    return splits


def _names_in(path: Path) -> list[str]:
    return [line.strip() for line in read_text(path).splitlines() if line.strip()]
