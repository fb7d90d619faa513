"""Ground truth scored against itself, before hours are spent on a run.

The score must be AP 1.0. When it is not, image ids, category ids or units do not meet somewhere
between the JSON, the data card and the records; `ground_truth_diagnosis.py` says which.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from object_detection.coco.annotations import CocoAnnotations, CocoObject, read_scored
from object_detection.coco.listed import some
from object_detection.metrics.coco import Categories, CocoEvaluator
from object_detection.metrics.ground_truth_diagnosis import best_partners, diagnose

SELF_TOLERANCE = 1e-6
"""A JSON against itself is exact up to the rounding inside the scorer."""
RECORDS_TOLERANCE = 0.02
"""Records hold boxes clipped to the image, which moves a few of them."""
_MOST_IMAGES = 500
"""Of a larger set so many are scored, evenly spread."""
_MOST_BOXES_OF_IMAGE = 200
"""Of a more crowded image so many are scored: the scorer's time grows with their square."""


def check_ground_truth(
    annotations: str | os.PathLike[str] | Mapping[str, Any] | CocoAnnotations,
    *,
    categories: Categories | None = None,
    rows: np.ndarray | None = None,
    scorer: str = "auto",
) -> tuple[int, int]:
    """Scores ground truth against itself, at most 500 images and 200 objects of an image.

    Args:
      annotations: as of `CocoEvaluator`.
      categories: class_id -> (category_id, name) of the data card; by default the JSON's.
      rows: float64 [n, 7], the ground truth as the input pipeline delivers it, written as rows
        of `detections_to_array` with score 1 and without crowd regions; the images that occur in
        it are checked. By default the JSON's own boxes.
      scorer: see `CocoEvaluator`.

    Returns:
      Numbers of images and of boxes that were scored.

    Raises:
      ValueError: the score is not 1.0; the message says which ids or units do not meet.
    """
    truth = read_scored(annotations)
    evaluator = CocoEvaluator(truth, categories, scorer=scorer)
    everywhere, objects = ground_truth_rows(evaluator)
    given = everywhere if rows is None else np.asarray(rows, np.float64)
    chosen = _spread(np.unique(given[:, 0].astype(np.int64)), _MOST_IMAGES)
    kept = np.flatnonzero(np.isin(everywhere[:, 0], chosen))
    given = given[np.isin(given[:, 0], chosen)]
    if not len(given):
        count = truth.num_objects
        why = f"its {count} annotations are crowd regions" if count else "it has no annotations"
        if len(everywhere):
            why = "the records have none of its objects"
        raise ValueError(
            f"no box to score in the {len(truth.images)} images of {truth.path}: {why}. Scores "
            "need annotated objects; infer.py shows what is found on images without any"
        )
    scored, kept = _sample_of_crowded(given, everywhere, kept)
    if rows is None:
        scored = everywhere[kept]
    wanted = {id(objects[i]) for i in kept}
    part = dataclasses.replace(
        truth,
        objects={
            source_id: [entry for entry in entries if entry["iscrowd"] or id(entry) in wanted]
            for source_id, entries in truth.objects.items()
        },
    )
    limit = max(100, int(np.bincount(scored[:, 0].astype(np.int64)).max()))
    metrics = CocoEvaluator(part, categories, scorer=scorer).evaluate(
        scored, image_indices=chosen, max_detections=(1, 10, limit)
    )
    tolerance = SELF_TOLERANCE if rows is None else RECORDS_TOLERANCE
    if metrics["AP"] < 1.0 - tolerance:
        names = {class_id: name for class_id, (_, name) in evaluator.categories.items()}
        raise ValueError(
            f"ground truth scored against itself gives AP {metrics['AP']:.4f} instead of 1.0 on "
            f"{len(chosen)} images of {truth.path}: "
            + diagnose(
                scored,
                everywhere[kept],
                everywhere=everywhere,
                image_sizes=_image_sizes(evaluator),
                image_ids=evaluator.image_ids,
                names=names,
            )
        )
    return len(chosen), len(scored)


def ground_truth_rows(evaluator: CocoEvaluator) -> tuple[np.ndarray, list[CocoObject]]:
    """Returns the ground truth without crowd regions as float64 [n, 7] rows of score 1.

    Returns:
      The rows, and the annotation of each.

    Raises:
      ValueError: a category with boxes has no class.
    """
    truth = evaluator.truth
    class_ids = {category_id: k for k, (category_id, _) in evaluator.categories.items()}
    found = [
        (source_id, entry)
        for source_id, entries in truth.objects.items()
        for entry in entries
        if not entry["iscrowd"]
    ]
    lost = sorted({entry["category_id"] for _, entry in found} - set(class_ids))
    if lost:
        there = [f"{truth.category_names[i]!r} ({i})" for i in lost]
        here = [name for _, name in evaluator.categories.values()]
        raise ValueError(
            f"{truth.path}: objects of {some(there)} belong to no class of the model; of its list "
            f"the model knows {some(here, 10) or 'none'}. Correct the names in 'categories' and "
            "convert again, name the JSON that the records were made of, take these annotations "
            "out, or train on data that has the class"
        )
    indices = evaluator.image_indices(source_id for source_id, _ in found)
    rows = np.array(
        [
            (index, *entry["bbox"], 1.0, class_ids[entry["category_id"]])
            for index, (_, entry) in zip(indices, found)
        ],
        np.float64,
    )
    return rows.reshape(-1, 7), [entry for _, entry in found]


def _sample_of_crowded(
    given: np.ndarray, truth: np.ndarray, kept: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Bounds the boxes of each image.

    Args:
      given: [n, 7] rows to score.
      truth: [m, 7] rows to score against.
      kept: indices of those of the images in question.

    Returns:
      The rows left, and the indices of the truth left: of an image with too many, evenly spread
      rows and those boxes of the truth that they meet best. Images whose numbers of boxes differ
      stay whole, so that what is missing is found.
    """
    counts, of_truth = (
        np.bincount(rows[:, 0].astype(np.int64), minlength=1) for rows in (given, truth[kept])
    )
    for image in np.flatnonzero(counts > _MOST_BOXES_OF_IMAGE):
        if image >= len(of_truth) or counts[image] != of_truth[image]:
            continue
        ours, theirs = np.flatnonzero(given[:, 0] == image), kept[truth[kept, 0] == image]
        sample = _spread(ours, _MOST_BOXES_OF_IMAGE)
        partners = theirs[np.unique(best_partners(given[sample], truth[theirs])[1])]
        given = np.delete(given, np.setdiff1d(ours, sample), axis=0)
        kept = np.setdiff1d(kept, np.setdiff1d(theirs, partners))
    return given, kept


def _spread(indices: np.ndarray, limit: int) -> np.ndarray:
    """Returns at most `limit` of the indices, evenly spread."""
    if len(indices) <= limit:
        return indices
    return indices[np.linspace(0, len(indices) - 1, limit).astype(np.int64)]


def _image_sizes(evaluator: CocoEvaluator) -> np.ndarray:
    """Returns float64 [num_images, 2], (width, height), 0 where the JSON does not say."""
    images = {image.image_id: image for image in evaluator.truth.images}
    ordered = [images[image_id] for image_id in evaluator.image_ids]
    return np.array([(image.width or 0, image.height or 0) for image in ordered], np.float64)
