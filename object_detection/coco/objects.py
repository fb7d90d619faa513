"""Annotations one by one: what is corrected, what is dropped, and when a whole file is refused."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from object_detection.coco import values
from object_detection.coco.box_frame import frame_problems
from object_detection.coco.findings import MASK_PREFIX, Counts, Finding, describe_counts
from object_detection.coco.listed import CocoCategory, CocoImage, some
from object_detection.coco.segmentation import bounds, read_segmentation
from outside_data.files import BadFileError

CocoObject = Mapping[str, Any]
"""A checked annotation: id as in the file; image_id; category_id, an integer; bbox, four finite
numbers, width and height above 0; area above 0; iscrowd, 0 or 1; segmentation, polygons or an RLE
that fills its size, None where the mask is unknown."""

MASK_UNKNOWN = f"{MASK_PREFIX} unknown: "
_MOST_NAMED = 3
_MOST_BOXES_LOOKED_AT = 5000


class StatedBox(NamedTuple):
    """A box as the file has it, before any is dropped; mask: of `read_segmentation`."""

    box: Sequence[float]
    image: CocoImage
    category_id: int
    annotation: Any
    mask: Any
    is_crowd: bool

    @property
    def place(self) -> str:
        """Names image and annotation."""
        return f"{self.image.file_name}, annotation {self.annotation}"


class ObjectReader:
    """Reads annotations one by one, and keeps what was wrong with them."""

    def __init__(
        self,
        images: Sequence[CocoImage],
        categories: Sequence[CocoCategory],
        findings: list[Finding],
    ):
        self._images = {image.source_id: image for image in images}
        self._categories = {category.category_id for category in categories}
        self._findings = findings
        self._ids: set[str] = set()
        self._orphans: list[str] = []
        self._has_home = False
        self.stated: list[StatedBox] = []

    def read(self, entries: Sequence[Any]) -> dict[str, list[CocoObject]]:
        """Groups the usable annotations by image."""
        objects: dict[str, list[CocoObject]] = {}
        for index, entry in enumerate(entries):
            if not isinstance(entry, Mapping):
                self._note("annotation: no object", f"annotations[{index}]", dropped=True)
                continue
            image, category_id = self._home(entry, index)
            if image is None or category_id is None:
                continue
            self._has_home = True
            made = self._read_object(entry, image, category_id, index)
            if made is not None:
                objects.setdefault(image.source_id, []).append(made)
        return objects

    def refuse_orphans(self, path: str, num_entries: int, *, stop: bool) -> None:
        """Raises BadFileError for annotations that belong nowhere, if it is to stop at them."""
        if not self._orphans or not (stop or not self._has_home):
            return
        hint = "" if self._has_home else " None fits: is this the file of another data set?"
        raise BadFileError(
            f"{path}: {len(self._orphans)} of {num_entries} annotations name an image or category "
            f"that is not in the file ({some(self._orphans, _MOST_NAMED)}).{hint} Correct the "
            "file, or pass --on_orphan_annotation=skip to leave them out"
        )

    def _home(self, entry: Mapping[str, Any], index: int) -> tuple[CocoImage | None, int | None]:
        image = self._images.get(values.id_text(entry.get("image_id")))
        category_id = values.category_number(entry.get("category_id"))
        if image is not None and category_id in self._categories:
            return image, category_id
        key, what = ("image_id", "image") if image is None else ("category_id", "category")
        place = f"annotation {entry.get('id', index)}: {key} {entry.get(key)!r}"
        self._orphans.append(place)
        source_id = image.source_id if image else ""
        self._note(f"annotation: its {what} is not listed", place, source_id, dropped=True)
        return None, None

    def _note(self, what: str, where: str, source_id: str = "", *, dropped: bool = False) -> None:
        self._findings.append(Finding(dropped, what, where, source_id))

    def _read_object(
        self, entry: Mapping[str, Any], image: CocoImage, category_id: int, index: int
    ) -> CocoObject | None:
        number = entry.get("id", index)

        def note(what: str, *, dropped: bool = False) -> None:
            where = f"{image.file_name}, annotation {number}"
            self._note(what, where, image.source_id, dropped=dropped)

        key = values.id_text(entry.get("id"))
        if key and key in self._ids:
            note("annotation: id used before, renumbered for scoring")
        self._ids.add(key)
        mask = read_segmentation(entry.get("segmentation"), size=(image.height, image.width))
        crowd = values.crowd_flag(entry.get("iscrowd"))
        stated = values.finite_box(entry.get("bbox"))
        if stated is not None:
            self.stated.append(
                StatedBox(stated, image, category_id, number, mask.value, bool(crowd))
            )
        box = _read_box(entry.get("bbox"), mask.value, note)
        if box and (angle := values.box_rotation(entry)) and mask.value is None:
            note("box: turned by its attribute 'rotation', the box around it taken")
            box = _around_turned(box, angle)
        if box is None:
            return None
        if not is_in_image(box, image):
            note("box: outside the image", dropped=True)
            return None
        if mask.problem:
            note(f"{MASK_UNKNOWN}{mask.problem}")
        if mask.correction:
            note(mask.correction)
        area = values.positive_area(entry.get("area"))
        if area is None:
            note("area: filled in from the box")
            area = math.prod(_sides_inside(box, image))
        elif isinstance(entry["area"], str):
            note("area: read from text")
        if crowd is None:
            note(f"iscrowd: {entry['iscrowd']!r} taken as 0")
        elif isinstance(entry.get("iscrowd"), str):
            note("iscrowd: read from text")
        return {
            "id": entry.get("id"),
            "image_id": image.image_id,
            "category_id": category_id,
            "bbox": box,
            "area": area,
            "iscrowd": int(crowd or False),
            "segmentation": mask.value,
        }


def _read_box(stated: Any, mask: Any, note: Callable[..., None]) -> list[float] | None:
    """Returns a box with an area; None, with the reason noted, if there is none."""
    if values.has_box(stated):
        box = values.finite_box(stated)
        if box is None:
            note("box: not four finite numbers", dropped=True)
            return None
        if values.is_text(stated):
            note("box: read from text")
        elif len(stated) != len(box) or isinstance(stated, Mapping):
            note("box: in another form than a list of four numbers")
    else:
        box = bounds(mask) if mask is not None else None
        if box is None:
            note("box: missing, and no mask to take it from", dropped=True)
            return None
        note("box: missing, taken from the mask")
    if min(box[2:]) < values.SMALLEST_SIDE_PX:
        note("box: no width or no height", dropped=True)
        return None
    return box


def _around_turned(box: Sequence[float], degrees: float) -> list[float]:
    """Returns the box around a box that is turned about its middle."""
    x, y, width, height = box
    sine, cosine = abs(math.sin(math.radians(degrees))), abs(math.cos(math.radians(degrees)))
    sides = width * cosine + height * sine, width * sine + height * cosine
    return [x + (width - sides[0]) / 2, y + (height - sides[1]) / 2, *sides]


def is_in_image(box: Sequence[float], image: CocoImage) -> bool:
    """Whether anything of a box lies in its image, as far as it is known how large this is."""
    return min(_sides_inside(box, image)) >= values.SMALLEST_SIDE_PX


def _sides_inside(box: Sequence[float], image: CocoImage) -> tuple[float, float]:
    """Returns width and height of what lies in the image, as far as its size is known."""
    x, y, width, height = box
    if image.width is None or image.height is None:
        return width, height
    return (
        min(x + width, image.width) - max(x, 0.0),
        min(y + height, image.height) - max(y, 0.0),
    )


def refuse_nothing_left(
    path: str,
    entries: Sequence[Any],
    objects: Mapping[str, Sequence[CocoObject]],
    findings: Sequence[Finding],
) -> None:
    """Raises BadFileError if there are annotations and not one of them is usable."""
    if objects or not entries:
        return
    counts = Counts(finding for finding in findings if finding.is_dropped)
    lines = [*describe_counts("dropped", counts.dropped, counts.examples)]
    reasons = "; ".join(line.strip() for line in lines[1:])
    keys = sorted(map(str, entries[0])) if isinstance(entries[0], Mapping) else []
    raise BadFileError(
        f"{path}: not one of {len(entries)} annotations is usable: {reasons}. The first has the "
        f"keys {keys}; expected image_id, category_id and bbox [x, y, width, height]"
    )


def refuse_other_frames(path: str, stated: Sequence[StatedBox]) -> None:
    """Raises BadFileError if the boxes are not x, y, width and height in pixels; looks at some."""
    stated = stated[:: -(-len(stated) // _MOST_BOXES_LOOKED_AT) or 1]
    boxes, sizes, outlines, images = frame_columns(stated)
    for problem in frame_problems(boxes, sizes, outlines, images):
        if problem.is_fatal:
            places = [entry.place for entry in stated]
            raise BadFileError(f"{path}: {problem.describe(boxes, places)}")


def frame_columns(stated: Sequence[StatedBox]) -> tuple[np.ndarray, ...]:
    """Returns what `frame_problems` takes."""
    outlines = [bounds(entry.mask) if entry.mask is not None else None for entry in stated]
    outlines = np.array([box or [np.nan] * 4 for box in outlines], np.float64).reshape(-1, 4)
    outlines[:, 2:] += outlines[:, :2]
    sizes = [(entry.image.width or np.nan, entry.image.height or np.nan) for entry in stated]
    numbers: dict[str, int] = {}
    images = [numbers.setdefault(entry.image.source_id, len(numbers)) for entry in stated]
    return (
        np.array([entry.box for entry in stated], np.float64).reshape(-1, 4),
        np.array(sizes, np.float64).reshape(-1, 2),
        outlines,
        np.array(images, np.int64),
    )
