"""What every importer gives: images with labelled objects, by split; and COCO's form of it.

An importer knows its format and nothing of records. Its `files(folder)` are the annotation files,
and `read(folder)` raises ValueError or FileNotFoundError that names the file and says what is
wrong in it. Categories get ids 1, 2, ... in the order of the format's own list of classes, or of
the names. Images get ids 1, 2, ... in order of their names. An annotated image that is not there
stays in the list: the conversion names it, and gives up where there are too many.
"""

from __future__ import annotations

import collections
import dataclasses
import math
import os
from collections.abc import Container, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from pycocotools import mask as mask_api

from object_detection.coco.listed import some
from object_detection.formats.folder import DataFolder, plain_name
from outside_data.files import BadFileError
from outside_data.picture_file import BadImageError, Picture, read_picture_header

_ELLIPSE_POINTS = 36
_SHOWN = 3


class LabelledObject(NamedTuple):
    """One object: class name, `(x, y, width, height)` in pixels, COCO segmentation or None."""

    name: str
    box: tuple[float, float, float, float]
    segmentation: Any = None
    is_crowd: bool = False


@dataclasses.dataclass
class LabelledImage:
    """One image file with its objects; `size` is (width, height) as annotated, None if unsaid."""

    file: Path
    objects: list[LabelledObject]
    size: tuple[int, int] | None = None


@dataclasses.dataclass
class LabelledSet:
    """A folder of annotations, read.

    Attributes:
      splits: name ("train") to images.
      class_names: in the format's order; names that occur and are not listed are put behind them.
      counts: what was left out or had to be guessed, and how often.
      missing: images that are not there, path as of `find_image` to the error that says so.
    """

    splits: dict[str, list[LabelledImage]] = dataclasses.field(
        default_factory=lambda: collections.defaultdict(list)
    )
    class_names: list[str] = dataclasses.field(default_factory=list)
    counts: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    missing: dict[Path, FileNotFoundError] = dataclasses.field(default_factory=dict)
    _places: dict[str, list[Any]] = dataclasses.field(
        default_factory=lambda: collections.defaultdict(list)
    )

    def note(self, what: str, place: Any) -> None:
        """Counts what was left out or guessed, and keeps where."""
        self.counts[what] += 1
        self._places[what].append(place)

    def described_counts(self) -> dict[str, int]:
        """Returns the counts, with the first places of those that have any."""
        return {
            f"{what}: {some(self._places[what], _SHOWN)}" if what in self._places else what: count
            for what, count in self.counts.items()
        }

    def find_image(self, folder: DataFolder, *names: str, near: Path) -> Path:
        """Returns the image as of `DataFolder.find_image`, or a path where none is, noted."""
        try:
            return folder.find_image(*names, near=near)
        except FileNotFoundError as error:
            # The one with an ending, else the first.
            name = max(filter(None, (*names, near.stem)), key=lambda text: bool(Path(text).suffix))
            path = near.parent / plain_name(name)
            self.missing[path] = error
            self.note("annotated image that is not there", f"{near.name}: {name}")
            return path

    def all_class_names(self) -> list[str]:
        """Returns the listed class names and, sorted behind them, those that merely occur."""
        listed = list(dict.fromkeys(self.class_names))
        found = {o.name for images in self.splits.values() for i in images for o in i.objects}
        return listed + sorted(found - set(listed))


def coco_split(
    images: Sequence[LabelledImage], class_names: Sequence[str], *, missing: Container[Path] = ()
) -> tuple[dict[str, Any], Path]:
    """Returns a split in COCO's instances form, and the folder its file names are relative to.

    The folder is the deepest that holds all images but the missing ones. Sizes that no annotation
    states are read from the files. `area` is the polygons' where there are any, else the box's.

    Raises:
      BadFileError: one image file stands for two images; an object has no class.
    """
    images = sorted(images, key=lambda image: image.file.as_posix())
    there = [image.file.parent for image in images if image.file not in missing]
    folder = Path(os.path.commonpath(there or [image.file.parent for image in images]))
    ids = {name: number for number, name in enumerate(class_names, start=1)}
    entries, annotations = [], []
    for number, image in enumerate(images, start=1):
        if number > 1 and image.file == images[number - 2].file:
            raise BadFileError(
                f"{image.file} is annotated twice in one split: keep one of its annotations"
            )
        is_there = image.file not in missing
        name = image.file.relative_to(folder).as_posix() if is_there else image.file.name
        width, height = image.size or image_size(image.file)
        sides = {"width": width, "height": height} if min(width, height) > 0 else {}
        entries.append({"id": number, "file_name": name, **sides})
        for item in image.objects:
            if not item.name:
                raise BadFileError(
                    f"{image.file}: an object without a class, at {list(item.box)}: name its class "
                    "in the annotations, or remove it"
                )
            entry: dict[str, Any] = {
                "id": len(annotations) + 1,
                "image_id": number,
                "category_id": ids[item.name],
                "bbox": list(item.box),
                "area": _area(item),
                "iscrowd": int(item.is_crowd),
            }
            if item.segmentation is not None:
                entry["segmentation"] = item.segmentation
            annotations.append(entry)
    categories = [{"id": number, "name": name} for name, number in ids.items()]
    return {"images": entries, "annotations": annotations, "categories": categories}, folder


