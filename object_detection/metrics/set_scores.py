"""Scores of one evaluation set: what its records, its JSON and a model's classes must agree on.

Here the parts meet that every detector needs around `CocoEvaluator`: batches of the input pipeline
become rows, their images are counted, and masks are scored beside boxes where a model has them.
Names of mask metrics start with `mask_`.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from object_detection.coco.annotations import CocoAnnotations, read_scored
from object_detection.coco.listed import some
from object_detection.masks.rescale import rescale_annotations
from object_detection.masks.rows import with_masks
from object_detection.metrics import scorer as scoring
from object_detection.metrics.coco import (
    CLASS_PREFIX,
    METRIC_NAMES,
    CocoEvaluator,
    scoring_names,
)
from object_detection.metrics.detection_rows import detections_to_array, empty_rows
from object_detection.metrics.ground_truth_check import check_ground_truth
from object_detection.records.card import DataCard
from object_detection.records.class_map import ClassMap
from object_detection.records.schema import SOURCE_ID

_LOG = logging.getLogger(__name__)

MASK_PREFIX = "mask_"


@dataclasses.dataclass
class SetScores:
    """Scores detections on one set of records.

    annotations: path of the instances JSON.
    class_map: channels of the model.
    records: the pattern of the record files, for messages.
    card: of the records; None where nothing is scored.
    scorer: as of `CocoEvaluator`.
    is_submission: detections may be for a test server: a JSON without annotations is then no error.
    has_masks: score masks too.
    is_scored: False: detections are only to be written, as if there were no annotations.
    max_detections: of an image and class that are scored; COCO's numbers are those of 100.
    score_threshold: below which the model gives nothing, for messages.
    """

    annotations: str
    class_map: ClassMap
    records: str
    card: DataCard | None
    scorer: str = "auto"
    is_submission: bool = False
    has_masks: bool = False
    is_scored: bool = True
    max_detections: int = scoring.DEFAULT_MAX_DETECTIONS[-1]
    score_threshold: float = 0.0
    scored_image_ids: list[Any] | None = dataclasses.field(default=None, init=False)
    """Of the last `score`: the images it was over; None: all of the JSON."""
    _highest_refused: float = dataclasses.field(default=0.0, init=False)

    @functools.cached_property
    def _truth(self) -> CocoAnnotations:
        truth = read_scored(self.annotations)
        return rescale_annotations(truth, self.card.resized_images) if self.card else truth

    @functools.cached_property
    def _channels(self) -> ClassMap:
        """The model's channels with the JSON's category ids; without classes it does not list."""
        return self.class_map.matched(self._truth.category_names, source=self.annotations)

    @functools.cached_property
    def evaluator(self) -> CocoEvaluator:
        """The ground truth, parsed at first use."""
        return CocoEvaluator(self._truth, self._channels.categories, scorer=self.scorer)

    @functools.cached_property
    def _mask_evaluator(self) -> CocoEvaluator:
        return CocoEvaluator(
            self._truth, self._channels.categories, iou_type="segm", scorer=self.scorer
        )

    @functools.cached_property
    def is_unlabelled(self) -> bool:
        """True where detections are only to be written: asked for, or the JSON is a mere list."""
        return not self.is_scored or (self.is_submission and not self._truth.num_objects)

    def metric_names(self) -> list[str]:
        """Returns the names of what `score` gives."""
        classes = scoring_names(self.evaluator.truth).values()
        names = [*METRIC_NAMES, *(CLASS_PREFIX + name for name in classes)]
        return names + ([MASK_PREFIX + name for name in names] if self.has_masks else [])

    def class_scores(self) -> dict[str, dict[str, dict[str, float]]]:
        """Returns, of the last `score`, '' and 'mask_' -> class name -> COCO's 12 numbers."""
        scores = {"": self.evaluator.class_scores}
        return scores | ({MASK_PREFIX: self._mask_evaluator.class_scores} if self.has_masks else {})

    def check(self, first_batch: Callable[[], Mapping[str, np.ndarray] | None]) -> None:
        """Scores the ground truth against itself: as the JSON has it, and as the records have it.

        Args:
          first_batch: makes the first batch of the input pipeline, fields of a HostExample.

        Raises:
          ValueError: ids, classes or units of JSON, records and model do not meet; says which.
        """
        if self.is_unlabelled:
            return
        self._require_all_images()
        for line in self._truth.describe_findings(with_masks=self.has_masks):
            _LOG.warning("%s", line)
        renumbered = self.class_map.renumbered(self._channels)
        if renumbered:
            _LOG.warning("%s: classes are matched by name: %s", self.annotations, some(renumbered))
        self._say_crowded()
        if self.has_masks:
            self._require_masks()
        options = {"categories": self._channels.categories, "scorer": self.scorer}
        check_ground_truth(self._truth, **options)
        rows = self._ground_truth_rows(first_batch())
        if len(rows):
            check_ground_truth(self._truth, rows=rows, **options)

    def _say_crowded(self) -> None:
        """Warns if an image has more objects of a class than are scored."""
        counts = Counter(
            (source_id, entry["category_id"])
            for source_id, entries in self._truth.objects.items()
            for entry in entries
            if not entry["iscrowd"]
        )
        crowded = [key for key, count in counts.items() if count > self.max_detections]
        if crowded:
            source_id, category_id = max(crowded, key=counts.__getitem__)
            name = self._truth.category_names[category_id]
            _LOG.warning(
                "%s: the best %d detections of an image and class are scored, but %d images have "
                "more objects of one class (image %s: %d of %r), so AP cannot reach 1: raise "
                "--max_detections",
                self.annotations,
                self.max_detections,
                len({image for image, _ in crowded}),
                source_id,
                counts[source_id, category_id],
                name,
            )

    def _require_all_images(self) -> None:
        """Raises ValueError if the JSON has images that are neither in the records nor left out."""
        card, expected = self.card, self.evaluator.num_images
        if card.num_images + len(card.skipped_source_ids) != expected:
            raise ValueError(
                f"{self.records} holds {card.num_images} images but "
                f"{self.annotations} lists {expected}, of which "
                f"{len(card.skipped_source_ids)} were left out in conversion: name the JSON "
                "of these records, or convert all of that one again, and nothing else"
            )

    def _require_masks(self) -> None:
        """Raises ValueError if no object of the JSON has a mask, or an image no size."""
        objects = [entry for entries in self._truth.objects.values() for entry in entries]
        if objects and all(entry["segmentation"] is None for entry in objects):
            raise ValueError(
                f"{self.annotations}: not one of {len(objects)} objects has a usable segmentation, "
                "but the model has masks to be scored: use a JSON with masks, or a model without "
                "(fasterrcnn-*)"
            )
        for image in self._truth.images:
            if not image.height and self._truth.objects.get(image.source_id):
                raise ValueError(
                    f"{self.annotations}: image {image.image_id} has no height and width, which "
                    "masks cannot do without"
                )

    def _require_sizes(self, results: Sequence[Mapping[str, Any]]) -> None:
        """Raises ValueError for a mask of another size than the JSON's image: none would match."""
        sizes = {image.image_id: [image.height, image.width] for image in self._truth.images}
        for entry in results:
            found, expected = entry["segmentation"]["size"], sizes[entry["image_id"]]
            if found != expected and None not in expected:
                raise ValueError(
                    f"image {entry['image_id']} is {found[1]}x{found[0]} pixels in {self.records}, "
                    f"but {expected[1]}x{expected[0]} in {self.annotations}: masks cannot be "
                    "compared; convert the validation set from the images of this JSON"
                )

    def _ground_truth_rows(self, batch: Mapping[str, np.ndarray] | None) -> np.ndarray:
        """The objects of some images as the input pipeline delivers them, as rows of score 1."""
        if batch is None:
            return empty_rows()
        # An image whose rows are all taken may have lost some of its boxes.
        is_asked = batch["valid"] & (batch["classes"] < 0).any(axis=1)
        is_left_out = batch["is_crowd"] | ~is_asked[:, np.newaxis]
        return detections_to_array(
            self._indices(batch)[0],
            batch["boxes"],
            scores=np.ones(batch["classes"].shape),
            classes=np.where(is_left_out, -1, batch["classes"]),
        )

    def _indices(self, batch: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Returns image indices int64 [batch], 0 for padding, and those without padding."""
        valid = batch["valid"]
        if (batch["source_id"][valid] == b"").any():
            raise ValueError(
                f"{self.records}: a record has no {SOURCE_ID}, by which images are found in "
                f"{self.annotations}: write the image's id in that JSON, as text, into every "
                "record, or convert the validation set with dataset/create_coco_tfrecord.py"
            )
        indices = np.zeros(len(valid), np.int64)
        indices[valid] = self.evaluator.image_indices(batch["source_id"][valid])
        return indices, indices[valid]

    def rows(
        self,
        batch: Mapping[str, np.ndarray],
        *,
        boxes: np.ndarray,
        scores: np.ndarray,
        classes: np.ndarray,
        num_valid: np.ndarray,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Turns a batch of detections into rows.

        Args:
          batch: `valid` and `source_id` of the images.
          boxes: [batch, k, 4], (y1, x1, y2, x2), original pixels.
          scores: [batch, k].
          classes: int [batch, k], class_id; -1 for padding.
          num_valid: int [batch].

        Returns:
          float64 [n, 7] rows, see `detections_to_array`; int64 indices of the images without
          padding; and int64 [n, 2], where each row comes from: (example, slot) of the batch.
        """
        indices, known_indices = self._indices(batch)
        keep = self._channels.is_known(classes) & batch["valid"][:, np.newaxis]
        keep &= np.arange(classes.shape[1]) < num_valid[:, np.newaxis]
        # Of an image without detections the first slot has the best score below the threshold.
        empty = batch["valid"] & (num_valid == 0)
        self._highest_refused = max(self._highest_refused, *scores[empty, :1].ravel(), 0.0)
        rows = detections_to_array(
            indices, boxes, scores=scores, classes=np.where(keep, classes, -1)
        )
        return rows, known_indices, np.argwhere(keep)

    def score(
        self,
        rows: np.ndarray,
        images: np.ndarray,
        *,
        masks: Sequence[bytes] | None = None,
        is_limited: bool,
        most_bad_records: int,
    ) -> dict[str, float]:
        """COCO's numbers over all images of the JSON, or those seen if the set `is_limited`.

        Images that conversion or reading had to leave out count as images without detections.

        Args:
          rows: of all ranks.
          images: indices of the images evaluated, over all ranks.
          masks: packed masks, one for each row; required if `has_masks`.
          is_limited: only a part of the set was evaluated.
          most_bad_records: images that reading may leave out.

        Returns:
          {} where there is nothing to score against.

        Raises:
          ValueError: images are missing or were evaluated twice.
        """
        if self.is_unlabelled:
            return {}
        coverage = self.evaluator.coverage(images)
        allowed = len(self.card.skipped_source_ids) + most_bad_records
        missing = [] if is_limited else coverage.missing
        if coverage.repeated or len(missing) > allowed:
            raise ValueError(
                f"{self.annotations} and {self.records} differ: "
                f"{coverage.describe()}. Each image must be in the records exactly once: convert "
                "the validation set again"
            )
        if missing:
            _LOG.warning("%s; the others count as images without detections", coverage.describe())
        chosen = sorted(set(images.tolist())) if is_limited else None
        if is_limited:
            self.scored_image_ids = [self.evaluator.image_ids[i] for i in chosen]
        if not len(rows):
            _LOG.warning(
                "not one detection on %d images, so AP is 0: the highest score that rank 0 saw is "
                "%.2g, below the threshold of %.2g. Train longer, or lower the threshold",
                len(images),
                self._highest_refused,
                self.score_threshold,
            )
        limits = (1, 10, self.max_detections)
        options = {"image_indices": chosen, "max_detections": limits}
        metrics = self.evaluator.evaluate(rows, **options)
        if self.has_masks:
            results = with_masks(self.evaluator.to_detections(rows), masks)
            self._require_sizes(results)
            of_masks = self._mask_evaluator.evaluate(results, **options)
            metrics |= {MASK_PREFIX + name: value for name, value in of_masks.items()}
        return metrics
