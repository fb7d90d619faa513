"""Tells boxes that are not `x, y, width, height` in pixels: shares, percent, corners, centres.

Such a file trains without an error and scores 0. It is refused, not corrected: a guess about every
box of a set is the owner's to make. Each mistake leaves traces that are counted here: values that
never leave a range, boxes that leave their image unless read the other way, outlines that fit the
other reading. `evidence` is the natural logarithm of the odds against chance.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

REMEDY = "COCO wants x, y, width, height in pixels: convert the boxes, or export the set again"

_FEWEST_BOXES = 3
_FEWEST_SCALED = 8  # different boxes; fewer may well lie in the first 100 pixels of their images
_LEAST_SHARE = 0.95  # of the boxes that must fit a mistake of the whole set
_LEAST_MIXED = 0.05  # of the boxes, for a mistake of a part of the set
_LEAST_OVERHANG = 0.2  # of the boxes that must leave the image as x, y, width, height
_EVIDENCE = 7.0  # odds of a thousand to one
_TOLERANCE_PX = 1.5
_FAR_SHARE = 0.1  # of the image's side: no sloppy edge, but another reading
# kind -> what such boxes are, and how they become x, y, width, height
_FORMS = {
    "corner": ("corners (x1, y1, x2, y2)", "Subtract x1 from x2 and y1 from y2"),
    "exchanged_corner": (
        "corners with x and y exchanged (y1, x1, y2, x2)",
        "Exchange x with y, then subtract x1 from x2 and y1 from y2",
    ),
    "centre": (
        "centres with sizes (centre x, centre y, width, height)",
        "Subtract half of the width from x and half of the height from y",
    ),
    "centred_corner": (
        "corners (x1, y1, x2, y2) that were taken for centres with sizes",
        "Write centres with sizes where they are asked for, as in the labels of YOLO",
    ),
    "centred": (
        "too far left and up by half of their sides: their first corners were taken for centres",
        "Write centres where they are asked for, as in the labels of YOLO, else add half of the "
        "width to x and half of the height to y",
    ),
    "exchanged": (
        "exchanged (y, x, height, width)",
        (
            "Exchange x with y and width with height, or, if the images lie on their side instead, "
            "their height with their width"
        ),
    ),
    "percent": (
        "percent of the image's sides",
        "Multiply x and width by the image's width over 100, y and height by its height over 100",
    ),
}
_SCALES = (("percent of the image's sides", 100.0), ("thousandths of the image's sides", 1000.0))
KINDS = ("fraction", *_FORMS)
"""What `FrameProblem.kind` may be."""


class FrameProblem(NamedTuple):
    """Boxes of a set that are not what COCO wants.

    kind: one of `KINDS`.
    is_fatal: so many that the set must not be trained on.
    where: bool [n], the boxes.
    what: a sentence on what they are.
    remedy: a sentence on what to do.
    """

    kind: str
    is_fatal: bool
    where: np.ndarray
    what: str
    remedy: str

    def describe(self, boxes: np.ndarray, places: list[str]) -> str:
        """Returns all of it with the first box as an example."""
        first = int(np.argmax(self.where))
        example = [round(value, 4) for value in boxes[first].tolist()]
        return f"{self.what}, for example {example} of {places[first]}. {self.remedy}. {REMEDY}"


def frame_problems(
    boxes: np.ndarray, sizes: np.ndarray, outlines: np.ndarray, images: np.ndarray
) -> list[FrameProblem]:
    """Lists the ways in which boxes are not `x, y, width, height` in pixels; [] if they are.

    Args:
      boxes: float64 [n, 4], as the file has them.
      sizes: float64 [n, 2], (width, height) of their images, NaN where nobody says.
      outlines: float64 [n, 4], (x1, y1, x2, y2) around their masks, NaN without any.
      images: int [n], number of each box's image.
    """
    if not len(boxes):
        return []
    found = []
    is_fraction = (boxes >= 0).all(axis=1) & (boxes <= 1.001).all(axis=1)
    is_fraction &= (boxes % 1 > 0).any(axis=1) & ~(sizes < 8).any(axis=1)
    if is_fraction.any():
        found.append(_fractions(boxes, sizes, images, is_fraction))
        if found[-1].where.all():
            return found
    rest = ~is_fraction
    boxes, sizes, outlines, images = boxes[rest], sizes[rest], outlines[rest], images[rest]
    other = (
        _scaled(boxes, sizes, images, is_sure=True)
        or _forms(boxes, sizes, outlines)
        or _scaled(boxes, sizes, images, is_sure=False)
        or _percent_in_part(boxes, sizes)
    )
    if other is not None:
        where = np.zeros(len(rest), bool)
        where[rest] = other.where
        found.append(other._replace(where=where))
    return found


def _fractions(
    boxes: np.ndarray, sizes: np.ndarray, images: np.ndarray, where: np.ndarray
) -> FrameProblem:
    count, n = int(where.sum()), len(boxes)
    reading = _other_reading(boxes[where], np.ones((count, 2)), unit=0.005)
    part = "" if where.mean() >= _LEAST_SHARE else " (the others do not: the set is a mix)"
    return FrameProblem(
        "fraction",
        count >= max(2, 0.01 * n) or n < _FEWEST_BOXES,
        where,
        f"{count} of {n} boxes lie within 0 and 1{part}: they are fractions of the image's sides",
        "Multiply x and width by the image's width, y and height by its height" + reading,
    )


def _scaled(
    boxes: np.ndarray, sizes: np.ndarray, images: np.ndarray, *, is_sure: bool
) -> FrameProblem | None:
    """Finds boxes that all end at 100 or 1000, whatever the size of their image.

    Images smaller than that tell less: many boxes then leave theirs (`is_sure` asks for more).
    """
    known = np.isfinite(sizes).all(axis=1)
    if known.sum() < _FEWEST_BOXES:
        return None
    boxes, sizes, images = boxes[known], sizes[known], images[known]
    if len(np.unique(boxes, axis=0)) < _FEWEST_SCALED:
        return None
    far = boxes[:, :2] + boxes[:, 2:]
    for name, scale in _SCALES:
        is_within = (boxes >= -0.001 * scale).all() and (boxes <= scale).all()
        low, half = boxes[:, :2], boxes[:, 2:] / 2
        for start, ends in ((low, far), (low - half, low + half), (low, boxes[:, 2:])):
            is_none = (start < -0.005 * scale) | (ends <= start)  # sides, centre or corners
            is_read = is_within and is_none.any(axis=1).mean() <= 1 - _LEAST_SHARE
            if not is_read or (ends > 1.005 * scale).any() or (ends.max(0) < 0.9 * scale).any():
                continue
            evidence = _evidence_of_range(ends, sizes, images, scale)
            leaves = (far > sizes + _TOLERANCE_PX).any(axis=1)
            is_small = (sizes < scale).all() and leaves.mean() >= _LEAST_OVERHANG
            if evidence < _EVIDENCE and (is_sure or not is_small):
                continue
            reading = _other_reading(boxes * np.tile(sizes / scale, 2), sizes)
            return FrameProblem(
                "percent",
                True,
                known.copy(),
                f"all {len(boxes)} boxes end within 0 and {scale:g}, however large their image is: "
                f"they are {name}",
                f"Multiply x and width by the image's width over {scale:g}, y and height by its "
                f"height over {scale:g}{reading}",
            )
    return None


def _percent_in_part(boxes: np.ndarray, sizes: np.ndarray) -> FrameProblem | None:
    """Finds far more boxes in the first 100 pixels of large images than belong there.

    A guess, as something may always be there (a clock, a logo): never fatal.
    """
    far = boxes[:, :2] + boxes[:, 2:]
    within = (far <= 100.5).all(axis=1) & (sizes > 200).all(axis=1)
    expected = np.minimum(100 / sizes, 1).prod(axis=1)[(sizes > 200).all(axis=1)].sum()
    if within.sum() < max(20, 4 * expected) or (far[within].max(axis=0) < 95).any():
        return None
    at_edge = (far[within] > 99).any(axis=1).mean()  # where in shares the border of the image is
    if at_edge < 0.05:
        return None
    return FrameProblem(
        "percent",
        False,
        within,
        f"{within.sum()} of {len(boxes)} boxes lie in the first 100 pixels of their image, "
        f"{expected:.0f} would by chance: a part of the set may be percent of the image's sides",
        f"If so: {_FORMS['percent'][1]}",
    )


def _other_reading(boxes: np.ndarray, sizes: np.ndarray, *, unit: float = 1.0) -> str:
    """Says what boxes are besides shares, '' if nothing; arguments as of `_forms`."""
    inside = _forms(boxes, sizes, np.full((len(boxes), 4), np.nan), unit=unit)
    return f". They look like {_FORMS[inside.kind][0]} as well: {inside.remedy}" if inside else ""


def _evidence_of_range(
    ends: np.ndarray, sizes: np.ndarray, images: np.ndarray, scale: float
) -> float:
    """Returns the odds against it that boxes in pixels happen to end at `scale`.

    No image has a box beyond it although there is room; and more boxes end just there, where the
    border of the image is in shares, than would by chance. Where not one does there is no evidence,
    and equal boxes are counted once.
    """
    _, distinct = np.unique(np.concatenate([ends, sizes], axis=1), axis=0, return_index=True)
    ends, sizes, images = ends[distinct], sizes[distinct], images[distinct]
    _, first = np.unique(images, return_index=True)
    room = np.log(np.maximum(sizes[first] / scale, 1.0)).sum()
    is_larger = sizes > 1.02 * scale
    at_edge = ((ends > 0.995 * scale) & is_larger).any(axis=1).sum()
    expected = (0.005 * scale / sizes)[is_larger].sum()
    if not at_edge:
        return 0.0
    hits = at_edge * math.log(at_edge / expected) - at_edge + expected if at_edge > expected else 0
    return float(room + hits)


def _forms(
    boxes: np.ndarray, sizes: np.ndarray, outlines: np.ndarray, *, unit: float = 1.0
) -> FrameProblem | None:
    """Finds corners and centres, and x exchanged with y; `unit` is a pixel in the boxes' units."""
    slack = _TOLERANCE_PX * unit
    low, sides = boxes[:, :2], boxes[:, 2:]
    readings = {
        "corner": np.concatenate([low, sides], axis=1),
        "exchanged_corner": np.concatenate([low[:, ::-1], sides[:, ::-1]], axis=1),
        "centre": np.concatenate([low - sides / 2, low + sides / 2], axis=1),
        "centred_corner": np.concatenate([low + sides / 2, sides], axis=1),
        "centred": np.concatenate([low + sides / 2, low + 1.5 * sides], axis=1),
        "exchanged": np.concatenate([low[:, ::-1], (low + sides)[:, ::-1]], axis=1),
        "percent": np.concatenate([low, low + sides], axis=1) * np.tile(sizes / 100, 2),
    }
    plain = np.concatenate([low, low + sides], axis=1)
    outlined = np.isfinite(outlines).all(axis=1)
    by_sides = np.abs(plain - outlines).max(axis=1) <= slack
    best = None
    for kind, corners in readings.items():
        by_this = np.abs(corners - outlines).max(axis=1) <= slack
        speaks = outlined & (by_this | by_sides) & ~(by_this & by_sides)
        told = speaks & by_this
        if told.sum() >= _FEWEST_BOXES and told.sum() >= _LEAST_MIXED * len(boxes):
            return _form(kind, told, len(boxes), "as the outlines of their masks show")
        if speaks.sum() >= _FEWEST_BOXES or kind == "percent":
            continue  # the outlines say that it is not so, or alone could say it
        where = _told_by_borders(kind, corners, plain, sizes, slack)
        if where is not None and (best is None or where.sum() > best.where.sum()):
            best = _form(kind, where, len(boxes), "or they would leave their images")
    return best