def image_size(path: Path) -> tuple[int, int]:
    """Returns (width, height) of the stored pixels from a file's header; (0, 0) if unreadable."""
    picture = picture_of(path)
    return (picture.width, picture.height) if picture else (0, 0)


def viewed_size(path: Path) -> tuple[int, int]:
    """Returns (width, height) as viewers that follow EXIF show a picture; (0, 0) if unreadable."""
    picture = picture_of(path)
    if picture is None:
        return 0, 0
    size = picture.width, picture.height
    return size[::-1] if picture.swaps_sides else size


def picture_of(path: Path) -> Picture | None:
    """Returns a picture whose header was read; None if it cannot be: the conversion names it."""
    try:
        return read_picture_header(path)
    except BadImageError:
        return None


def class_name(stated: Any, where: object) -> str:
    """Returns the name of a class, text or a number; '' of none, which `coco_split` refuses.

    Raises:
      ValueError: it is neither; says where.
    """
    if isinstance(stated, bool) or not isinstance(stated, (str, int, float, type(None))):
        raise ValueError(f"{where}: expected the name of a class, got {stated!r}")
    return "" if stated is None else str(stated).strip()


def box_of_corners(x1: float, y1: float, x2: float, y2: float) -> tuple[float, ...]:
    """Returns `(x, y, width, height)` of two opposite corners, in any order."""
    left, top = min(x1, x2), min(y1, y2)
    return left, top, max(x1, x2) - left, max(y1, y2) - top


def polygon_object(name: str, polygons: Sequence[Sequence[float]]) -> LabelledObject:
    """Returns an object of polygons `[x1, y1, x2, y2, ...]`, pixels, with the box around them."""
    xs = [value for polygon in polygons for value in polygon[0::2]]
    ys = [value for polygon in polygons for value in polygon[1::2]]
    box = box_of_corners(min(xs), min(ys), max(xs), max(ys))
    return LabelledObject(name, box, [list(polygon) for polygon in polygons])


def mask_object(
    name: str, inside: np.ndarray, corner: Sequence[float], size: Sequence[int]
) -> LabelledObject:
    """Returns an object with a mask.

    Args:
      name: of its class.
      inside: [height, width], true where the object is.
      corner: (x, y) of the upper left of `inside` in the image; what lies outside is cut off.
      size: (width, height) of the image.
    """
    left, top = map(int, corner)
    height, width = inside.shape
    pixels = np.zeros((size[1], size[0]), np.uint8, order="F")
    place = pixels[max(top, 0) : max(top + height, 0), max(left, 0) : max(left + width, 0)]
    shown = inside[max(-top, 0) :, max(-left, 0) :]
    place[:] = shown[: place.shape[0], : place.shape[1]]
    runs = mask_api.encode(pixels)
    runs["counts"] = runs["counts"].decode()
    return LabelledObject(name, (left, top, width, height), runs)


def ellipse_points(*radii: float) -> np.ndarray:
    """Returns [36, 2] points (x, y) of an ellipse about (0, 0)."""
    turns = np.linspace(0, 2 * math.pi, _ELLIPSE_POINTS, endpoint=False)
    return np.stack([np.cos(turns), np.sin(turns)], axis=1) * radii


def turned(points: np.ndarray, degrees: Any) -> np.ndarray:
    """Turns [n, 2] points (x, y) about (0, 0), clockwise on the screen."""
    angle = math.radians(float(degrees or 0))
    turn = np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
    return points @ turn


def _area(item: LabelledObject) -> float:
    if isinstance(item.segmentation, list):
        return sum(_polygon_area(polygon) for polygon in item.segmentation)
    if isinstance(item.segmentation, dict):
        return float(mask_api.area(item.segmentation))
    return item.box[2] * item.box[3]


def _polygon_area(points: Sequence[float]) -> float:
    xs, ys = points[0::2], points[1::2]
    turned = zip(xs, ys, [*xs[1:], xs[0]], [*ys[1:], ys[0]])
    return abs(sum(x * next_y - next_x * y for x, y, next_x, next_y in turned)) / 2
