"""CSV tables of boxes: Open Images' (shares of the image) and TensorFlow's (corners in pixels).

Open Images writes `ImageID,...,LabelName,...,XMin,XMax,YMin,YMax,...` and names its classes in a
second file, `class-descriptions-boxable.csv`; objects that are groups become crowd regions. The
other kind has the columns `filename,width,height,class,xmin,ymin,xmax,ymax`.
"""

from __future__ import annotations

import contextlib
import csv
import io
from collections.abc import Iterator
from pathlib import Path

from object_detection.formats.folder import DataFolder
from object_detection.formats.labelled import (
    LabelledImage,
    LabelledObject,
    LabelledSet,
    box_of_corners,
    image_size,
)
from outside_data.files import expecting, open_file

_OPEN_IMAGES = {"imageid", "labelname", "xmin", "xmax", "ymin", "ymax"}
_PIXELS = {"filename", "class", "xmin", "ymin", "xmax", "ymax"}
_SIDES = ("xmin", "ymin", "xmax", "ymax")
_MOST_LINE_BYTES = 1 << 20


def files(folder: DataFolder) -> list[Path]:
    """Returns the tables of boxes."""
    return [path for path in folder.files(".csv") if _is_table(path)]


def read(folder: DataFolder) -> LabelledSet:
    """Reads all tables; splits are files' or folders' names."""
    result = LabelledSet()
    names = _descriptions(folder)
    for path in files(folder):
        images: dict[str, LabelledImage] = {}
        for where, row in _rows(path):
            key = row.get("imageid") or row.get("filename") or ""
            if key not in images:
                file = folder.find_image(key, near=path)
                images[key] = LabelledImage(file, [], image_size(file))
            try:
                corners = [float(row[side]) for side in _SIDES]
            except (TypeError, ValueError):
                raise ValueError(f"{where}: expected four numbers in {', '.join(_SIDES)}") from None
            if "imageid" in row:
                corners = [v * s for v, s in zip(corners, images[key].size * 2)]
            name = row.get("labelname") or row.get("class") or ""
            images[key].objects.append(
                LabelledObject(
                    names.get(name, name),
                    tuple(round(value, 3) for value in box_of_corners(*corners)),
                    is_crowd=row.get("isgroupof") == "1",
                )
            )
        for image in images.values():
            result.splits[folder.split_of(path, image.file)].append(image)
    return result


def _is_table(path: Path) -> bool:
    with _lines(path, errors="replace") as lines:
        try:
            first = next(csv.reader(lines), [])
        except csv.Error:
            return False
    columns = {column.strip().casefold() for column in first}
    return columns >= _OPEN_IMAGES or columns >= _PIXELS


def _rows(path: Path) -> Iterator[tuple[str, dict[str, str]]]:
    with expecting(path, "a table of boxes"), _lines(path) as lines:
        reader = csv.DictReader(lines)
        for row in reader:
            yield (
                f"{path} line {reader.line_num}",
                {str(k).strip().casefold(): v for k, v in row.items()},
            )


def _descriptions(folder: DataFolder) -> dict[str, str]:
    """Returns Open Images' label (`/m/0cmf2`) to class name; {} without the file."""
    for path in folder.files(".csv"):
        if path.name.startswith(("class-descriptions", "oidv7-class-descriptions")):
            with _lines(path) as lines:
                return {row[0]: row[1] for row in csv.reader(lines) if len(row) >= 2}
    return {}


@contextlib.contextmanager
def _lines(path: Path, errors: str = "strict") -> Iterator[Iterator[str]]:
    """Opens a file whose lines are read in pieces of a limited length."""
    with open_file(path, most=None) as file:
        text = io.TextIOWrapper(file, encoding="utf-8-sig", newline="", errors=errors)
        yield iter(lambda: text.readline(_MOST_LINE_BYTES), "")
        text.detach()
