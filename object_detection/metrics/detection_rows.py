"""Detections on their way from the model to the scorer and to files.

Inside the program detections are rows of one float64 array, because arrays, unlike lists, can be
gathered over ranks in one collective, also when a rank has none. Files hold COCO's list of
dictionaries.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from outside_data.files import MOST_JSON_BYTES, expecting, read_json
from outside_data.whole_file import write_whole

ROW_FIELDS = ("image_index", "x", "y", "w", "h", "score", "class_id")
"""Columns of a row: position in `CocoEvaluator.image_ids`; box in original-image pixels; score;
contiguous class id. float64 holds every one exactly."""


def empty_rows() -> np.ndarray:
    """Returns float64 [0, 7], what a rank without images contributes."""
    return np.zeros((0, len(ROW_FIELDS)), np.float64)


def detections_to_array(
    image_indices: np.ndarray,
    boxes: np.ndarray,
    *,
    scores: np.ndarray,
    classes: np.ndarray,
) -> np.ndarray:
    """Flattens a batch of padded detections into rows.

    Args:
      image_indices: int [batch], from `CocoEvaluator.image_indices`.
      boxes: [batch, k, 4], (y1, x1, y2, x2), original-image pixels.
      scores: [batch, k].
      classes: int [batch, k], contiguous class ids, -1 for padding.

    Returns:
      float64 [n, 7] rows, see `ROW_FIELDS`, in the order of the batch.
    """
    boxes = np.asarray(boxes, np.float64)
    scores = np.asarray(scores, np.float64)
    if boxes.ndim != 3 or boxes.shape[-1] != 4 or scores.shape != boxes.shape[:2]:
        raise ValueError(
            "expected boxes [batch, k, 4] and scores, classes [batch, k], got boxes "
            f"{boxes.shape}, scores {scores.shape}, classes {classes.shape}"
        )
    image, slot = np.nonzero(classes >= 0)
    y1, x1, y2, x2 = boxes[image, slot].T
    where = image_indices[image], x1, y1, x2 - x1, y2 - y1
    return np.stack([*where, scores[image, slot], classes[image, slot]], axis=1)


def read_detections_json(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Returns the entries of COCO's result file.

    Raises:
      OSError: there is no such file.
      BadFileError: it holds something else.
    """
    entries = read_json(path, most=MOST_JSON_BYTES)
    with expecting(path, "COCO's results: a list of image_id, category_id, bbox and score"):
        if not isinstance(entries, list):
            raise TypeError(f"a {type(entries).__name__}")
        for entry in entries:
            numbers = [entry["score"], *(entry["bbox"] if "segmentation" not in entry else ())]
            int(entry["category_id"]), entry["image_id"], list(map(float, numbers))
    return entries


def write_detections_json(
    path: str | os.PathLike[str],
    detections: Iterable[Mapping[str, Any]],
    *,
    full_precision: bool = False,
) -> Path:
    """Writes COCO's result file, aside first and then renamed.

    Args:
      path: for the COCO test server `detections_test-dev2017_<name>_results.json`.
      detections: result entries; `bbox` or `segmentation` or both.
      full_precision: False rounds as the server's uploads do, boxes to 2 decimals and scores to 3.

    Returns:
      The path written.
    """
    target = Path(path)
    entries = [_file_entry(entry, full_precision=full_precision) for entry in detections]
    target.parent.mkdir(parents=True, exist_ok=True)
    write_whole(target, json.dumps(entries))
    return target


def _file_entry(entry: Mapping[str, Any], *, full_precision: bool) -> dict[str, Any]:
    written: dict[str, Any] = {
        "image_id": entry["image_id"],
        "category_id": int(entry["category_id"]),
    }
    if "bbox" in entry:
        box = [float(value) for value in entry["bbox"]]
        written["bbox"] = box if full_precision else [round(value, 2) for value in box]
    if "segmentation" in entry:
        mask = dict(entry["segmentation"])
        counts = mask["counts"]
        mask["counts"] = counts.decode("ascii") if isinstance(counts, bytes) else counts
        written["segmentation"] = mask
    score = float(entry["score"])
    written["score"] = score if full_precision else round(score, 3)
    return written
