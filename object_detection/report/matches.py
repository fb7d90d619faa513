"""Which detection found which object, and what is wrong with the others.

One pass over an evaluation gives what the whole report is made of. A detection is *right* if it is
what COCO's matching calls a true positive at one IoU: by falling score it takes the free object of
its class that it overlaps most. The others are told apart as TIDE does (D. Bolya et al., 2020,
section 2.2): of another class, in the wrong place, both, a duplicate, or background.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from pycocotools import mask as rle_lib

from object_detection.coco.annotations import CocoAnnotations
from object_detection.coco.listed import CocoImage, some
from object_detection.coco.objects import CocoObject
from object_detection.coco.values import id_text
from object_detection.masks.rle import as_rle
from object_detection.metrics.coco import scoring_names, sorted_ids

RIGHT, IGNORED, CLASS, PLACE, BOTH, DUPLICATE, BACKGROUND = range(7)
"""What a detection is. IGNORED: it lies in a crowd region of its class and counts for nothing."""

KIND_NAMES = ("right", "ignored", "class", "place", "both", "duplicate", "background")
ERROR_KINDS = (CLASS, PLACE, BOTH, DUPLICATE, BACKGROUND)

BACKGROUND_IOU = 0.1


@dataclasses.dataclass(frozen=True)
class Matches:
    """Detections and objects of an evaluation, class k being `category_ids[k]`.

    images: in the order that `*_image` counts in.
    category_ids, names: of the classes.
    iou: least overlap of a detection with what it found.
    score, found_class, found_image: [n], of the detections, by image and falling score.
    kind: int [n], RIGHT to BACKGROUND.
    target: int [n], the object that a detection found (RIGHT), or should have been (CLASS, PLACE);
      -1 for the other kinds.
    entry: int [n], place of a detection in the list that was matched.
    objects: [m], by image.
    object_class, object_image, is_crowd: [m], of the objects.
    crossings: int [k, 2], pairs (detection, object) of different classes that overlap enough, by
      image, falling score and falling overlap.
    """

    images: Sequence[CocoImage]
    category_ids: Sequence[int]
    names: Sequence[str]
    iou: float
    score: np.ndarray
    found_class: np.ndarray
    found_image: np.ndarray
    kind: np.ndarray
    target: np.ndarray
    entry: np.ndarray
    objects: Sequence[CocoObject]
    object_class: np.ndarray
    object_image: np.ndarray
    is_crowd: np.ndarray
    crossings: np.ndarray

    def found_by(self, least_score: float) -> np.ndarray:
        """Returns int [m]: the detection of that score or more that found each object, or -1."""
        finder = np.full(len(self.object_class), -1)
        chosen = np.flatnonzero((self.kind == RIGHT) & (self.score >= least_score))
        finder[self.target[chosen]] = chosen
        return finder

    def confusion(self, least_score: float) -> np.ndarray:
        """Counts what objects were taken for.

        An object found with its own class is that; what is left is paired with detections of other
        classes, best scores first.

        Returns:
          int [classes + 1, classes + 1], row: the object's class, column: the detection's; the
          last row is background taken for an object, the last column objects that were missed.
        """
        size = len(self.names)
        table = np.zeros((size + 1, size + 1), np.int64)
        finder = self.found_by(least_score)
        taken = finder >= 0
        np.add.at(table, (self.object_class[taken], self.object_class[taken]), 1)
        wrong = (self.score >= least_score) & ~np.isin(self.kind, (RIGHT, IGNORED))
        open_ = ~taken & ~self.is_crowd
        for detection, target in self.crossings:
            if wrong[detection] and open_[target]:
                wrong[detection] = open_[target] = False
                table[self.object_class[target], self.found_class[detection]] += 1
        np.add.at(table, (size, self.found_class[wrong]), 1)
        np.add.at(table, (self.object_class[open_], size), 1)
        return table


def match(
    truth: CocoAnnotations,
    detections: Sequence[Mapping[str, Any]],
    *,
    iou: float = 0.5,
    image_ids: Sequence[Any] | None = None,
) -> Matches:
    """Matches detections with objects, by masks where the detections have them, else by boxes.

    Args:
      truth: the objects; by masks, those whose mask is unknown are left out, as in scoring.
      detections: COCO's result entries; of images that are not looked at they are left out.
      iou: least overlap of a detection with what it found.
      image_ids: the images to look at; None: all of the data set.

    Raises:
      ValueError: a detection's category is not among those of the objects.
    """
    wanted = None if image_ids is None else {id_text(image_id) for image_id in image_ids}
    listed = {i.image_id: i for i in truth.images if wanted is None or i.source_id in wanted}
    images = [listed[image_id] for image_id in sorted_ids(listed)]  # so ties of score fall alike
    names = scoring_names(truth)
    class_of = {category: k for k, category in enumerate(names)}
    unknown = {entry["category_id"] for entry in detections} - set(class_of)
    if unknown:
        raise ValueError(
            f"there are detections of category {some(sorted(unknown, key=str))}, which the "
            f"annotations do not have ({some(list(class_of))}): they are of another data set"
        )
    by_masks = any("segmentation" in entry for entry in detections[:1])
    places = defaultdict(list)
    for place, entry in enumerate(detections):
        places[id_text(entry["image_id"])].append(place)
    objects: list[CocoObject] = []
    found, columns, crossings, num_found = [], [], [np.zeros((0, 2), np.int64)], 0
    for i, image in enumerate(images):
        mine = truth.objects.get(image.source_id, ())
        mine = [o for o in mine if not by_masks or o["segmentation"] is not None]
        seen = sorted(places[image.source_id], key=lambda place: -detections[place]["score"])
        entries = [detections[place] for place in seen]
        crowd = np.array([o["iscrowd"] for o in mine], bool)
        classes = np.array([class_of[o["category_id"]] for o in mine], np.int64)
        guesses = np.array([class_of[e["category_id"]] for e in entries], np.int64)
        kinds, targets, crossed = _match_image(
            _overlaps(entries, mine, crowd, by_masks=by_masks),
            guesses[:, np.newaxis] == classes,
            crowd,
            iou=iou,
        )
        targets = np.where(targets >= 0, targets + len(objects), -1)
        scores = [entry["score"] for entry in entries]
        found.append(
            np.stack([scores, guesses, np.full(len(seen), i), kinds, targets, seen], axis=1)
        )
        columns.append(np.stack([classes, np.full(len(mine), i), crowd], axis=1))
        crossings.append(crossed + (num_found, len(objects)))
        num_found += len(seen)
        objects += mine
    score, *whole = np.concatenate(found).T
    object_class, object_image, is_crowd = np.concatenate(columns).astype(np.int64).T
    return Matches(
        images,
        list(names),
        list(names.values()),
        iou,
        score,
        *(column.astype(np.int64) for column in whole),
        objects,
        object_class,
        object_image,
        is_crowd.astype(bool),
        np.concatenate(crossings),
    )


def _overlaps(
    found: Sequence[Mapping[str, Any]],
    objects: Sequence[CocoObject],
    crowd: np.ndarray,
    *,
    by_masks: bool,
) -> np.ndarray:
    """Returns IoU [found, objects]; with a crowd, the share of the detection inside it."""
    if not found or not objects:
        return np.zeros((len(found), len(objects)))
    if by_masks:
        size = found[0]["segmentation"]["size"]
        shapes = [
            [as_rle(e["segmentation"], *size) for e in entries] for entries in (found, objects)
        ]
    else:
        shapes = [np.array([e["bbox"] for e in entries], float) for entries in (found, objects)]
    return np.asarray(rle_lib.iou(*shapes, crowd.astype(np.uint8)))


def _match_image(
    overlaps: np.ndarray, same: np.ndarray, crowd: np.ndarray, *, iou: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Matches within one image: kind int [found], target int [found], crossings int [k, 2].

    Args:
      overlaps: [found, objects], detections by falling score.
      same: bool [found, objects], of one class.
      crowd: bool [objects].
    """
    num_found = len(overlaps)
    targets = np.full(num_found, -1)
    if not overlaps.size:
        return np.full(num_found, BACKGROUND), targets, np.zeros((0, 2), np.int64)
    # 1e-10 as pycocotools does for an IoU of exactly 1.
    enough = overlaps >= min(iou, 1 - 1e-10)
    free = ~crowd
    for detection, target in _ranked(enough & same & ~crowd, overlaps):
        if targets[detection] < 0 and free[target]:
            targets[detection], free[target] = target, False
    of_own = np.where(same & ~crowd, overlaps, 0.0)
    of_others = np.where(~same & ~crowd, overlaps, 0.0)
    best_own, best_other = of_own.max(axis=1), of_others.max(axis=1)
    kinds = np.select(
        [
            targets >= 0,
            (enough & same & crowd).any(axis=1),
            (best_own >= BACKGROUND_IOU) & (best_own < iou),
            best_other >= iou,
            best_own >= iou,
            np.maximum(best_own, best_other) < BACKGROUND_IOU,
        ],
        [RIGHT, IGNORED, PLACE, CLASS, DUPLICATE, BACKGROUND],
        BOTH,
    )
    targets = np.where(kinds == PLACE, of_own.argmax(axis=1), targets)
    targets = np.where(kinds == CLASS, of_others.argmax(axis=1), targets)
    crossings = _ranked(enough & ~same & ~crowd, overlaps)
    return kinds, targets, crossings


def _ranked(pairs: np.ndarray, overlaps: np.ndarray) -> np.ndarray:
    """Returns int [k, 2] (detection, object) of the pairs, by detection and falling overlap.

    Of equal overlaps the later object comes first, as in pycocotools.
    """
    found, objects = np.nonzero(pairs)
    order = np.lexsort((-objects, -overlaps[found, objects], found))
    return np.stack([found[order], objects[order]], axis=1)
