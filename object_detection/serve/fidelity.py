"""How far the results of an exported model are from those of the checkpoint it came from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np

# Weaker detections may fall under the threshold of one and not of the other.
_LEAST_SCORE = 0.05
# Anchors and detections of an image that are looked at however unsure they are.
_FEWEST_ANCHORS, _FEWEST_DETECTIONS = 20, 5


class Gaps(NamedTuple):
    """Largest differences between two results; infinite where a detection has no counterpart.

    Attributes:
      scores: of scores.
      boxes: of box sides, as shares of the longer side of the input.
      masks: of probabilities in masks; 0 without masks.
    """

    scores: float
    boxes: float
    masks: float = 0.0

    def within(self, limits: Gaps) -> bool:
        """Whether none is larger than its limit; NaN is."""
        return all(gap <= limit for gap, limit in zip(self, limits))

    def __str__(self) -> str:
        masks = f", masks by {self.masks:.2g}" if self.masks else ""
        return f"scores by {self.scores:.2g}, boxes by {self.boxes:.2g} of the input's side{masks}"


LIMITS = {
    "float32": Gaps(1e-3, 5e-4, 5e-3),
    "float16": Gaps(0.02, 5e-3, 0.05),
    "int8": Gaps(0.2, 0.05),
}
"""What a file of a precision may differ by."""


def largest(gaps: Iterable[Gaps]) -> Gaps:
    """Returns the largest of each; NaN where one is."""
    return Gaps(*(float(np.max(values)) for values in zip(*gaps)))


def dense_gaps(ours: Mapping[str, np.ndarray], theirs: Mapping[str, np.ndarray]) -> Gaps:
    """Compares all anchors' scores, and the boxes of those that are sure of something.

    Args:
      ours: boxes [B, A, 4] as shares of the input's side, scores [B, A, C].
      theirs: the same of the exported model.
    """
    best = ours["scores"].max(axis=-1)
    nth = -np.sort(-best, axis=-1)[:, :_FEWEST_ANCHORS][:, -1:]
    is_sure = best >= np.minimum(nth, _LEAST_SCORE)
    boxes = np.abs(ours["boxes"] - theirs["boxes"])[is_sure]
    return Gaps(float(np.abs(ours["scores"] - theirs["scores"]).max()), float(boxes.max()))


def detection_gaps(
    ours: Mapping[str, np.ndarray], theirs: Mapping[str, np.ndarray], *, limits: Gaps
) -> Gaps:
    """Compares detections with their nearest counterparts, as near ties may change places.

    Args:
      ours: boxes [B, K, 4] as shares of the input's side, scores [B, K], classes [B, K], num_valid
        [B] rows that are no padding, and masks [B, K, s, s] where the model has them.
      theirs: the same of the exported model.
      limits: what one unit of distance is; detections that near the least score are left out.
    """
    gaps = [Gaps(0.0, 0.0)]
    rows = np.arange(ours["scores"].shape[1])
    for some, others in ((ours, theirs), (theirs, ours)):
        # Not by class: a channel that no category uses is -1 as padding is.
        is_valid = rows < some["num_valid"][:, np.newaxis]
        nth = -np.sort(-some["scores"], axis=-1)[:, :_FEWEST_DETECTIONS][:, -1:]
        least = np.minimum(nth, _LEAST_SCORE + limits.scores)
        sure = np.argwhere(~(some["scores"] < least) & is_valid)
        for image, row in sure.tolist():
            scores = np.abs(others["scores"][image] - some["scores"][image, row])
            boxes = np.abs(others["boxes"][image] - some["boxes"][image, row]).max(axis=-1)
            of_class = others["classes"][image] == some["classes"][image, row]
            far = np.maximum(scores / limits.scores, boxes / limits.boxes)
            is_other = of_class & (rows < others["num_valid"][image])
            far = np.where(is_other & np.isfinite(far), far, np.inf)
            nearest = int(far.argmin())
            if not np.isfinite(far[nearest]):
                return Gaps(np.inf, np.inf)
            masks = 0.0
            if "masks" in some:
                masks = np.abs(others["masks"][image, nearest] - some["masks"][image, row]).max()
            gaps.append(Gaps(scores[nearest], boxes[nearest], masks))
    return largest(gaps)