def _told_by_borders(
    kind: str, corners: np.ndarray, plain: np.ndarray, sizes: np.ndarray, slack: float
) -> np.ndarray | None:
    """Returns the boxes that another reading keeps inside their image, or None.

    Boxes of the right form leave their image seldom, and then by little.
    """
    n = len(plain)
    over = plain[:, 2:] - sizes
    if kind.startswith("centred"):
        over = np.maximum(over, -plain[:, :2])
    leaves = (over > slack).any(axis=1)
    far = (over > np.maximum(_FAR_SHARE * sizes, 2 * slack)).any(axis=1)
    if leaves.sum() < _FEWEST_BOXES:
        return None
    fits = (corners[:, :2] >= -slack).all(axis=1) & ~(corners[:, 2:] > sizes + slack).any(axis=1)
    fits &= (corners[:, 2:] > corners[:, :2]).all(axis=1)
    if kind in ("centre", "centred"):
        side = plain[:, 2:] - plain[:, :2]
        room = np.maximum(sizes - side, side / 2)
        # So many would not fit if they were as they stand.
        expected = np.nansum(np.clip(side / 2 / room, 0, 0.9))
        is_told = expected >= _EVIDENCE and leaves.sum() >= 0.2 * expected
        if kind == "centred":  # boxes are drawn past the first borders, too
            is_told = is_told and (~fits).sum() <= 0.2 * expected
        return np.ones(n, bool) if is_told and fits.mean() >= 0.98 else None
    if kind == "centred_corner" and far.mean() < _LEAST_OVERHANG:
        return None
    if fits.mean() >= _LEAST_SHARE and leaves.mean() >= _LEAST_OVERHANG:
        return np.ones(n, bool)
    if kind.startswith(("exchanged", "centred")):
        return None
    mixed = far & fits
    if mixed.sum() >= max(_FEWEST_BOXES, _LEAST_MIXED * n) and mixed.sum() >= 0.8 * far.sum():
        return mixed
    return None


def _form(kind: str, where: np.ndarray, n: int, reason: str) -> FrameProblem:
    name, remedy = _FORMS[kind]
    is_all = where.sum() >= _LEAST_SHARE * n
    which = "the boxes" if is_all else f"{int(where.sum())} of {n} boxes (a mix)"
    return FrameProblem(kind, True, where, f"{which} are {name}, {reason}", remedy)
