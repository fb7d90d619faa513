"""How well the anchors of a model fit the boxes of a set at a network size, and what would change.

A box whose best anchor overlaps it by less than the matching threshold is learned from that one
anchor only, and badly. Anchors are taken where they are: on the grid of their level.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from scipy.cluster.vq import kmeans2

from object_detection.check.findings import CheckFinding
from object_detection.check.split_table import SplitTable

_MATCH = 0.5
_SIZE_STEP = 128  # what the network's sides are multiples of
_MOST_BOXES = 20_000
_LOW_RECALL = 0.9
_GAIN = 0.03  # of recall, for a change to be named
_SIZES = (("small (under 32 px)", 0, 32), ("medium", 32, 96), ("large", 96, float("inf")))
_SHAPE_CLUSTERS = 3
_ROUNDS = 20
_ANCHOR_SCALES = (0.5, 0.625, 0.75, 1.25, 1.5, 2.0)


@dataclasses.dataclass(frozen=True)
class AnchorLayout:
    """Anchors of a model.

    Attributes:
      strides: pixels per cell of each level.
      shapes: for each level [n, 2], (width, height), network pixels.
      limits: the network's input: (short side, long side) of the resized image at most.
      scale: the setting that all sides are in proportion to, and its numbers.
    """

    strides: Sequence[float]
    shapes: Sequence[np.ndarray]
    limits: tuple[float, float]
    scale: tuple[str, Sequence[float]]

    def at(self, side: int) -> AnchorLayout:
        """Returns the layout at a square network input of this side."""
        return dataclasses.replace(self, limits=(side, side))

    def scales(self, sizes: np.ndarray) -> np.ndarray:
        """Returns [n], by what images of (width, height) are resized."""
        return np.minimum(self.limits[0] / sizes.min(axis=1), self.limits[1] / sizes.max(axis=1))


def anchor_fit(
    table: SplitTable, layout: AnchorLayout
) -> tuple[dict[str, Any], list[CheckFinding]]:
    """Returns what the report says of anchors for a training split, and findings."""
    usable = np.isfinite(table.sizes).all(axis=1) & (table.boxes[:, 2:] > 0).all(axis=1)
    usable &= ~table.is_crowd
    indices = np.flatnonzero(usable)
    if not len(indices):
        return {}, []
    step = -(-len(indices) // _MOST_BOXES)
    indices = indices[::step]
    boxes = _scaled(table, indices, layout)
    best = best_overlaps(boxes, layout)
    recall = float((best > _MATCH).mean())
    side = np.sqrt(boxes[:, 2:].prod(axis=1))
    by_size = {
        name: [float((best[where] > _MATCH).mean()), step * int(where.sum())]
        for name, low, high in _SIZES
        if (where := (side >= low) & (side < high)).any()
    }
    smallest = min(float(np.sqrt(shape.prod(axis=1)).min()) for shape in layout.shapes)
    changes = dict(_changes(table, indices, layout))
    parts = ", ".join(f"{name} {share:.0%} of {n:,}" for name, (share, n) in by_size.items())
    facts = {
        "summary": f"anchors at {layout.limits[0]:g} x {layout.limits[1]:g}: {recall:.1%} of boxes "
        f"have one with IoU over {_MATCH}; {parts}; smallest anchor {smallest:.0f} px",
        "recall": recall,
        "recall_by_size": by_size,
        "smallest_anchor_px": smallest,
        "changes": changes,
        "common_shapes_px": common_shapes(boxes[:, 2:]),
    }
    return facts, list(_findings(table, indices, step, best, side, facts))


def _findings(
    table: SplitTable,
    indices: np.ndarray,
    step: int,
    best: np.ndarray,
    side: np.ndarray,
    facts: dict[str, Any],
) -> Iterator[CheckFinding]:
    """Yields what is badly fitted; each of the boxes looked at stands for `step` of the set."""
    recall, smallest = facts["recall"], facts["smallest_anchor_px"]
    gains = {name: value for name, value in facts["changes"].items() if value > recall + _GAIN}
    better = sorted(gains, key=gains.get, reverse=True)[:4]
    advice = "; ".join(f"{name} gives {gains[name]:.0%}" for name in better)
    advice = advice and f"As --hparams, {advice}"
    shapes = ", ".join(f"{w:.0f} x {h:.0f}" for w, h in facts["common_shapes_px"])
    worst = indices[np.argsort(best, kind="stable")]
    if recall < _LOW_RECALL:
        yield CheckFinding(
            "warning",
            "anchor_recall",
            table.name,
            f"only {recall:.1%} of boxes have an anchor with IoU over {_MATCH}",
            (advice or "No single change of scale or input size helps")
            + f". Common shapes (width x height in network pixels, k-means): {shapes}",
            count=step * (best <= _MATCH).sum(),
            examples=table.places(worst),
        )
    small = side < 0.75 * smallest
    if small.mean() > 0.02:
        yield CheckFinding(
            "warning" if small.mean() > 0.1 else "note",
            "below_smallest_anchor",
            table.name,
            f"{small.mean():.1%} of boxes are smaller than three quarters of the smallest anchor "
            f"({smallest:.0f} px) at this input size; the median is {np.median(side):.0f} px",
            "Raise the input size (--image_size), cut the images into tiles, or make the anchors "
            "smaller" + (f". {advice}" if advice else ""),
            count=step * small.sum(),
            examples=table.places(indices[np.argsort(side, kind="stable")]),
        )


def best_overlaps(boxes: np.ndarray, layout: AnchorLayout) -> np.ndarray:
    """Returns [n], the IoU of each box with its best anchor, in the middle of a cell.

    `boxes` are float64 [n, 4], x, y, width, height, network pixels.
    """
    centres, sides = boxes[:, :2] + boxes[:, 2:] / 2, boxes[:, 2:]
    best = np.zeros(len(boxes))
    for stride, shapes in zip(layout.strides, layout.shapes):
        nearest = (np.floor(centres / stride) + 0.5) * stride
        offset = np.abs(nearest - centres)
        for shape in shapes:
            shared = np.minimum(np.minimum(sides, shape), (sides + shape) / 2 - offset)
            shared = np.clip(shared, 0, None).prod(axis=1)
            union = sides.prod(axis=1) + shape.prod() - shared
            best = np.maximum(best, shared / union)
    return best


def _scaled(table: SplitTable, indices: np.ndarray, layout: AnchorLayout) -> np.ndarray:
    """Returns some boxes in network pixels."""
    return table.boxes[indices] * layout.scales(table.sizes[indices])[:, None]


def _changes(
    table: SplitTable, indices: np.ndarray, layout: AnchorLayout
) -> Iterator[tuple[str, float]]:
    """Yields what another anchor scale, input size or shapes would give: --hparams, recall."""
    boxes = _scaled(table, indices, layout)
    for factor in _ANCHOR_SCALES:
        scaled = dataclasses.replace(layout, shapes=[s * factor for s in layout.shapes])
        numbers = "*".join(f"{number * factor:g}" for number in layout.scale[1])
        yield f"{layout.scale[0]}={numbers}", _recall(boxes, scaled)
    for factor in (1.5, 2.0, 3.0, 4.0):
        side = round(layout.limits[1] * factor / _SIZE_STEP) * _SIZE_STEP
        yield f"image_size={side}", _recall(_scaled(table, indices, layout.at(side)), layout)
    ratios = common_ratios(boxes[:, 2:])
    squares = [np.unique(np.round(np.sqrt(s.prod(axis=1)), 3)) for s in layout.shapes]
    shapes = [
        np.array([(side * r**0.5, side / r**0.5) for side in sides for r in ratios])
        for sides in squares
    ]
    text = "*".join(f"{ratio:.3g}" for ratio in ratios)
    yield f"aspect_ratios={text}", _recall(boxes, dataclasses.replace(layout, shapes=shapes))


def _recall(boxes: np.ndarray, layout: AnchorLayout) -> float:
    return float((best_overlaps(boxes, layout) > _MATCH).mean())


def common_ratios(sides: np.ndarray) -> list[float]:
    """Returns three typical ratios of width to height: k-means over their logarithms."""
    ratios = np.log(sides[:, 0] / sides[:, 1])[:, None]
    return [float(np.exp(middle[0])) for middle in _k_means(ratios)]


def common_shapes(sides: np.ndarray) -> list[list[float]]:
    """Returns typical (width, height), smallest first: k-means over their logarithms."""
    return [[round(float(v), 1) for v in np.exp(middle)] for middle in _k_means(np.log(sides))]


def _k_means(points: np.ndarray) -> np.ndarray:
    """Returns [k, d] cluster middles in rising order; starts from quantiles, so it is the same."""
    order = np.argsort(points.sum(axis=1), kind="stable")
    places = (np.arange(_SHAPE_CLUSTERS) + 0.5) / _SHAPE_CLUSTERS * len(points)
    middles = points[order[places.astype(int)]]
    with warnings.catch_warnings():  # of clusters without points, which stay where they are
        warnings.simplefilter("ignore", UserWarning)
        middles, _ = kmeans2(points, middles, iter=_ROUNDS, minit="matrix")
    return middles[np.argsort(middles.sum(axis=1), kind="stable")]
