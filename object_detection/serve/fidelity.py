"""How far the results of an exported model are from those of the checkpoint it came from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

# Weaker detections may fall under the threshold of one and not of the other.
_LEAST_SCORE = 0.05
# Anchors and detections of an image that are looked at however unsure they are.
_FEWEST_ANCHORS, _FEWEST_DETECTIONS = 20, 5
# What makes a rival. The overlap is a little below that from which suppression takes two detections
# for one object, the other a share of the score.
_LEAST_OVERLAP, _LEAST_SURE = 0.45, 0.5
# Share of detections that may have lost their place to a rival where scores are rounded much.
_MOST_RIVALS = 0.1


class Gaps(NamedTuple):
    """Largest differences between two results; infinite where a detection has no counterpart.

    Attributes:
      scores: of scores.
      boxes: of box sides, as shares of the longer side of the input.
      masks: of probabilities in masks; 0 without masks.
      rivals: share of detections in whose place a neighbour of nearly the same score was chosen.
    """

    scores: float
    boxes: float
    masks: float = 0.0
    rivals: float = 0.0

    def within(self, limits: Gaps) -> bool:
        """Whether none is larger than its limit; NaN is."""
        return all(gap <= limit for gap, limit in zip(self, limits))

    def __str__(self) -> str:
        more = f", masks by {self.masks:.2g}" if self.masks else ""
        more += f", {self.rivals:.1%} of detections by their choice" if self.rivals else ""
        return f"scores by {self.scores:.2g}, boxes by {self.boxes:.2g} of the input's side{more}"


LIMITS = {
    "float32": Gaps(1e-3, 5e-4, 5e-3),
    "float16": Gaps(0.02, 5e-3, 0.05, _MOST_RIVALS),
    "int8": Gaps(0.2, 0.05),
}
"""What a file of a precision may differ by."""


def dense_gaps(ours: Mapping[str, np.ndarray], theirs: Mapping[str, np.ndarray]) -> Gaps:
    """Compares all anchors' scores, and what the input shows of the boxes of those that are sure.

    Args:
      ours: boxes [B, A, 4] as shares of the input's side, scores [B, A, C].
      theirs: the same of the exported model.
    """
    best = ours["scores"].max(axis=-1)
    nth = -np.sort(-best, axis=-1)[:, :_FEWEST_ANCHORS][:, -1:]
    is_sure = best >= np.minimum(nth, _LEAST_SCORE)
    seen = (np.clip(some["boxes"], 0.0, 1.0) for some in (ours, theirs))
    boxes = np.abs(np.subtract(*seen))[is_sure]
    return Gaps(float(np.abs(ours["scores"] - theirs["scores"]).max()), float(boxes.max()))


def detection_gaps(
    ours: Mapping[str, np.ndarray], theirs: Mapping[str, np.ndarray], *, limits: Gaps
) -> Gaps:
    """Compares detections with their nearest counterparts, as near ties may change places.

    Of two candidates with nearly the same score, rounding decides which suppresses the other, or
    with soft suppression lowers the other's score. So a detection without a counterpart is a
    *rival* if a detection of its class overlaps it that is not much less sure. As many rivals as
    the limits allow are left out of the other gaps.

    Args:
      ours: boxes [B, K, 4] as shares of the input's side, scores [B, K], classes [B, K], num_valid
        [B] rows that are no padding, and masks [B, K, s, s] where the model has them.
      theirs: the same of the exported model.
      limits: what one unit of distance is; detections that near the least score are left out.
    """
    agreeing, rivals = [Gaps(0.0, 0.0)], []
    for some, others in ((ours, theirs), (theirs, ours)):
        for image, row in _sure_detections(some, limits):
            score, box = some["scores"][image, row], some["boxes"][image, row]
            # Not by class: a channel that no category uses is -1 as padding is.
            is_other = np.arange(others["scores"].shape[1]) < others["num_valid"][image]
            is_other &= others["classes"][image] == some["classes"][image, row]
            scores = np.abs(others["scores"][image] - score)
            boxes = np.abs(others["boxes"][image] - box).max(axis=-1)
            far = np.maximum(scores / limits.scores, boxes / limits.boxes)
            far = np.where(is_other & np.isfinite(far), far, np.inf)
            nearest = int(far.argmin())
            if not np.isfinite(far[nearest]):
                return Gaps(np.inf, np.inf)
            masks = 0.0
            if "masks" in some:
                masks = np.abs(others["masks"][image, nearest] - some["masks"][image, row]).max()
            gaps = Gaps(scores[nearest], boxes[nearest], masks)
            is_near = is_other & (others["scores"][image] >= _LEAST_SURE * score)
            overlaps = _iou(box, others["boxes"][image])[is_near]
            is_rival = far[nearest] > 1.0 and overlaps.max(initial=0.0) >= _LEAST_OVERLAP
            (rivals if is_rival else agreeing).append(gaps)
    share = len(rivals) / max(len(rivals) + len(agreeing) - 1, 1)
    if share > limits.rivals:
        agreeing, share = agreeing + rivals, 0.0
    return Gaps(*(float(np.max(values)) for values in zip(*agreeing)))._replace(rivals=share)


def _sure_detections(found: Mapping[str, np.ndarray], limits: Gaps) -> list[list[int]]:
    """Returns the (image, row) of detections that the other result should have too."""
    scores, num_valid = found["scores"], found["num_valid"][:, np.newaxis]
    num_rows = scores.shape[1]
    in_order = -np.sort(-scores, axis=-1)
    # Where all rows are taken, others that are nearly as sure found no place.
    last = np.where(num_valid == num_rows, in_order[:, -1:], 0.0)
    least = np.maximum(last, _LEAST_SCORE) + limits.scores
    least = np.minimum(in_order[:, :_FEWEST_DETECTIONS][:, -1:], least)
    is_sure = ~(scores < least) & (np.arange(num_rows) < num_valid)
    return np.argwhere(is_sure).tolist()


def _iou(box: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Returns the overlaps [K] of a box [4] with boxes [K, 4]."""
    sides = np.minimum(box[2:], boxes[:, 2:]) - np.maximum(box[:2], boxes[:, :2])
    inside = np.prod(np.maximum(sides, 0.0), axis=-1)
    areas = np.prod(boxes[:, 2:] - boxes[:, :2], axis=-1) + np.prod(box[2:] - box[:2])
    return inside / np.maximum(areas - inside, 1e-12)
