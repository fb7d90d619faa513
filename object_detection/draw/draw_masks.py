"""Draws instance masks, and heat maps of where a model sees objects.

A pixel is tinted by one object only, the smallest that covers it: fills never add up, and the image
stays visible. Contours are drawn last, by exact distance from the smooth outline, so they are crisp
at any zoom. Crowd regions are hatched.

Colours. With several classes an object has the colour of its class; in a data set of one class that
would say nothing, so there each object has its own.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from object_detection.draw.contours import Field, mask_box, signed_distance
from object_detection.draw.palette import DARK, Color, class_color
from object_detection.draw.strokes import (
    HALO,
    Style,
    box_area,
    draw_labels,
    draw_outline,
    style_for,
)
from object_detection.draw.visualize import (
    Names,
    drawing_order,
    label_text,
    require_rows,
    zoomed,
)
from object_detection.masks.mask_paste import OUR_RULE, MaskRule, paste_probabilities, paste_region

WEIGHTS = ("probability", "score")

_OPACITY = 0.45  # of fills
# Colours of a heat map from cold to hot, evenly spaced; opacity grows alike.
_HEAT = np.array([(38, 18, 96), (132, 30, 142), (224, 62, 92), (252, 148, 44), (255, 242, 150)])
_HEAT_OPACITY = (0.0, 0.62, 0.74, 0.8, 0.84)
# Share of light that an image keeps under a heat map.
_DIMMED = 0.62
# From so many objects on, one smaller than its label goes without it.
_CROWDED = 30


def draw_masks(
    image: np.ndarray,
    masks: np.ndarray,
    classes: np.ndarray,
    *,
    scores: np.ndarray | None = None,
    names: Names = None,
    max_objects: int = 100,
    zoom: float = 1.0,
    labels: bool = True,
    boxes: np.ndarray | None = None,
    all_boxes: bool = True,
    crowd: np.ndarray | None = None,
    colors: Sequence[Color] | None = None,
) -> np.ndarray:
    """Draws instance masks with a translucent fill, a contour and a label.

    Args:
      image: uint8 [h, w, 3].
      masks: bool [n, h, w], whole-image masks.
      classes: as of `draw_boxes`, like `scores`, `max_objects`, `zoom` and `labels`.
      names: class_id -> name. Where it holds one class and there are no `colors`, labels leave
        the name out.
      boxes: [n, 4], (y1, x1, y2, x2), pixels of the image, to draw thinly as well; none by default.
        An object whose mask is empty is then drawn as its box.
      all_boxes: False draws the boxes of such objects only.
      crowd: bool [n], masks to fill with stripes.
      colors: of the masks, instead of colours by class or instance.

    Returns:
      uint8 [round(h * zoom), round(w * zoom), 3]; the input is left as it is.

    Raises:
      ValueError: lengths do not meet.
    """
    masks = np.asarray(masks, bool).reshape(-1, *np.shape(image)[:2])
    classes = np.asarray(classes).reshape(-1)
    columns = {"classes": classes, "scores": scores, "boxes": boxes, "crowd": crowd}
    require_rows(len(masks), **columns, colors=colors)
    canvas = zoomed(image, zoom)
    stretch = np.tile(np.array(canvas.shape[:2]) / np.array(image.shape[:2]), 2)
    extents = np.array([mask_box(mask) for mask in masks], np.float64).reshape(-1, 4)
    is_empty = extents[:, 2] <= extents[:, 0]
    extents *= stretch
    if boxes is not None:
        boxes = np.asarray(boxes, np.float64).reshape(-1, 4) * stretch
        extents[is_empty] = boxes[is_empty]
    order = drawing_order(extents, classes, scores)[:max_objects]
    style = style_for(*canvas.shape[:2], num_boxes=len(order))
    has_one_class = colors is None and names is not None and len(names) == 1
    if colors is None:
        keys = range(len(order)) if has_one_class else classes[order]
        colors = {i: class_color(key) for i, key in zip(order, keys)}
    striped = {i for i in order if crowd is not None and crowd[i]}
    # Small ones last, so that a large one never covers them; crowds below all.
    by_size = sorted(order, key=lambda i: (i not in striped, -masks[i].sum()))
    _draw_shapes(canvas, [(masks[i], colors[i], i in striped) for i in by_size], style)
    if boxes is not None:
        thin = style._replace(line=max(1.0, 0.5 * style.line))
        for i in by_size:
            if all_boxes or is_empty[i]:
                draw_outline(canvas, boxes[i], colors[i], style=thin, dashed=i in striped)
    if labels:
        texts = {
            i: _mask_label(
                names,
                classes[i],
                None if scores is None else float(scores[i]),
                is_crowd=i in striped,
                with_name=not has_one_class,
            )
            for i in order
        }
        is_few = len(order) <= _CROWDED
        shown = [i for i in order if is_few or box_area(extents[i]) > (3 * style.font) ** 2]
        shown = [i for i in shown if texts[i]]
        anchors = [_label_anchor(masks[i], extents[i], stretch) for i in shown]
        draw_labels(
            canvas,
            np.array(anchors, np.float64).reshape(-1, 4),
            [texts[i] for i in shown],
            colors=[colors[i] for i in shown],
            style=style,
        )
    return canvas


def draw_heat_map(image: np.ndarray, heat: np.ndarray, *, zoom: float = 1.0) -> np.ndarray:
    """Lays a heat map over a dimmed grey image: dark violet is little, light yellow is 1.

    Args:
      image: uint8 [h, w, 3].
      heat: [h, w], 0 to 1, see `mask_heat`.
      zoom: the result is this many times as large as the image.

    Returns:
      uint8 [round(h * zoom), round(w * zoom), 3]; the input is left as it is.
    """
    if np.shape(heat) != np.shape(image)[:2]:
        raise ValueError(f"heat {np.shape(heat)} does not fit the image {np.shape(image)}")
    canvas = zoomed(image, zoom).astype(np.float32)
    grey = canvas @ np.array([0.299, 0.587, 0.114], np.float32)
    quantised = np.round(np.clip(np.nan_to_num(heat), 0, 1) * 255).astype(np.uint8)
    level = zoomed(np.repeat(quantised[..., np.newaxis], 3, axis=-1), zoom)[..., 0]
    stops, steps = np.linspace(0, 255, len(_HEAT)), np.arange(256)
    colors = np.stack([np.interp(steps, stops, channel) for channel in _HEAT.T], axis=-1)
    opacity = np.interp(steps, stops, _HEAT_OPACITY)[level][..., np.newaxis]
    mixed = _DIMMED * grey[..., np.newaxis] * (1 - opacity) + colors[level] * opacity
    return np.round(mixed).astype(np.uint8)


def mask_heat(
    masks: np.ndarray,
    boxes: np.ndarray,
    scores: np.ndarray,
    *,
    height: int,
    width: int,
    weigh_by: str = "probability",
    rule: MaskRule = OUR_RULE,
) -> np.ndarray:
    """Tells how sure a model is that a pixel belongs to an object, the surest object counting.

    Args:
      masks: [n, s, s], probabilities within the boxes.
      boxes: [n, 4], (y1, x1, y2, x2), pixels of the image.
      scores: [n].
      height, width: of the image, pixels.
      weigh_by: 'probability': score x probability of the mask; 'score': score where the mask is.
      rule: how masks are pasted.

    Returns:
      float32 [height, width], 0 to 1.

    Raises:
      ValueError: `weigh_by` is unknown, or lengths differ.
    """
    if weigh_by not in WEIGHTS:
        raise ValueError(f"weigh_by={weigh_by!r}: expected one of {', '.join(WEIGHTS)}")
    require_rows(len(masks), boxes=boxes, scores=scores)
    heat = np.zeros((height, width), np.float32)
    paste = paste_region if weigh_by == "score" else paste_probabilities
    for mask, box, score in zip(masks, boxes, scores):
        top, left, region = paste(mask, box, height=height, width=width, rule=rule)
        place = heat[top : top + region.shape[0], left : left + region.shape[1]]
        np.maximum(place, np.float32(score) * region, out=place)
    return heat


def _draw_shapes(
    canvas: np.ndarray, shapes: Sequence[tuple[np.ndarray, Color, bool]], style: Style
) -> None:
    """Fills and outlines (mask, colour, is hatched), each hiding what it covers of those before."""
    height, width = canvas.shape[:2]
    # Two layers: fills and lines; of each the colour and how much of it.
    tint, ink = canvas.astype(np.float32), canvas.astype(np.float32)
    tint_share, ink_share, seam_share = (np.zeros((height, width), np.float32) for _ in range(3))
    for mask, color, is_hatched in shapes:
        side = np.sqrt(mask.sum() * (height / mask.shape[0]) * (width / mask.shape[1]))
        line = float(min(style.line, max(1.0, 0.06 * side)))
        field = signed_distance(mask, height=height, width=width, reach=line + 2.5)
        if field is None:
            continue
        place = (field.rows, field.columns)
        inside = np.clip(field.distance + 0.5, 0, 1)
        strength = _OPACITY * (_stripes(field, style.line) if is_hatched else 1.0)
        _mix(tint[place], np.array(color, np.float32), inside[..., np.newaxis])
        _mix(tint_share[place], strength, inside)
        # A little to the inside: objects that touch keep a contour each.
        gap = np.abs(field.distance - 0.3 * line)
        broken = _stripes(field, style.line, rest=0.0) if is_hatched else 1.0
        for share, reach in ((ink_share, 0.5), (seam_share, 1.2)):
            _mix(share[place], 0.0, inside)
            _mix(share[place], 1.0, np.clip(line / 2 + reach - gap, 0, 1) * broken)
        _mix(ink[place], np.array(color, np.float32), (gap < line / 2 + 1)[..., np.newaxis])
    picture = canvas.astype(np.float32)
    _mix(picture, tint, tint_share[..., np.newaxis])
    _mix(picture, np.array(DARK, np.float32), HALO * seam_share[..., np.newaxis])
    _mix(picture, ink, ink_share[..., np.newaxis])
    canvas[...] = np.round(picture).astype(np.uint8)


def _mix(target: np.ndarray, value: np.ndarray | float, share: np.ndarray) -> None:
    """Moves an array towards a value in place; share 0 to 1."""
    target += (value - target) * share


def _stripes(field: Field, line: float, *, rest: float = 0.3) -> np.ndarray:
    """Returns [rows, columns]: 1 in diagonal stripes as wide as the gaps, where it is `rest`."""
    y = np.arange(field.rows.start, field.rows.stop)[:, np.newaxis]
    x = np.arange(field.columns.start, field.columns.stop)
    period = 5.0 * line
    across = np.abs((y + x) / np.sqrt(2) % period - period / 2)
    return rest + (1 - rest) * np.clip(period / 4 - across + 0.5, 0, 1)


def _mask_label(
    names: Names, class_id: int, score: float | None, *, is_crowd: bool, with_name: bool
) -> str:
    """Returns `name 87%`, or what of it says something; '' if nothing does."""
    words = label_text(names, class_id, score).split(" ")
    if not with_name:
        words = [] if score is None else words[-1:]
    return " ".join([*words, "(crowd)"] if is_crowd else words)


def _label_anchor(mask: np.ndarray, extent: np.ndarray, stretch: np.ndarray) -> np.ndarray:
    """Returns the extent from where the top of the mask begins: there the label is near it."""
    top, _, bottom, _ = np.round(extent / stretch).astype(int)
    band = mask[max(top, 0) : top + max(1, (bottom - top) // 12)]
    columns = np.flatnonzero(band.any(axis=0))
    if not len(columns):
        return extent
    return np.array([extent[0], columns[0] * stretch[1], extent[2], extent[3]])
