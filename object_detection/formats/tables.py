"""CSV tables of boxes: Open Images' (shares of the image), and several that have pixels.

Open Images writes `ImageID,...,LabelName,...,XMin,XMax,YMin,YMax,...` and names its classes in a
second file, `class-descriptions-boxable.csv`; objects that are groups become crowd regions.
TensorFlow's tables, VoTT's and the like have the columns `filename,class,xmin,ymin,xmax,ymax`, or
other names for them. Without a heading there are keras-retinanet's `path,x1,y1,x2,y2,class`, all
but the path empty for an image without objects, with a second file `class,number`; SKU110K's, which
add the image's width and height; make-sense's `class,x,y,width,height,path,width,height`; and
AutoML's `set,path,class,x1,y1,,,x2,y2,,` in shares, whose sets are splits.
"""

from __future__ import annotations

import contextlib
import csv
import io
import itertools
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from object_detection.coco.values import crowd_flag, positive_pixels
from object_detection.formats.folder import DataFolder
from object_detection.formats.labelled import (
    LabelledImage,
    LabelledObject,
    LabelledSet,
    box_of_corners,
    image_size,
)
from outside_data.files import expecting, open_file, text_encoding
from outside_data.picture_file import suffixes
from outside_data.text import clean

_OPEN_IMAGES = {"imageid", "labelname", "xmin", "xmax", "ymin", "ymax"}
_PIXELS = {"filename", "class", "xmin", "ymin", "xmax", "ymax"}
_SIDES = ("xmin", "ymin", "xmax", "ymax")
_RETINANET = ("filename", *_SIDES, "class")
_AUTOML_CORNERS = ("xmin", "ymin", "", "", "xmax", "ymax", "", "")
_WITHOUT_HEADING = (
    _RETINANET,
    (*_RETINANET, "width", "height"),  # SKU110K
    ("class", "xmin", "ymin", "boxwidth", "boxheight", "filename", "width", "height"),  # make-sense
    ("set", "filename", "class", *_AUTOML_CORNERS),
)
_NO_NUMBERS = {"filename", "class", "set"}
_OTHER_NAMES = {
    **dict(zip(("path", "x1", "y1", "x2", "y2", "class_name"), _RETINANET)),
    **dict.fromkeys(
        ("image", "image_name", "image_path", "file_name", "file", "location"), "filename"
    ),
    **dict.fromkeys(("label", "label_name", "category", "name"), "class"),
    **{f"{side[0]}_{side[1:]}": side for side in _SIDES},
}
_SETS = {
    "train": "train",
    "training": "train",
    "validation": "val",
    "validate": "val",
    "test": "test",
}
_NUMBER = re.compile(r"-?\d+(\.\d*)?")
_MOST_LINE_BYTES = 1 << 20


def files(folder: DataFolder) -> list[Path]:
    """Returns the tables of boxes."""
    return [path for path in folder.files(".csv") if _is_table(path)]


def read(folder: DataFolder) -> LabelledSet:
    """Reads all tables; splits are files' or folders' names."""
    result = LabelledSet()
    names = _descriptions(folder)
    tables = files(folder)
    if any(_layout(_first_line(path)) for path in tables):
        result.class_names = _numbered_classes(folder)
    for path in tables:
        images: dict[str, LabelledImage] = {}
        splits: dict[str, str] = {}
        for where, row in _rows(path):
            key = row.get("imageid") or row.get("filename") or ""
            if key not in images:
                file = result.find_image(folder, key, near=path)
                images[key] = LabelledImage(file, [], _stated_size(row) or image_size(file))
            name = row.get("labelname") or row.get("class") or ""
            splits[key] = _SETS.get(row.get("set", "").casefold(), splits.get(key, ""))
            if not any(row.get(side) for side in _SIDES) and not name:
                continue  # an image without objects
            corners = _corners(row, where)
            if not name:
                raise ValueError(f"{where}: a box without a class: name it, or remove the line")
            if "imageid" in row or "set" in row:
                if min(images[key].size) <= 0:
                    result.note("box of an image without a size left out", where)
                    continue
                corners = [v * s for v, s in zip(corners, images[key].size * 2)]
            images[key].objects.append(
                LabelledObject(
                    names.get(name, name),
                    tuple(round(value, 3) for value in box_of_corners(*corners)),
                    is_crowd=crowd_flag(row.get("isgroupof")) or False,
                )
            )
        for key, image in images.items():
            result.splits[splits[key] or folder.split_of(path, image.file)].append(image)
    return result


def why_not(path: Path) -> str:
    """Says what a file lacks to be a table of boxes."""
    return (
        f"{path} begins with {clean(_first_line(path))}: a table of boxes has the columns "
        "filename,class,xmin,ymin,xmax,ymax (pixels) or ImageID,LabelName,XMin,XMax,YMin,YMax "
        "(shares), or no heading and path,x1,y1,x2,y2,class or what docs/data.md lists"
    )


