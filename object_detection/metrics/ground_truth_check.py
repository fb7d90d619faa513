"""Ground truth scored against itself, before hours are spent on a run.

The score must be AP 1.0. When it is not, image ids, category ids or units do not meet somewhere
between the JSON, the data card and the records; `ground_truth_diagnosis.py` says which.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from object_detection.metrics.coco import Categories, CocoEvaluator
from object_detection.metrics.ground_truth import id_text, load_annotations, some
from object_detection.metrics.ground_truth_diagnosis import diagnose

SELF_TOLERANCE = 1e-6
"""A JSON against itself is exact up to the rounding inside the scorer."""
RECORDS_TOLERANCE = 0.02
"""Records hold boxes clipped to the image, which moves a few of them."""


class GroundTruthCheck(NamedTuple):
    """Outcome of a passed check.

    average_precision: AP of the ground truth against itself, 1.0 up to the tolerance.
    num_images, num_boxes: what was scored.
    notes: things to know that are no reason to stop.
    """

    average_precision: float
    num_images: int
    num_boxes: int
    notes: list[str]


def check_ground_truth(
    annotations: str | os.PathLike[str] | Mapping[str, Any],
    *,
    categories: Categories | None = None,
    rows: np.ndarray | None = None,
    max_images: int | None = 500,
    scorer: str = "auto",
) -> GroundTruthCheck:
    """Scores ground truth against itself.

    Args:
      annotations: path of an instances JSON, or the parsed dictionary.
      categories: class_id -> (category_id, name) of the data card; by default the JSON's.
      rows: float64 [n, 7], the ground truth as the input pipeline delivers it, written as rows
        of `detections_to_array` with score 1 and without crowd regions; the images that occur in
        it are checked. By default the JSON's own boxes.
      max_images: at most so many images, evenly spread; None for all.
      scorer: see `CocoEvaluator`.

    Raises:
      ValueError: the score is not 1.0; the message says which ids or units do not meet.
    """
    source, dataset = load_annotations(annotations)
    _require_known_references(source, dataset)
    evaluator = CocoEvaluator(dataset, categories, scorer=scorer)
    with_area = [a for a in dataset["annotations"] if _has_area(a)]
    flat = [a.get("id") for a in dataset["annotations"] if not _has_area(a)]
    notes = [f"{len(flat)} boxes without area left out: annotations {some(flat)}"] if flat else []

    if rows is None:
        candidates = evaluator.image_indices({id_text(a["image_id"]) for a in with_area})
    else:
        candidates = np.asarray(rows, np.float64)[:, 0].astype(np.int64)
    chosen = _spread(np.unique(candidates), max_images)
    texts = {id_text(evaluator.image_ids[index]) for index in chosen}
    part = {**dataset, "annotations": [a for a in with_area if id_text(a["image_id"]) in texts]}
    evaluator = CocoEvaluator(part, categories, scorer=scorer)
    tolerance = SELF_TOLERANCE if rows is None else RECORDS_TOLERANCE
    own = ground_truth_rows(evaluator, part)
    rows = own if rows is None else np.asarray(rows, np.float64)
    rows = rows[np.isin(rows[:, 0], chosen)]
    if not len(rows):
        raise ValueError(f"no box to score in the {len(dataset['images'])} images of {source}")

    limit = max(100, int(np.bincount(rows[:, 0].astype(np.int64)).max()))
    metrics = evaluator.evaluate(rows, image_indices=chosen, max_detections=(1, 10, limit))
    if metrics["AP"] < 1.0 - tolerance:
        sizes = _image_sizes(part, evaluator)
        names = {class_id: name for class_id, (_, name) in evaluator.categories.items()}
        everywhere = ground_truth_rows(evaluator, {**dataset, "annotations": with_area})
        raise ValueError(
            f"ground truth scored against itself gives AP {metrics['AP']:.4f} instead of 1.0 on "
            f"{len(chosen)} images of {source}: "
            + diagnose(
                rows,
                own,
                everywhere=everywhere,
                image_sizes=sizes,
                image_ids=evaluator.image_ids,
                names=names,
            )
        )
    return GroundTruthCheck(metrics["AP"], len(chosen), len(rows), notes)


def ground_truth_rows(evaluator: CocoEvaluator, dataset: Mapping[str, Any]) -> np.ndarray:
    """Returns the ground truth without crowd regions as float64 [n, 7] rows of score 1.

    Raises:
      ValueError: a category with boxes has no class.
    """
    class_ids = {category_id: k for k, (category_id, _) in evaluator.categories.items()}
    objects = [a for a in dataset["annotations"] if not a.get("iscrowd", 0)]
    lost = sorted({int(a["category_id"]) for a in objects} - set(class_ids))
    if lost:
        raise ValueError(
            f"categories {some(lost)} have boxes but no class in the class map of "
            f"{len(class_ids)} classes: the data card belongs to another JSON"
        )
    if not objects:
        return np.zeros((0, 7), np.float64)
    indices = evaluator.image_indices(a["image_id"] for a in objects)
    boxes = np.array([a["bbox"] for a in objects], np.float64)
    classes = np.array([class_ids[int(a["category_id"])] for a in objects], np.float64)
    return np.column_stack([indices, boxes, np.ones(len(objects)), classes])


def _require_known_references(source: str, dataset: Mapping[str, Any]) -> None:
    """Refuses annotations of images or categories that the JSON does not list."""
    if "annotations" not in dataset:
        raise ValueError(f"{source} has no annotations")
    images = {id_text(image["id"]) for image in dataset["images"]}
    categories = {int(category["id"]) for category in dataset["categories"]}
    strays = sorted({id_text(a["image_id"]) for a in dataset["annotations"]} - images)
    if strays:
        raise ValueError(
            f"{source}: annotations of {len(strays)} images that it does not list: {some(strays)}; "
            f"its image ids look like {some(sorted(images))}"
        )
    unknown = sorted({int(a["category_id"]) for a in dataset["annotations"]} - categories)
    if unknown:
        raise ValueError(
            f"{source}: annotations of categories that it does not list: {some(unknown)}; its "
            f"category ids are {some(sorted(categories))}"
        )


def _has_area(annotation: Mapping[str, Any]) -> bool:
    return annotation["bbox"][2] > 0 and annotation["bbox"][3] > 0


def _spread(indices: np.ndarray, limit: int | None) -> np.ndarray:
    """Returns at most `limit` of the indices, evenly spread."""
    if limit is None or len(indices) <= limit:
        return indices
    return indices[np.linspace(0, len(indices) - 1, limit).astype(np.int64)]


def _image_sizes(dataset: Mapping[str, Any], evaluator: CocoEvaluator) -> np.ndarray:
    """Returns float64 [num_images, 2], (width, height), 0 where the JSON does not say."""
    sizes = np.zeros((evaluator.num_images, 2), np.float64)
    indices = evaluator.image_indices(image["id"] for image in dataset["images"])
    for index, image in zip(indices, dataset["images"]):
        sizes[index] = image.get("width", 0), image.get("height", 0)
    return sizes
