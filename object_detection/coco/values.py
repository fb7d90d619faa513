"""Single values of a COCO annotation file: ids, numbers, boxes, areas, crowd flags.

Exporters write numbers as text, flags as words and ids as floats. Every function here takes what
JSON can hold and returns what it means, or None where nobody can tell.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from outside_data.text import encodable

SMALLEST_SIDE_PX = 1e-3
"""Least width and height of a box; also how far out of its image one still counts as inside."""

_LARGEST_ID = 2**63 - 1  # records hold labels as int64
_WHOLE_NUMBER = re.compile(r"(\d+)(\.0*)?")
_FALSE_WORDS = {"", "0", "0.0", "false", "no", "n", "f", "none", "null"}
_TRUE_WORDS = {"1", "1.0", "true", "yes", "y", "t"}


def id_text(value: Any) -> str:
    """Returns an id as text; 7, 7.0, "7", "7.0" and b"7" are one id. '' where there is none."""
    if isinstance(value, bytes):
        value = value.decode("utf-8")
    if isinstance(value, str):
        text = value.strip()
        match = _WHOLE_NUMBER.fullmatch(text)
        return match[1] if match else encodable(text)
    if isinstance(value, float):
        if not math.isfinite(value):
            return ""
        value = int(value) if value.is_integer() else value
    return "" if value is None or isinstance(value, (bool, list, dict)) else str(value)


def category_number(value: Any) -> int | None:
    """Returns a category id, an integer from 0 that a record can hold, or None."""
    text = id_text(value)
    if not (text.isascii() and text.isdecimal()) or len(text) > len(str(_LARGEST_ID)):
        return None
    return int(text) if int(text) <= _LARGEST_ID else None


def finite_number(value: Any) -> float | None:
    """Returns a number, also one written as text, or None; true and false are no numbers."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def positive_pixels(value: Any) -> int | None:
    """Returns a side of an image in whole pixels, or None where none is stated."""
    number = finite_number(value)
    return round(number) if number is not None and number >= 1 else None


def has_box(value: Any) -> bool:
    """Whether anything is stated; null, '', [] and {} state no box."""
    return value is not None and value not in ("", [], {})


def finite_box(value: Any) -> list[float] | None:
    """Returns `[x, y, width, height]`, or None unless there are four finite numbers.

    They may stand under these names, or in a list of their own.
    """
    if isinstance(value, str):
        value = re.split(r"[\s,;]+", value.strip().strip("[]()").strip())
    if isinstance(value, Mapping):
        value = [value.get(key) for key in ("x", "y", "width", "height")]
    elif isinstance(value, (list, tuple)) and len(value) == 1:
        (value,) = value
    if not isinstance(value, (list, tuple)) or len(value) != 4:
        return None
    numbers = [finite_number(side) for side in value]
    return None if None in numbers else numbers


def box_rotation(entry: Mapping[str, Any]) -> float:
    """Returns by how many degrees CVAT says that a box is turned about its middle; 0 if not."""
    attributes = entry.get("attributes")
    rotation = attributes.get("rotation") if isinstance(attributes, Mapping) else None
    return (finite_number(rotation) or 0.0) % 360.0


def is_text(value: Any) -> bool:
    """Whether a value, or a member of a list, is text."""
    return isinstance(value, str) or (
        isinstance(value, (list, tuple)) and any(isinstance(member, str) for member in value)
    )


def positive_area(value: Any) -> float | None:
    """Returns an area in square pixels, or None where none above 0 is stated."""
    number = finite_number(value)
    return number if number is not None and number > 0 else None


def crowd_flag(value: Any) -> bool | None:
    """Returns whether an object is a crowd region; None where the value means neither."""
    if value is None:
        return False
    if isinstance(value, str):
        word = value.strip().lower()
        return False if word in _FALSE_WORDS else True if word in _TRUE_WORDS else None
    return bool(value) if isinstance(value, (bool, int, float)) and value in (0, 1) else None