def text_hint(path: Path) -> str:
    """Says what to do with a text file of boxes, which is not read; '' of any other."""
    if _is_table(path):
        return f"{path} is a table of boxes: name it {path.stem}.csv"
    name, _, left = (_first_line(path) or [""])[0].rpartition(" ")
    if _NUMBER.fullmatch(left) and _is_picture(name):
        return f"{path} has boxes behind the names of images, which is not read: export COCO there"
    return ""


def _is_table(path: Path) -> bool:
    first = _first_line(path)
    columns = {*_columns(first)}
    return columns >= _OPEN_IMAGES or columns >= _PIXELS or _layout(first) is not None


def _columns(heading: Sequence[str]) -> list[str]:
    names = [name.casefold() for name in heading]
    meant = [_OTHER_NAMES.get(name, name) for name in names]
    return [name if other in names else other for name, other in zip(names, meant)]


def _first_line(path: Path) -> list[str]:
    """Returns the columns of a table's first line; [] where it has none."""
    with _lines(path, errors="replace") as lines:
        try:
            return [column.strip() for column in next(_reader(lines), [])]
        except csv.Error:
            return []


def _layout(columns: Sequence[str]) -> tuple[str, ...] | None:
    """Returns the names of the columns of a line without a heading; None if it is none."""
    for names in _WITHOUT_HEADING:
        row = dict(zip(names, columns))
        if len(columns) != len(names) or not _is_picture(row["filename"]):
            continue
        numbers = [row[name] for name in names if name and name not in _NO_NUMBERS]
        if not any(numbers) or all(map(_NUMBER.fullmatch, numbers)):
            return names
    return None


def _is_picture(name: str) -> bool:
    return Path(name).suffix.lower() in suffixes()


def _corners(row: dict[str, str], where: str) -> list[float]:
    """Returns left, top, right and bottom, in the unit of the row."""
    try:
        if "boxwidth" in row:
            left, top = float(row["xmin"]), float(row["ymin"])
            return [left, top, left + float(row["boxwidth"]), top + float(row["boxheight"])]
        return [float(row[side]) for side in _SIDES]
    except (TypeError, ValueError):
        raise ValueError(f"{where}: expected four numbers in {', '.join(_SIDES)}") from None


def _rows(path: Path) -> Iterator[tuple[str, dict[str, str]]]:
    with expecting(path, "a table of boxes in UTF-8"), _lines(path) as lines:
        reader = _reader(lines)
        first = [name.strip() for name in next(reader)]
        names = _columns(first)
        if (layout := _layout(first)) is not None:
            names = layout
            yield f"{path} line 1", dict(zip(names, first))
        for values in filter(None, reader):
            row = {name: "" for name in names} | dict(zip(names, map(str.strip, values)))
            yield f"{path} line {reader.line_num}", row


def _reader(lines: Iterator[str]) -> Any:
    """Returns csv's reader of lines, whose heading tells what separates columns."""
    first = next(lines, "")
    return csv.reader(itertools.chain([first], lines), delimiter=max(",;\t", key=first.count))


def _stated_size(row: dict[str, str]) -> tuple[int, int] | None:
    """Returns (width, height), None where a line does not have both."""
    width, height = (positive_pixels(row.get(side)) for side in ("width", "height"))
    return (width, height) if width and height else None


def _descriptions(folder: DataFolder) -> dict[str, str]:
    """Returns Open Images' label (`/m/0cmf2`) to class name; {} without the file."""
    for path in folder.files(".csv"):
        if path.name.startswith(("class-descriptions", "oidv7-class-descriptions")):
            with _lines(path) as lines:
                return {row[0]: row[1] for row in _reader(lines) if len(row) >= 2}
    return {}


def _numbered_classes(folder: DataFolder) -> list[str]:
    """Returns the classes by number of a file whose lines are all `class,number`; [] without."""
    for path in folder.files(".csv"):
        first = _first_line(path)
        if len(first) == 2 and first[1].isdecimal():
            with expecting(path, "lines 'class,number'"), _lines(path) as lines:
                rows = [
                    (name.strip(), int(number)) for name, number in filter(None, _reader(lines))
                ]
            return [name for name, _ in sorted(rows, key=lambda row: row[1])]
    return []


@contextlib.contextmanager
def _lines(path: Path, errors: str = "strict") -> Iterator[Iterator[str]]:
    """Opens a file whose lines are read in pieces of a limited length."""
    with open_file(path, most=None) as file:
        encoding = text_encoding(file.read(4))
        file.seek(0)
        text = io.TextIOWrapper(file, encoding=encoding, newline="", errors=errors)
        yield iter(lambda: text.readline(_MOST_LINE_BYTES), "")
        text.detach()
