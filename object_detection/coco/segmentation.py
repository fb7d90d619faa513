"""COCO segmentations: polygons and run lengths, checked before anything rasterises them.

pycocotools reads past the end of run lengths that are cut short and leaves pixels unset where they
do not fill the image, without a word; so compressed ones are unpacked here first.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from object_detection.coco.values import finite_number, positive_pixels

Segmentation = Any
"""COCO's: a list of polygons [x1, y1, x2, y2, ...], or an RLE dict with "size" and "counts"."""

_FEWEST_COORDINATES = 6
_MOST_CORNERS_MEASURED = 4  # polygons of more are taken to have an area if their box has one
_LARGEST_COORDINATE_PX = 1e5  # pycocotools allots memory by the length of an edge
_MOST_BITS = 40  # of a run; longer ones are garbage
NO_POLYGON = "no polygon with three points or more"
WRONG_SUM = "run lengths do not add up to the image"


class ReadSegmentation(NamedTuple):
    """What a segmentation turned out to be.

    value: polygons as lists of numbers, or {"size": [height, width], "counts": ...} whose runs
      fill the image; None: unknown.
    problem: why it is unknown, '' otherwise; the same for like cases.
    correction: what was changed on the way, '' if nothing.
    """

    value: Segmentation | None
    problem: str = ""
    correction: str = ""


def read_segmentation(value: Any, *, size: tuple[int | None, int | None]) -> ReadSegmentation:
    """Checks what a JSON holds; size: (height, width) in pixels, None where it does not say."""
    if value is None or value in ("", [], {}):
        return ReadSegmentation(None, "no segmentation")
    if isinstance(value, Mapping):
        return _read_runs(value, size)
    if isinstance(value, (list, tuple)):
        return _read_polygons(value)
    return ReadSegmentation(None, f"segmentation is a {type(value).__name__}")


def bounds(segmentation: Segmentation) -> list[float] | None:
    """Returns the box [x, y, width, height] around a segmentation that was read; None if empty."""
    if isinstance(segmentation, Mapping):
        height = segmentation["size"][0]
        counts = segmentation["counts"]
        runs = np.asarray(counts if isinstance(counts, list) else unpack_counts(counts), np.int64)
        ends = np.cumsum(runs)
        starts, ends = (ends - runs)[1::2], ends[1::2]
        starts, ends = starts[ends > starts], ends[ends > starts]
        if not len(starts):
            return None
        left, right = int(starts[0] // height), int((ends[-1] - 1) // height) + 1
        within_column = starts // height == (ends - 1) // height
        top, bottom = 0, height
        if within_column.all():
            top, bottom = int((starts % height).min()), int(((ends - 1) % height).max()) + 1
        return [float(left), float(top), float(right - left), float(bottom - top)]
    points = np.concatenate([np.asarray(p, np.float64).reshape(-1, 2) for p in segmentation])
    low, high = points.min(axis=0), points.max(axis=0)
    return [*low.tolist(), *(high - low).tolist()]


def unpack_counts(counts: str | bytes) -> list[int] | None:
    """Unpacks compressed run lengths; None if the text is no such thing.

    Each number is written in groups of five bits, lowest first, as characters from '0'; a sixth
    bit says that the number goes on, the fifth of the last group is the sign, and from the third
    run on the difference to the run before the last is stored.
    """
    data = counts.encode("latin-1", "replace") if isinstance(counts, str) else bytes(counts)
    runs: list[int] = []
    number = shift = 0
    for byte in data:
        group = byte - 48
        if not 0 <= group < 64 or shift > _MOST_BITS:
            return None
        number |= (group & 31) << shift
        shift += 5
        if group & 32:
            continue
        if group & 16:
            number -= 1 << shift
        runs.append(number + runs[-2] if len(runs) > 2 else number)
        number = shift = 0
    return None if shift or not runs else runs


def _read_runs(value: Mapping[str, Any], size: tuple[int | None, int | None]) -> ReadSegmentation:
    stated = value.get("size")
    sides = [positive_pixels(side) for side in stated] if isinstance(stated, (list, tuple)) else []
    if len(sides) != 2 or None in sides:
        return ReadSegmentation(None, "run-length mask without size")
    if None not in size and sides != list(size):
        return ReadSegmentation(None, "run-length mask of another size than the image")
    counts, correction = value.get("counts"), ""
    if isinstance(counts, (str, bytes)):
        runs = unpack_counts(counts)
    elif isinstance(counts, (list, tuple)):
        numbers = [finite_number(run) for run in counts]
        is_whole = all(n is not None and n.is_integer() for n in numbers)
        runs = [int(n) for n in numbers] if is_whole else None
        if runs and any(isinstance(run, str) for run in counts):
            correction = "mask: run lengths read from text"
    else:
        return ReadSegmentation(None, "run-length mask without counts")
    if not runs or min(runs) < 0 or sum(runs) != sides[0] * sides[1]:
        return ReadSegmentation(None, WRONG_SUM)
    if not any(runs[1::2]):
        return ReadSegmentation(None, "run-length mask without a pixel")
    kept = counts if isinstance(counts, (str, bytes)) else runs
    return ReadSegmentation({"size": sides, "counts": kept}, correction=correction)


def _read_polygons(value: Sequence[Any]) -> ReadSegmentation:
    if all(_is_sound(polygon) for polygon in value):
        return ReadSegmentation(value)
    correction = "mask: polygons in another form than a list of lists of numbers"
    if not any(isinstance(member, (list, tuple)) for member in value):
        value = [value]  # one polygon, not in a list of polygons
    elif len(value) > 2 and all(_is_point(member) for member in value):
        value = [value]  # one polygon, as points
    polygons = [polygon for polygon in map(_polygon, value) if polygon]
    if not polygons:
        return ReadSegmentation(None, NO_POLYGON)
    if len(polygons) < len(value):
        correction = f"mask: a part left out ({NO_POLYGON})"
    return ReadSegmentation(polygons, correction=correction)


def _is_point(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and len(value) == 2


def _is_sound(polygon: Any) -> bool:
    """Whether a polygon can be taken as it is; quick, as there are a million in COCO."""
    if type(polygon) is not list or len(polygon) < _FEWEST_COORDINATES or len(polygon) % 2:
        return False
    try:
        return math.isfinite(sum(polygon)) and _has_extent(polygon)
    except (TypeError, OverflowError):
        return False


def _has_extent(polygon: Sequence[float]) -> bool:
    xs, ys = polygon[::2], polygon[1::2]
    left, right, top, bottom = min(xs), max(xs), min(ys), max(ys)
    if left == right or top == bottom:
        return False
    if min(left, top) < -_LARGEST_COORDINATE_PX or max(right, bottom) > _LARGEST_COORDINATE_PX:
        return False
    if len(xs) > _MOST_CORNERS_MEASURED:
        return True
    return sum(xs[i - 1] * ys[i] - xs[i] * ys[i - 1] for i in range(len(xs))) != 0


def _polygon(value: Any) -> list[float] | None:
    if not isinstance(value, (list, tuple)):
        return None
    if value and all(map(_is_point, value)):
        value = [side for point in value for side in point]
    numbers = [finite_number(side) for side in value]
    is_polygon = len(numbers) >= _FEWEST_COORDINATES and len(numbers) % 2 == 0
    return numbers if is_polygon and None not in numbers and _has_extent(numbers) else None
