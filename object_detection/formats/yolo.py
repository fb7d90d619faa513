"""YOLO text labels: a line `class x y width height` for each object, as shares of the image.

Also polygons (`class x1 y1 x2 y2 ...`) and key points, whose box is taken. Classes are numbered
from 0; `data.yaml`, `classes.txt`, `obj.names` name them. A picture without a label file is one
without objects. Labels are drawn on the picture as viewers show it, so its size is the turned one
where EXIF turns it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from object_detection.formats.folder import DataFolder, head_of, read_class_list
from object_detection.formats.labelled import (
    LabelledImage,
    LabelledObject,
    LabelledSet,
    polygon_object,
    viewed_size,
)
from outside_data.files import BadFileError, expecting, read_text, read_yaml

_MOST_CLASSES = 100_000
_SPLIT_KEYS = ("train", "val", "valid", "test")
_SLOPPY = 0.01
_NOTHING = ("", "null", "~")  # in YAML, as text
_LARGEST_SHARE = 2.0  # sloppy ones leave the image by less than its size
_VISIBILITIES = frozenset(f"{i}{end}" for i in "012" for end in ("", ".0", ".000000"))
_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?", re.IGNORECASE)
_DECIMAL_COMMA = re.compile(r"-?\d+,\d+")


def files(folder: DataFolder) -> list[Path]:
    """Returns the files that tell the format: the label files, else the list of classes."""
    labels = list(_labels(folder, LabelledSet()).values())
    return labels or [path for path in [_data_yaml(folder)[0]] if path]


def read(folder: DataFolder) -> LabelledSet:
    """Reads a folder; splits are those of `data.yaml`, of lists of images, else folders' names."""
    described, description = _data_yaml(folder)
    result = LabelledSet()
    result.class_names = _class_names(folder, described, description, result)
    splits = _described_splits(folder, described, description, result)
    splits = splits or _listed_splits(folder, result)
    if not splits:
        for image in folder.images:
            splits.setdefault(folder.split_of(image), []).append(image)
    labels = _labels(folder, result)
    wanted = {labels[image] for images in splits.values() for image in images if image in labels}
    lines = {label: list(_lines(label)) for label in sorted(wanted)}
    words = [words for of_file in lines.values() for _, words in of_file]
    unnamed = min(_highest_class(words), _MOST_CLASSES) + 1 if not result.class_names else 0
    result.class_names += [f"class {number}" for number in range(unnamed)]
    has_key_points = "kpt_shape" in description or _are_key_points(words)
    for split, images in splits.items():
        for image in dict.fromkeys(images):
            size, own = viewed_size(image), lines.get(labels.get(image), [])
            if image not in labels and image not in result.missing:
                result.note("image without a label file: taken as empty", image.name)
            if own and min(size) <= 0:
                result.note("objects of an image without a size left out", image.name)
                own = []
            objects = [
                _object(words, where, size, result.class_names, has_key_points=has_key_points)
                for where, words in own
            ]
            result.splits[split].append(LabelledImage(image, objects, size))
    return result


def _class_names(
    folder: DataFolder, described: Path | None, description: dict[str, Any], result: LabelledSet
) -> list[str]:
    """Returns the names by number; [] where nothing names them."""
    names = description.get("names")
    if names is None or names in _NOTHING:
        names = read_class_list(folder, is_numbered=True)
    with expecting(described or folder.root, "names: a list of classes, or number: name"):
        if isinstance(names, dict):
            by_number = {int(number): str(name) for number, name in names.items()}
            last = min(max(by_number), _MOST_CLASSES)
            names = [by_number.get(number, f"class {number}") for number in range(last + 1)]
        if isinstance(names, str):
            raise ValueError(f"the text {names!r}")
        names = [str(name) for name in names]
    count = str(description.get("nc") or "").strip()
    if names and count.isdecimal() and int(count) != len(names):
        raise ValueError(
            f"{described}: nc is {count}, but {len(names)} names are listed ({', '.join(names[:5])}"
            f"{', ...' if names[5:] else ''}): a class that is left out shifts all names after it: "
            "correct names or nc"
        )
    for number, name in enumerate(names):
        if name in names[:number]:
            result.note("class of the same name as another: taken as one", f"{number} {name}")
    return names


