"""Draws boxes and labels on images, and lays images out on a sheet; masks: `draw_masks`.

NumPy in, NumPy out: uint8 RGB. Lines are computed as the share of each pixel that they cover, so
boxes at fractional positions look as smooth as text.

A label must not hide what it names. Labels go above the box where that place is free, else to
another edge, inside only where the box is large; an object without a free place for its label keeps
its line only.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Union

import numpy as np
from PIL import Image, ImageDraw

from object_detection.draw.palette import Color, class_color
from object_detection.draw.strokes import (
    box_area,
    draw_labels,
    draw_outline,
    font_of,
    style_for,
)
from outside_data.text import clean

Names = Union[Mapping[int, str], Sequence[str], None]

_MOST_OF_A_LABEL = 100  # characters
_GAP = 12  # between images of a sheet, pixels
_SHEET_BACKGROUND: Color = (24, 26, 32)
_SHEET_TEXT: Color = (222, 224, 230)


def class_name(names: Names, class_id: int) -> str:
    """Returns the name of a class as it is drawn, or `class 7` where the map does not have it."""
    class_id = int(class_id)
    if isinstance(names, Mapping):
        return clean(names.get(class_id, f"class {class_id}"), most=_MOST_OF_A_LABEL)
    if names is not None and 0 <= class_id < len(names):
        return clean(names[class_id], most=_MOST_OF_A_LABEL)
    return f"class {class_id}"


def draw_boxes(
    image: np.ndarray,
    boxes: np.ndarray,
    classes: np.ndarray,
    *,
    scores: np.ndarray | None = None,
    names: Names = None,
    max_objects: int = 100,
    zoom: float = 1.0,
    labels: bool = True,
    crowd: np.ndarray | None = None,
    colors: Sequence[Color] | None = None,
) -> np.ndarray:
    """Draws boxes, each with a label `name 87%`.

    Args:
      image: uint8 [h, w, 3].
      boxes: [n, 4], (y1, x1, y2, x2), pixels of the image.
      classes: int [n], class ids; rows of class -1 are padding and skipped.
      scores: [n]; without them labels are names only.
      names: class_id -> name.
      max_objects: the best so many are drawn; the largest, without scores.
      zoom: the result is this many times as large as the image, lines and text drawn at its
        size; more than 1 helps small images.
      labels: False draws lines only.
      crowd: bool [n], boxes to draw with a broken line.
      colors: of the boxes; None: those of their classes.

    Returns:
      uint8 [round(h * zoom), round(w * zoom), 3]; the input is left as it is.
    """
    boxes = np.asarray(boxes, np.float64).reshape(-1, 4)
    classes = np.asarray(classes).reshape(-1)
    require_rows(len(boxes), classes=classes, scores=scores, crowd=crowd, colors=colors)
    if colors is None:
        colors = [class_color(k) for k in classes]
    canvas = zoomed(image, zoom)
    stretch = np.array(canvas.shape[:2]) / np.array(image.shape[:2])
    boxes = boxes * np.tile(stretch, 2)
    order = drawing_order(boxes, classes, scores)[:max_objects]
    style = style_for(*canvas.shape[:2], num_boxes=len(order))
    # Small boxes last, so that a large one never covers them.
    for i in sorted(order, key=lambda i: -box_area(boxes[i])):
        is_dashed = crowd is not None and bool(crowd[i])
        draw_outline(canvas, boxes[i], colors[i], style=style, dashed=is_dashed)
    if labels:
        texts = [
            label_text(names, classes[i], None if scores is None else scores[i]) for i in order
        ]
        draw_labels(canvas, boxes[order], texts, colors=[colors[i] for i in order], style=style)
    return canvas


def contact_sheet(
    images: Sequence[np.ndarray],
    columns: int,
    captions: Sequence[str] | None = None,
    *,
    cell: tuple[int, int] = (360, 480),
    title: str = "",
) -> np.ndarray:
    """Lays images out in rows.

    Args:
      images: uint8 [h, w, 3] each, of any sizes.
      columns: images in a row.
      captions: one line under each image.
      cell: (height, width) that each image is scaled to fit into, in pixels.
      title: a line on top.

    Returns:
      uint8 [H, W, 3].
    """
    if not len(images) or columns < 1:
        raise ValueError(f"nothing to lay out: {len(images)} images in {columns} columns")
    if captions is not None and len(captions) != len(images):
        raise ValueError(f"{len(captions)} captions for {len(images)} images")
    fitted = [_fitted(image, cell) for image in images]
    rows = [fitted[i : i + columns] for i in range(0, len(fitted), columns)]
    font_size = max(12, cell[1] // 28)
    caption_height = round(1.9 * font_size) if captions is not None else 0
    title_height = round(2.6 * font_size) if title else 0
    heights = [max(picture.height for picture in row) + caption_height for row in rows]
    width = _GAP + min(columns, len(images)) * (cell[1] + _GAP)
    sheet = Image.new(
        "RGB", (width, title_height + _GAP + sum(heights) + _GAP * len(rows)), _SHEET_BACKGROUND
    )
    draw = ImageDraw.Draw(sheet)
    if title:
        draw.text(
            (_GAP, _GAP), clean(title), fill=_SHEET_TEXT, font=font_of(round(1.3 * font_size))
        )
    top = title_height + _GAP
    for r, row in enumerate(rows):
        for c, picture in enumerate(row):
            left = _GAP + c * (cell[1] + _GAP)
            room = heights[r] - caption_height
            offset = (left + (cell[1] - picture.width) // 2, top + (room - picture.height) // 2)
            sheet.paste(picture, offset)
            if captions is not None:
                text = _shortened(clean(captions[r * columns + c]), cell[1], font_size)
                draw.text(
                    (left + cell[1] / 2, top + room + caption_height / 2),
                    text,
                    fill=_SHEET_TEXT,
                    font=font_of(font_size),
                    anchor="mm",
                )
        top += heights[r] + _GAP
    return np.asarray(sheet)


def drawing_order(boxes: np.ndarray, classes: np.ndarray, scores: np.ndarray | None) -> list[int]:
    """Returns indices of what is to be drawn, best (or largest) first; arguments: `draw_boxes`."""
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    drawable = (classes >= 0) & (area > 0) & np.isfinite(boxes).all(axis=1)
    priority = area if scores is None else np.asarray(scores, np.float64)
    order = np.argsort(-np.nan_to_num(priority), kind="stable")
    return [int(i) for i in order if drawable[i]]


def label_text(names: Names, class_id: int, score: float | None) -> str:
    """Returns what a label says: `name 87%`, or the name where there is no score."""
    text = class_name(names, class_id)
    # Not rounded: 100% is for certainty. The small term undoes float32's 0.29 -> 0.28999999.
    return text if score is None else f"{text} {math.floor(100 * float(score) + 1e-4)}%"


def zoomed(image: np.ndarray, zoom: float) -> np.ndarray:
    """Returns a writable copy of a uint8 image [h, w, 3] at its output size."""
    image = np.asarray(image)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"expected a uint8 image [h, w, 3], got {image.dtype} {image.shape}")
    if zoom == 1.0:
        return image.copy()
    size = (max(1, round(image.shape[1] * zoom)), max(1, round(image.shape[0] * zoom)))
    return np.array(Image.fromarray(image).resize(size, Image.Resampling.LANCZOS))


def require_rows(count: int, **columns: np.ndarray | None) -> None:
    """Raises ValueError, naming the column, if one has not `count` rows."""
    for name, values in columns.items():
        if values is not None and len(values) != count:
            raise ValueError(f"{len(values)} {name} for {count} boxes or masks")


def _fitted(image: np.ndarray, cell: tuple[int, int]) -> Image.Image:
    picture = Image.fromarray(np.asarray(image, np.uint8))
    scale = min(cell[0] / picture.height, cell[1] / picture.width)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    return picture if size == picture.size else picture.resize(size, Image.Resampling.LANCZOS)


def _shortened(text: str, width: int, font_size: int) -> str:
    """Cuts a caption that is too long for its cell, in the middle, where file names are dull."""
    font = font_of(font_size)
    if font.getlength(text) <= width:
        return text
    keep = len(text) - 1
    while keep > 2 and font.getlength(text[: keep // 2] + "…" + text[-(keep // 2) :]) > width:
        keep -= 1
    return text[: keep // 2] + "…" + text[-(keep // 2) :]
