"""COCO average precision of detections, for any data set in the COCO instances format.

Here: the evaluator that owns one ground truth and scores any number of detection sets against it.
The matching itself is `scorer.py`, rows and files are `detection_rows.py`, the self-check is
`ground_truth_check.py`, the text forms are `report.py`.

Scores are means over all images of the JSON, or over the subset that is named, never over the
images that happen to have detections; otherwise a shard lost on the way would raise the score.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from pycocotools import mask as mask_api

from object_detection.coco.annotations import CocoAnnotations, read_scored
from object_detection.coco.listed import some
from object_detection.coco.objects import CocoObject
from object_detection.coco.segmentation import bounds
from object_detection.coco.values import id_text
from object_detection.masks.rle import as_rle, decode_mask
from object_detection.metrics import scorer as scoring
from object_detection.metrics.detection_rows import ROW_FIELDS

METRIC_NAMES = (
    *("AP", "AP50", "AP75", "APs", "APm", "APl"),
    *("ARmax1", "ARmax10", "ARmax100", "ARs", "ARm", "ARl"),
)
CLASS_PREFIX = "AP_/"
"""`AP_/<class name>` is the AP of one class."""

_SIDE_WITH_PIXELS_PX = 2.0  # masks of larger boxes are taken to cover a pixel

IOU_TYPES = ("bbox", "segm")

Categories = Mapping[int, tuple[int, str]]
"""class_id -> (category_id, name): the model's contiguous ids and the data set's own."""


class Coverage(NamedTuple):
    """Which images an evaluation ran over; ids as the data set writes them."""

    num_images: int
    missing: list[Any]
    repeated: list[Any]

    def describe(self) -> str:
        """Returns one line for the log."""
        covered = self.num_images - len(self.missing)
        line = f"{covered} of {self.num_images} images evaluated"
        if self.missing:
            line += f"; {len(self.missing)} missing: {some(self.missing)}"
        if self.repeated:
            line += f"; {len(self.repeated)} evaluated more than once: {some(self.repeated)}"
        return line


class CocoEvaluator:
    """Scores detections against one ground truth.

    The JSON is parsed and indexed once. Every rank may hold an evaluator to translate source ids;
    only one needs to call `evaluate`.

    Args:
      annotations: path of an instances JSON, what it holds, or what `read_annotations` made of it.
      categories: class_id -> (category_id, name), from the data card; by default the JSON's
        categories in order of their ids.
      iou_type: `bbox` or `segm`.
      scorer: `auto`, `pycocotools`, `ultrafast_pycocotools` or `hotcoco`.

    Raises:
      FileNotFoundError: no such JSON.
      ValueError: not an instances JSON, or ids that do not meet.
    """

    def __init__(
        self,
        annotations: str | os.PathLike[str] | Mapping[str, Any] | CocoAnnotations,
        categories: Categories | None = None,
        *,
        iou_type: str = "bbox",
        scorer: str = "auto",
    ):
        if iou_type not in IOU_TYPES:
            raise ValueError(f"unknown iou_type {iou_type!r}: expected one of {IOU_TYPES}")
        self.truth = read_scored(annotations)
        self.source, self.iou_type = self.truth.path, iou_type
        own = {c.class_id: (c.category_id, c.name) for c in self.truth.categories}
        self.categories = dict(own if categories is None else categories)
        source_ids = {image.image_id: image.source_id for image in self.truth.images}
        self.image_ids = sorted_ids(source_ids)
        self._index = {source_ids[image_id]: i for i, image_id in enumerate(self.image_ids)}
        self._category_names = scoring_names(self.truth)
        self._check_categories()
        self._scorer_choice = scorer
        self.class_scores: dict[str, dict[str, float]] = {}
        """Of the last `evaluate`: class name -> COCO's 12 numbers of that class alone."""

    @property
    def num_images(self) -> int:
        """Number of images in the JSON."""
        return len(self.image_ids)

    def image_indices(self, source_ids: Iterable[Any]) -> np.ndarray:
        """Translates record source ids (bytes, text, numbers) into int64 [n] places in `image_ids`.

        Raises:
          ValueError: some are not in the JSON.
        """
        texts = [id_text(source_id) for source_id in source_ids]
        unknown = sorted({text for text in texts if text not in self._index})
        if unknown:
            raise ValueError(
                f"image ids that are not in {self.source}: {some(unknown)} ({len(unknown)} in "
                f"all); the JSON's ids look like {some(self.image_ids)}. The records and the "
                "JSON must come from the same data set and split."
            )
        return np.array([self._index[text] for text in texts], np.int64)

    def coverage(self, evaluated: Iterable[int]) -> Coverage:
        """Compares the images that went through the model with those of the JSON.

        `evaluated` are indices of images, with repetitions, over all ranks.
        """
        counts = np.bincount(np.asarray(list(evaluated), np.int64), minlength=self.num_images)
        return Coverage(
            self.num_images,
            [self.image_ids[i] for i in np.flatnonzero(counts == 0)],
            [self.image_ids[i] for i in np.flatnonzero(counts > 1)],
        )

    def evaluate(
        self,
        detections: np.ndarray | Sequence[Mapping[str, Any]],
        *,
        image_indices: Iterable[int] | None = None,
        max_detections: Sequence[int] = scoring.DEFAULT_MAX_DETECTIONS,
    ) -> dict[str, float]:
        """Returns COCO's 12 numbers and `AP_/<class name>`, as fractions, -1 where unmeasured.

        Args:
          detections: float64 [n, 7] rows of `detections_to_array`, in any order of images; or COCO
            result entries with the data set's ids.
          image_indices: the images to score over; all of the JSON by default.
          max_detections: three limits on detections per image and class.

        Raises:
          ValueError: an image or class that the ground truth does not have, or a value that is not
            finite.
        """
        if not self.truth.is_labelled:
            raise ValueError(
                f"{self.source} has no annotations to score against: of an image list, as of a "
                "test split, set --testdev_dir to have the detections written for a test server"
            )
        if isinstance(detections, np.ndarray):
            self._check_rows(detections)
            indices, results = detections[:, 0].astype(np.int64), self.to_detections(detections)
        else:
            self._check_results(detections)
            results = detections
            indices = self.image_indices(entry["image_id"] for entry in results)
        entries = self._entries(indices, results)
        chosen = sorted(set(range(self.num_images) if image_indices is None else image_indices))
        outside = sorted({entry["image_id"] - 1 for entry in entries} - set(chosen))
        if outside:
            raise ValueError(
                f"detections on {len(outside)} images that are not among the {len(chosen)} to "
                f"score over: {some([self.image_ids[i] for i in outside])}"
            )
        category_ids = sorted(self._category_names)
        scores = self._scorer.score(
            entries,
            image_ids=[index + 1 for index in chosen],
            category_ids=category_ids,
            max_detections=max_detections,
        )
        metrics = scoring.summarize(scores)
        self.class_scores = {
            self._category_names[category_id]: scoring.summarize(scores.of_class(k))
            for k, category_id in enumerate(category_ids)
        }
        for name, values in self.class_scores.items():
            metrics[CLASS_PREFIX + name] = values["AP"]
        return metrics

    def to_detections(self, rows: np.ndarray) -> list[dict[str, Any]]:
        """Turns [n, 7] rows of `ROW_FIELDS` into COCO result entries with the data set's ids."""
        return [
            {
                "image_id": self.image_ids[int(row[0])],
                "category_id": self.categories[int(row[6])][0],
                "bbox": row[1:5].tolist(),
                "score": float(row[5]),
            }
            for row in rows
        ]

    def _check_categories(self) -> None:
        unknown = [
            f"{name} (category id {category_id})"
            for category_id, name in self.categories.values()
            if category_id not in self._category_names
        ]
        if unknown:
            raise ValueError(
                f"category ids that are not in {self.source}: {some(unknown)}; the JSON's are "
                f"{some(sorted(self._category_names))}. The data card or label map belongs to "
                "another data set."
            )

    @functools.cached_property
    def _scorer(self) -> scoring.Scorer:
        """Built at its first use, so that ranks that never score pay nothing."""
        ground_truth = _numbered(self.truth, self._index, iou_type=self.iou_type)
        return scoring.Scorer(ground_truth, self.iou_type, name=self._scorer_choice)

    def _check_rows(self, rows: np.ndarray) -> None:
        if rows.ndim != 2 or rows.shape[1] != len(ROW_FIELDS):
            raise ValueError(f"expected rows [n, 7] of {ROW_FIELDS}, got shape {rows.shape}")
        if self.iou_type != "bbox":
            raise ValueError("rows hold boxes only: score masks from result entries")
        bad = rows[~np.isfinite(rows).all(axis=1)]
        if len(bad):
            raise ValueError(
                f"{len(bad)} of {len(rows)} detections are not finite, the first is "
                f"{dict(zip(ROW_FIELDS, bad[0].tolist()))}: the weights have diverged"
            )
        indices = rows[:, 0].astype(int)
        if ((indices < 0) | (indices >= self.num_images)).any():
            raise ValueError(
                f"image indices {indices.min()} to {indices.max()} for {self.num_images} images "
                f"of {self.source}"
            )
        unknown = sorted(set(rows[:, 6].astype(int)) - set(self.categories))
        if unknown:
            raise ValueError(
                f"class ids {some(unknown)} are not in the class map of {len(self.categories)} "
                "classes: the model and the data card do not belong together"
            )

    def _check_results(self, results: Sequence[Mapping[str, Any]]) -> None:
        unknown = sorted({int(e["category_id"]) for e in results} - set(self._category_names))
        if unknown:
            raise ValueError(f"category ids {some(unknown)} are not in {self.source}")
        for entry in results:
            if not all(map(math.isfinite, (entry["score"], *entry.get("bbox", ())))):
                raise ValueError(f"a detection is not finite: {dict(entry)}")

    def _entries(
        self, indices: np.ndarray, results: Sequence[Mapping[str, Any]]
    ) -> list[dict[str, Any]]:
        """Returns what `Scorer.score` takes of result entries on the images of these indices."""
        entries = []
        # The order within an image decides ties of score; the order of images depends on how many
        # ranks took part, so it must not.
        for number, position in enumerate(np.argsort(indices, kind="stable"), start=1):
            result = results[position]
            entry: dict[str, Any] = {
                "id": number,
                "image_id": int(indices[position]) + 1,
                "category_id": int(result["category_id"]),
                "score": float(result["score"]),
                "iscrowd": 0,
            }
            if self.iou_type == "bbox":
                entry["bbox"] = [float(value) for value in result["bbox"]]
                entry["area"] = entry["bbox"][2] * entry["bbox"][3]
            else:
                entry |= _mask_fields(result["segmentation"])
            entries.append(entry)
        return entries