def _object(
    words: list[str],
    where: str,
    size: tuple[int, int],
    class_names: list[str],
    *,
    has_key_points: bool,
) -> LabelledObject:
    try:
        class_number, values = float(words[0]), [float(word) for word in words[1:]]
    except (OverflowError, ValueError):
        raise ValueError(f"{where}: expected numbers, got {' '.join(words)!r}") from None
    if not (class_number.is_integer() and 0 <= class_number < len(class_names)):
        raise ValueError(
            f"{where}: class {class_number:g}, but {len(class_names)} classes are listed "
            f"({', '.join(class_names[:5])}, ...): add its name to the list, or correct the label"
        )
    if any(abs(value) > _LARGEST_SHARE for value in values[: 4 if has_key_points else None]):
        raise ValueError(
            f"{where}: {' '.join(words)!r}: expected shares of the image's sides, from 0 to 1; are "
            "these pixels or percent? Divide x and width by the image's width, y and height by its "
            "height"
        )
    name, (width, height) = class_names[int(class_number)], size
    if len(values) >= 6 and len(values) % 2 == 0 and not has_key_points:
        pixels = [v * (height if i % 2 else width) for i, v in enumerate(values)]
        return polygon_object(name, [pixels])
    if len(values) != 4 and not (has_key_points and len(values) > 4):
        hint = " Five are a detection with its confidence, not a label?" if len(values) == 5 else ""
        raise ValueError(
            f"{where}: {len(values)} numbers behind the class: expected x y width height, or an "
            f"even number of polygon coordinates (key points need kpt_shape in data.yaml).{hint}"
        )
    x, y, w, h = values[:4]
    # To a thousandth of a pixel: six decimals of a share are no more exact.
    box = ((x - w / 2) * width, (y - h / 2) * height, w * width, h * height)
    return LabelledObject(name, tuple(round(value, 3) for value in box))


def _lines(path: Path) -> Iterator[tuple[str, list[str]]]:
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        words = _words(line)
        if words:
            yield f"{path} line {number}", words


def _words(line: str) -> list[str]:
    """Separates at spaces and commas, which are decimal points where there are no others."""
    words = line.split()
    if "." not in line and any(map(_DECIMAL_COMMA.fullmatch, words)):
        return [word.replace(",", ".") for word in words]
    return line.replace(",", " ").split()


def _highest_class(lines: Sequence[list[str]]) -> int:
    numbers = [
        int(float(words[0][:20]))
        for words in lines
        if words[0].isascii() and words[0].replace(".", "", 1).isdigit()
    ]
    return max(numbers, default=-1)


def _are_key_points(lines: Sequence[list[str]]) -> bool:
    """Whether all lines are a box with as many key points `x y visibility`, which is 0, 1 or 2."""
    lengths = {len(words) for words in lines}
    return (
        len(lengths) == 1
        and (length := lengths.pop()) >= 8
        and (length - 5) % 3 == 0
        and all(set(words[7::3]) <= _VISIBILITIES and _is_box(words[1:5]) for words in lines)
    )


def _is_box(words: Sequence[str]) -> bool:
    """Whether shares are a centre and sides of a box within the image."""
    if not all(map(_NUMBER.fullmatch, words)):
        return False
    x, y, width, height = map(float, words)
    lies_in = all(
        size > 0 and middle - size / 2 > -_SLOPPY and middle + size / 2 < 1 + _SLOPPY
        for middle, size in ((x, width), (y, height))
    )
    return lies_in


