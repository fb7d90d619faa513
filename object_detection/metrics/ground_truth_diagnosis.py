"""Why two descriptions of the same ground truth do not agree.

Called only when the self-check has failed. Each usual mistake (units, order of coordinates, ids)
is undone in turn; the one after which the boxes meet is the answer.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from pycocotools import mask as mask_api

from object_detection.coco.listed import some

_MEETS = 0.95
"""IoU from which two boxes count as the same; COCO's strictest threshold."""
_MOST = 0.8
"""Share of boxes that must meet for a mistake to be named as the cause."""

_Boxes = np.ndarray
_MISTAKES: tuple[tuple[str, Callable[[_Boxes, np.ndarray], _Boxes]], ...] = (
    (
        "the boxes are normalised (0 to 1): multiply by image width and height",
        lambda boxes, sizes: boxes * np.tile(sizes, (1, 2)),
    ),
    (
        "x and y are exchanged: COCO wants (x, y, width, height)",
        lambda boxes, sizes: boxes[:, [1, 0, 3, 2]],
    ),
    (
        "the boxes are corners (x1, y1, x2, y2): COCO wants (x, y, width, height)",
        lambda boxes, sizes: np.column_stack([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]]),
    ),
    (
        "the boxes are corners (y1, x1, y2, x2): COCO wants (x, y, width, height)",
        lambda boxes, sizes: np.column_stack([boxes[:, 1::-1], boxes[:, 3:1:-1] - boxes[:, 1::-1]]),
    ),
)
_SAME_BOX_PIXELS = 0.1


def diagnose(
    rows: np.ndarray,
    truth: np.ndarray,
    *,
    everywhere: np.ndarray,
    image_sizes: np.ndarray,
    image_ids: Sequence[Any],
    names: Mapping[int, str],
) -> str:
    """Says in one sentence why `rows` do not score 1.0 against `truth`.

    Args:
      rows: float64 [n, 7], what was scored.
      truth: float64 [m, 7], the JSON's own boxes of the same images.
      everywhere: float64 [k, 7], those of all images, where misfiled ones turn up.
      image_sizes: float64 [num_images, 2], (width, height).
      image_ids: the data set's image id of each image index.
      names: class_id -> name.
    """
    overlap, partner = best_partners(rows, truth)
    if np.mean(overlap >= _MEETS) >= _MOST:
        return _class_or_count_problem(
            rows, truth, overlap=overlap, partner=partner, image_ids=image_ids, names=names
        )
    sizes = image_sizes[rows[:, 0].astype(np.int64)]
    for explanation, undo in _MISTAKES:
        if _share_met(_with_boxes(rows, undo(rows[:, 1:5], sizes)), truth) >= _MOST:
            return explanation
    scales = _scale_per_image(rows, truth)
    if _share_met(_with_boxes(rows, rows[:, 1:5] * scales[:, None]), truth) >= _MOST:
        return (
            f"the boxes are {1 / np.median(scales):.3f} times the JSON's: they are in the pixels "
            "of a resized image, not of the original one"
        )
    misfiled = _misfiled_images(rows, everywhere)
    if misfiled:
        pairs = [f"{image_ids[a]} belong to {image_ids[b]}" for a, b in misfiled]
        return f"image ids do not meet: boxes filed under image {some(pairs, 3)}"
    return (
        f"{100 * np.mean(overlap >= _MEETS):.0f}% of the boxes meet the JSON's (mean IoU "
        f"{overlap.mean():.2f}) and no usual mistake explains it; look at image "
        f"{image_ids[int(rows[np.argmin(overlap), 0])]}"
    )


def _class_or_count_problem(
    rows: np.ndarray,
    truth: np.ndarray,
    *,
    overlap: np.ndarray,
    partner: np.ndarray,
    image_ids: Sequence[Any],
    names: Mapping[int, str],
) -> str:
    """The boxes agree; the classes or the number of boxes do not."""
    met = overlap >= _MEETS
    confused = Counter(
        (int(given), int(expected))
        for given, expected in zip(rows[met, 6], truth[partner[met], 6])
        if given != expected
    )
    if confused:
        pairs = [
            f"{names[given]!r} (class {given}) where the JSON has {names[expected]!r} (class "
            f"{expected}), {count} boxes"
            for (given, expected), count in confused.most_common(3)
        ]
        return "the boxes meet but the class ids do not: " + "; ".join(pairs)
    back, _ = best_partners(truth, rows)
    lost = truth[back < _MEETS]
    extra = rows[~met]
    examples = [image_ids[int(index)] for index in np.unique([*lost[:, 0], *extra[:, 0]])]
    return (
        f"{len(lost)} of the JSON's {len(truth)} boxes are missing and {len(extra)} are not in "
        f"it, in images {some(examples)}"
    )


def best_partners(rows: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns for each row its best IoU with a box of the same image, and that box's index.

    Args:
      rows: [n, 7].
      truth: [m, 7].
    """
    overlap = np.zeros(len(rows))
    partner = np.zeros(len(rows), np.int64)
    for image in np.unique(rows[:, 0]):
        ours = np.nonzero(rows[:, 0] == image)[0]
        theirs = np.nonzero(truth[:, 0] == image)[0]
        if not len(theirs):
            continue
        iou = mask_api.iou(rows[ours, 1:5], truth[theirs, 1:5], [0] * len(theirs))
        overlap[ours] = iou.max(axis=1)
        partner[ours] = theirs[iou.argmax(axis=1)]
    return overlap, partner


def _share_met(rows: np.ndarray, truth: np.ndarray) -> float:
    return float(np.mean(best_partners(rows, truth)[0] >= _MEETS))


def _with_boxes(rows: np.ndarray, boxes: _Boxes) -> np.ndarray:
    return np.column_stack([rows[:, :1], boxes, rows[:, 5:]])


def _scale_per_image(rows: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Returns [n], the factor that makes an image's boxes as large in total as the JSON's."""
    factors = np.ones(len(rows))
    for image in np.unique(rows[:, 0]):
        ours = rows[:, 0] == image
        area = np.prod(rows[ours, 3:5], axis=1).sum()
        wanted = np.prod(truth[truth[:, 0] == image, 3:5], axis=1).sum()
        factors[ours] = np.sqrt(wanted / area) if area > 0 else 1.0
    return factors


def _misfiled_images(rows: np.ndarray, truth: np.ndarray) -> list[tuple[int, int]]:
    """Returns (image, image its boxes belong to) if most boxes turn up under another image."""
    moved = Counter()
    for row in rows:
        # Records hold float32 shares of the image's size: equal boxes differ a little in pixels.
        distance = np.abs(truth[:, 1:5] - row[1:5]).max(axis=1)
        nearest = int(np.argmin(distance))
        found = int(truth[nearest, 0])
        if distance[nearest] < _SAME_BOX_PIXELS and found != int(row[0]):
            moved[int(row[0]), found] += 1
    return [pair for pair, _ in moved.most_common()] if sum(moved.values()) >= len(rows) / 2 else []