def sorted_ids(identifiers: Iterable[Any]) -> list[Any]:
    """Sorts image ids as pycocotools does, numbers by value, so that ties of score fall alike."""
    ids = list(identifiers)
    return sorted(ids) if all(isinstance(i, int) for i in ids) else sorted(ids, key=str)


def scoring_names(truth: CocoAnnotations) -> dict[int, str]:
    """Returns category_id -> name, with the id appended where two categories share a name."""
    counts = Counter(truth.class_names)
    return {
        category_id: name if counts[name] == 1 else f"{name} ({category_id})"
        for category_id, name in truth.category_names.items()
    }


def _numbered(truth: CocoAnnotations, index: Mapping[str, int], *, iou_type: str) -> dict[str, Any]:
    """Returns the ground truth, images numbered from 1; for masks without the unknown ones."""
    objects = truth.objects
    if iou_type == "segm":
        sizes = {image.source_id: (image.height, image.width) for image in truth.images}
        objects = {
            source_id: [entry for entry in entries if _has_pixels(entry, sizes[source_id])]
            for source_id, entries in objects.items()
        }
    if iou_type == "segm" and truth.num_objects and not any(objects.values()):
        raise ValueError(
            f"{truth.path}: not one of {truth.num_objects} objects has a usable segmentation: this "
            "data set can only be scored with iou_type bbox"
        )
    numbers = {image.image_id: index[image.source_id] + 1 for image in truth.images}
    content = dataclasses.replace(truth, objects=objects).to_coco()
    for image in content["images"]:
        image["id"] = numbers[image["id"]]
    for entry in content["annotations"]:
        entry["image_id"] = numbers[entry["image_id"]]
    content["images"].sort(key=lambda image: image["id"])
    return {"info": {}, **content}


def _has_pixels(entry: CocoObject, size: tuple[int | None, int | None]) -> bool:
    """Whether the mask of an object is known and covers a pixel; conversion asks the same."""
    segmentation = entry["segmentation"]
    if segmentation is None or None in size:
        return segmentation is not None
    is_small = min(bounds(segmentation)[2:]) < _SIDE_WITH_PIXELS_PX
    return not is_small or bool(decode_mask(segmentation, *size).any())


def _mask_fields(segmentation: Mapping[str, Any]) -> dict[str, Any]:
    """Returns an RLE with its area and box; the area ranges of mask AP go by mask area."""
    rle = as_rle(segmentation, *map(int, segmentation["size"]))
    area, box = float(mask_api.area(rle)), mask_api.toBbox(rle).tolist()
    return {"segmentation": rle, "area": area, "bbox": box}