def _labels(folder: DataFolder, result: LabelledSet) -> dict[Path, Path]:
    """Returns image to label file, where there is one.

    What no image of the same name claims is looked up as other annotations are: tools encode names,
    put something before or behind them, keep labels elsewhere.
    """
    known = dict.fromkeys(folder.files(".txt"))
    labels: dict[Path, Path] = {}
    for image in folder.images:
        if (label := next((p for p in _label_places(image) if p in known), None)) is not None:
            labels[image] = label
    for label in sorted({*known} - {*labels.values()}):
        if not _is_label_file(label):
            continue
        try:
            image = folder.find_image(label.stem, near=label)
        except (FileNotFoundError, ValueError):
            image = None
        if image is None or image in labels:
            result.note("label file of no image, or of one that has another, left out", label)
        else:
            labels[image] = label
            result.note("label file found under another name or elsewhere", label)
    return labels


def _label_places(image: Path) -> Iterator[Path]:
    """Yields the places of an image's labels: `labels/` for the last `images/`, then beside it."""
    parts = list(image.with_suffix(".txt").parts)
    for i in range(len(parts) - 2, -1, -1):
        if parts[i].casefold() == "images":
            yield Path(*parts[:i], "labels", *parts[i + 1 :])
    yield image.with_suffix(".txt")


def _is_label_file(path: Path) -> bool:
    """Whether the first line is numbers, as many as an object has."""
    first = head_of(path).decode(errors="replace").split("\n", 1)[0]
    words = _words(first)
    return len(words) >= 5 and all(map(_NUMBER.fullmatch, words))


def _data_yaml(folder: DataFolder) -> tuple[Path | None, dict[str, Any]]:
    """Returns the file that describes the set, and what it holds as text; (None, {}) without."""
    found, broken = [], None
    for path in sorted(
        folder.files(".yaml", ".yml"), key=lambda p: (p.name != "data.yaml", len(p.parts))
    ):
        try:
            content = read_yaml(path, as_text=True)
        except BadFileError as error:
            broken = broken or error
            continue
        if isinstance(content, dict) and ("names" in content or "nc" in content):
            found.append((path, content))
    if broken and not found:
        raise broken
    # Files of settings have a number of classes as well.
    return min(found, key=lambda pair: "names" not in pair[1], default=(None, {}))


def _described_splits(
    folder: DataFolder, path: Path | None, description: dict[str, Any], result: LabelledSet
) -> dict[str, list[Path]]:
    """Returns the images of `data.yaml`'s splits; its paths are often those of another machine.

    Raises:
      ValueError: there are splits, and the one to train on is not there.
    """
    splits: dict[str, list[Path]] = {}
    absent: dict[str, str] = {}
    for key in _SPLIT_KEYS:
        places = description.get(key) if path else None
        for place in [places] if isinstance(places, str) else places or []:
            target = _find_place(folder, path, str(description.get("path") or "."), str(place))
            if place in _NOTHING:
                continue
            if target is None:
                images = []
            elif target.is_file():
                names = _names_in(target)
                images = [result.find_image(folder, name, near=target) for name in names]
            else:
                images = [image for image in folder.images if target in image.parents]
            if images:
                splits.setdefault(key, []).extend(images)
            else:
                absent[f"{key}: {place}"] = key
    if splits and "train" in absent.values():
        raise ValueError(
            f"{path}: no images at {', '.join(absent)} in {folder.root}: correct the path"
        )
    for place in absent:
        result.note(f"split of {path.name} without images left out", place)
    if splits:
        for image in sorted({*folder.images} - {i for images in splits.values() for i in images}):
            result.note(f"image in no split of {path.name} left out", image)
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


def _listed_splits(folder: DataFolder, result: LabelledSet) -> dict[str, list[Path]]:
    """Returns the images of `train.txt` and the like, Darknet's lists."""
    splits = {}
    for path in folder.files(".txt"):
        if path.stem.casefold() in _SPLIT_KEYS and path.parent == folder.root:
            names = _names_in(path)
            if names:
                splits[path.stem] = [result.find_image(folder, name, near=path) for name in names]
    return splits


def _names_in(path: Path) -> list[str]:
    return [line.strip() for line in read_text(path).splitlines() if line.strip()]
