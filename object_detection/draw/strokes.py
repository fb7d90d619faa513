"""The strokes pictures are made of: outlines of boxes and label chips, in place on an image.

Coverage of each pixel is computed from its distance to the shape, so edges are smooth at any
position. Nothing here knows classes or scores; `visualize.py` decides what is drawn where.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from object_detection.draw.palette import DARK, Color, text_color_on

HALO = 0.45
"""Opacity of the dark seam around lines, which keeps them visible on any background."""


class Style(NamedTuple):
    """Sizes of what is drawn, in output pixels.

    line: width of the line of large boxes; small boxes get thinner ones.
    font: size of label text.
    """

    line: float
    font: int


def style_for(height: int, width: int, *, num_boxes: int) -> Style:
    """Returns sizes that look alike on a thumbnail and on a photograph, smaller in a crowd."""
    extent = math.sqrt(height * width)
    crowding = 1.0 if num_boxes <= 15 else 0.82
    return Style(
        line=max(1.2, crowding * extent / 250), font=max(11, round(crowding * extent / 36))
    )


def draw_outline(
    canvas: np.ndarray, box: np.ndarray, color: Color, *, style: Style, dashed: bool
) -> None:
    """Draws a rounded rectangle whose line lies just outside the box."""
    height, width = canvas.shape[:2]
    y1, x1, y2, x2 = box
    side = min(y2 - y1, x2 - x1)
    line = min(style.line, max(1.0, 0.06 * side))
    half = line / 2
    y1, x1 = max(y1 - half, half), max(x1 - half, half)
    y2, x2 = min(y2 + half, height - half), min(x2 + half, width - half)
    if y2 <= y1 or x2 <= x1:
        return
    radius = min(1.6 * style.line, 0.2 * side)
    reach = math.ceil(line + radius + 2)
    top, bottom = math.floor(y1) - reach, math.ceil(y2) + reach
    left, right = math.floor(x1) - reach, math.ceil(x2) + reach
    inner_top = min(math.floor(y1) + reach, bottom)
    inner_bottom = max(math.ceil(y2) - reach, inner_top)
    inner_left = min(math.floor(x1) + reach, right)
    inner_right = max(math.ceil(x2) - reach, inner_left)
    strips = (
        (top, inner_top, left, right),
        (inner_bottom, bottom, left, right),
        (inner_top, inner_bottom, left, inner_left),
        (inner_top, inner_bottom, inner_right, right),
    )
    for strip_top, strip_bottom, strip_left, strip_right in strips:
        rows = slice(max(strip_top, 0), min(strip_bottom, height))
        columns = slice(max(strip_left, 0), min(strip_right, width))
        if rows.start >= rows.stop or columns.start >= columns.stop:
            continue
        y = np.arange(rows.start, rows.stop)[:, None] + 0.5
        x = np.arange(columns.start, columns.stop)[None, :] + 0.5
        distance = np.abs(_rounded_box_distance(y, x, (y1, x1, y2, x2), radius))
        ink = np.clip(half + 0.5 - distance, 0, 1)
        if dashed:
            period = 5 * style.line
            along = np.where(np.minimum(abs(y - y1), abs(y - y2)) <= line, x, y)
            ink = ink * np.clip(1.2 * style.line - np.abs(along % period - period / 2) + 0.5, 0, 1)
        region = canvas[rows, columns]
        seam = np.clip(half + 1.3 - distance, 0, 1) * (ink if dashed else 1.0)
        _blend(region, DARK, HALO * seam)
        _blend(region, color, ink)


def _rounded_box_distance(
    y: np.ndarray, x: np.ndarray, box: tuple[float, float, float, float], radius: float
) -> np.ndarray:
    """Returns the signed distance of pixels to the outline, negative inside."""
    y1, x1, y2, x2 = box
    dy = np.abs(y - (y1 + y2) / 2) - (y2 - y1) / 2 + radius
    dx = np.abs(x - (x1 + x2) / 2) - (x2 - x1) / 2 + radius
    return (
        np.hypot(np.maximum(dy, 0), np.maximum(dx, 0)) + np.minimum(np.maximum(dy, dx), 0) - radius
    )


def draw_labels(
    canvas: np.ndarray,
    boxes: np.ndarray,
    texts: Sequence[str],
    *,
    colors: Sequence[Color],
    style: Style,
) -> None:
    """Places and draws the labels, those of the first boxes first."""
    height, width = canvas.shape[:2]
    chip_height = round(1.42 * style.font)
    small = [box for box in boxes if min(box[2] - box[0], box[3] - box[1]) < 3 * chip_height]
    taken: list[tuple[float, float, float, float]] = []
    for box, text, color in zip(boxes, texts, colors):
        chip_width = math.ceil(font_of(style.font).getlength(text) + 0.8 * style.font)
        for top, left in _label_places(box, chip_height, chip_width=chip_width, line=style.line):
            left = min(max(left, 0.0), width - chip_width)
            place = (top, left, top + chip_height, left + chip_width)
            if top < 0 or place[2] > height or left < 0:
                continue
            if any(_shared(place, other) > 0 for other in taken):
                continue
            if any(_shared(place, other) > 0.15 * box_area(other) for other in small):
                continue
            taken.append(place)
            _draw_chip(canvas, text, color, place=place, font_size=style.font)
            break


def _label_places(
    box: np.ndarray, chip_height: int, *, chip_width: int, line: float
) -> list[tuple[float, float]]:
    """Returns (top, left) of the places a label may take, the preferred first."""
    y1, x1, y2, x2 = box
    above, below = round(y1 - line - chip_height), round(y2 + line)
    left, right = round(x1 - line), round(x2 + line - chip_width)
    places: list[tuple[float, float]] = [(above, left)]
    is_large = y2 - y1 > 3 * chip_height and x2 - x1 > 1.15 * chip_width
    if is_large:
        places.append((math.ceil(y1 + line / 2), math.ceil(x1 + line / 2)))
    places += [(above, right), (below, left), (below, right)]
    if is_large:
        places.append((math.ceil(y1 + line / 2), math.floor(x2 - line / 2 - chip_width)))
        places.append((math.floor(y2 - line / 2 - chip_height), math.ceil(x1 + line / 2)))
    else:
        places += [(y1, x2 + line + 1), (y1, x1 - line - 1 - chip_width)]
    return [(float(round(top)), float(round(left))) for top, left in places]


def _draw_chip(
    canvas: np.ndarray,
    text: str,
    color: Color,
    *,
    place: tuple[float, float, float, float],
    font_size: int,
) -> None:
    top, left, bottom, right = (int(value) for value in place)
    region = canvas[top:bottom, left:right]
    y = np.arange(bottom - top)[:, None] + 0.5
    x = np.arange(right - left)[None, :] + 0.5
    distance = _rounded_box_distance(
        y, x, (0, 0, bottom - top, right - left), radius=0.22 * font_size
    )
    _blend(region, color, 0.94 * np.clip(0.5 - distance, 0, 1))
    ink = Image.new("L", (right - left, bottom - top))
    ImageDraw.Draw(ink).text(
        ((right - left) / 2, (bottom - top) / 2 + 0.36 * font_size),
        text,
        fill=255,
        font=font_of(font_size),
        anchor="ms",
    )
    _blend(region, text_color_on(color), np.asarray(ink, np.float64) / 255.0)


def _blend(region: np.ndarray, color: Color, alpha: np.ndarray) -> None:
    """Mixes a colour into a uint8 view [h, w, 3] in place; alpha [h, w], 0 to 1."""
    mixed = region + (np.array(color, np.float64) - region) * alpha[..., None]
    region[...] = np.round(mixed).astype(np.uint8)


def box_area(box: Sequence[float] | np.ndarray) -> float:
    """Returns the area of a box (y1, x1, y2, x2)."""
    return float((box[2] - box[0]) * (box[3] - box[1]))


def _shared(a: Sequence[float], b: Sequence[float] | np.ndarray) -> float:
    """Returns the area two boxes have in common."""
    height = min(a[2], b[2]) - max(a[0], b[0])
    width = min(a[3], b[3]) - max(a[1], b[1])
    return float(height * width) if height > 0 and width > 0 else 0.0


@functools.lru_cache(maxsize=32)
def font_of(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Returns Pillow's own TrueType font, so that no system font is needed."""
    return ImageFont.load_default(size)
