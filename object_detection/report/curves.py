"""Precision, recall and F1 over the score, and what each kind of error costs, from `Matches`."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import numpy as np

from object_detection.report.matches import (
    CLASS,
    ERROR_KINDS,
    IGNORED,
    KIND_NAMES,
    PLACE,
    RIGHT,
    Matches,
)

RECALLS = np.linspace(0.0, 1.0, 101)
"""Where COCO reads precision."""
THRESHOLDS = np.arange(201) / 200


class BestScore(NamedTuple):
    """The score at which F1 is largest, and what it is there; NaN where there is no object."""

    score: float
    precision: float
    recall: float
    f1: float


@dataclasses.dataclass(frozen=True)
class ClassCurves:
    """Curves of one class, or of all detections together.

    name: of the class.
    num_objects: without crowd regions.
    ap: average precision at the matches' IoU, as COCO computes it; NaN without objects.
    precision: [101], COCO's, at the recalls `RECALLS`.
    f1, precisions, recalls: [201], of the detections that score `THRESHOLDS` or more.
    best: the threshold to choose.
    """

    name: str
    num_objects: int
    ap: float
    precision: np.ndarray
    f1: np.ndarray
    precisions: np.ndarray
    recalls: np.ndarray
    best: BestScore


def curves_of(matches: Matches) -> tuple[ClassCurves, list[ClassCurves]]:
    """Returns the curves of all detections together, and those of each class."""
    counted = matches.kind != IGNORED
    objects = np.bincount(matches.object_class[~matches.is_crowd], minlength=len(matches.names))

    def curves(name: str, chosen: np.ndarray, num_objects: int) -> ClassCurves:
        return _curves(
            name, matches.score[chosen], matches.kind[chosen] == RIGHT, num_objects=num_objects
        )

    classes = [
        curves(name, counted & (matches.found_class == k), int(objects[k]))
        for k, name in enumerate(matches.names)
    ]
    return curves("all classes", counted, int(objects.sum())), classes


def _curves(name: str, scores: np.ndarray, right: np.ndarray, *, num_objects: int) -> ClassCurves:
    order = np.argsort(-scores, kind="mergesort")
    scores, right = scores[order], right[order]
    hits, number = np.cumsum(right), np.arange(1, len(right) + 1)
    nothing = np.full(len(THRESHOLDS), np.nan)
    if not num_objects:
        none = BestScore(*[float("nan")] * 4)
        empty = np.full(len(RECALLS), np.nan)
        return ClassCurves(name, 0, float("nan"), empty, nothing, nothing, nothing, none)
    precision = precision_at_recalls(right, num_objects)
    # How many detections score at least each threshold.
    kept = np.searchsorted(-scores, -THRESHOLDS, side="right")
    hits_kept = np.concatenate([[0], hits])[kept]
    best = BestScore(1.0, 0.0, 0.0, 0.0)
    if len(scores):
        f1 = 2 * hits / (number + num_objects)
        # Only where the next score differs is a threshold there.
        ends = np.append(scores[1:] != scores[:-1], True)
        i = int(np.argmax(np.where(ends, f1, -1.0)))
        best = BestScore(scores[i], hits[i] / number[i], hits[i] / num_objects, f1[i])
    with np.errstate(invalid="ignore"):
        precisions = hits_kept / kept  # NaN where no detection scores so much
    return ClassCurves(
        name,
        num_objects,
        float(precision.mean()),
        precision,
        2 * hits_kept / (kept + num_objects),
        precisions,
        hits_kept / num_objects,
        BestScore(*(float(value) for value in best)),
    )


def precision_at_recalls(right: np.ndarray, num_objects: int) -> np.ndarray:
    """Returns [101]: the best precision at each recall of `RECALLS` or beyond.

    Args:
      right: bool [n], by falling score.
      num_objects: more than 0.
    """
    hits = np.cumsum(right)
    precision = hits / np.arange(1, len(right) + 1)
    falling = np.maximum.accumulate(precision[::-1])[::-1]
    places = np.searchsorted(hits / num_objects, RECALLS, side="left")
    return np.append(falling, 0.0)[np.minimum(places, len(right))]


def counts_of_errors(matches: Matches, least_score: float) -> dict[int, int]:
    """Returns how many detections of that score or more are of each kind of error."""
    kinds = np.bincount(matches.kind[matches.score >= least_score], minlength=len(KIND_NAMES))
    return {kind: int(kinds[kind]) for kind in ERROR_KINDS}


def missed_objects(matches: Matches, least_score: float = 0.0) -> np.ndarray:
    """Returns bool [m]: objects that no detection of that score found, nor nearly found.

    Nearly: in the right place with the wrong class, or with the right class in the wrong place;
    such an object is not missed a second time.
    """
    missed = ~matches.is_crowd
    reaching = (matches.target >= 0) & (matches.score >= least_score)
    missed[matches.target[reaching]] = False
    return missed


def costs_of_errors(matches: Matches) -> tuple[float, dict[int, float], float]:
    """Says how much AP at the matches' IoU would gain if one kind of error did not occur.

    As in TIDE: a detection of the wrong class or place is corrected if what it should have been is
    not found otherwise, and else taken away, like the other wrong ones; missed objects are no
    longer asked for.

    Returns:
      (AP now, mean over the classes with objects; kind -> gain; gain without missed objects).
    """
    size = len(matches.names)
    objects = np.bincount(matches.object_class[~matches.is_crowd], minlength=size)
    missed = np.bincount(matches.object_class[missed_objects(matches)], minlength=size)
    base = _mean_ap(matches.score, matches.found_class, matches.kind, objects)
    gains = {}
    for kind in ERROR_KINDS:
        kinds, classes = matches.kind.copy(), matches.found_class.copy()
        kinds[matches.kind == kind] = IGNORED
        if kind in (CLASS, PLACE):
            corrected = _correctable(matches, kind)
            kinds[corrected] = RIGHT
            classes[corrected] = matches.object_class[matches.target[corrected]]
        gains[kind] = _mean_ap(matches.score, classes, kinds, objects) - base
    without = _mean_ap(matches.score, matches.found_class, matches.kind, objects - missed)
    return base, gains, without - base


def _correctable(matches: Matches, kind: int) -> np.ndarray:
    """Returns the best detection of a kind for each object that none found."""
    found = matches.found_by(0.0) >= 0
    wrong = np.flatnonzero(matches.kind == kind)
    wrong = wrong[~found[matches.target[wrong]]]
    wrong = wrong[np.argsort(-matches.score[wrong], kind="mergesort")]
    _, first = np.unique(matches.target[wrong], return_index=True)
    return wrong[first]


def _mean_ap(
    scores: np.ndarray, classes: np.ndarray, kinds: np.ndarray, objects: np.ndarray
) -> float:
    order = np.argsort(-scores, kind="mergesort")
    order = order[kinds[order] != IGNORED]
    classes, right = classes[order], kinds[order] == RIGHT
    values = [
        precision_at_recalls(right[classes == k], int(count)).mean()
        for k, count in enumerate(objects)
        if count > 0
    ]
    return float(np.mean(values)) if values else float("nan")
