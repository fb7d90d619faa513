"""The evaluator against pycocotools used directly, as its own demo uses it.

The numbers must be equal to the last bit with pycocotools as scorer. With an optional scorer (run
when it is installed) they must agree to 1e-12.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from pycocotools import mask as mask_api
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from object_detection.metrics.coco import METRIC_NAMES, CocoEvaluator
from object_detection.metrics.ground_truth_check import ground_truth_rows
from object_detection.metrics.scorer import SCORERS

DATA = Path(
    os.environ.get("DETECTION_TEST_DATA", Path(__file__).resolve().parents[3] / "shared" / "data")
)
COCO_JSON = DATA / "coco_cc" / "annotations" / "instances_val2017.json"


def generated_set():
    """Images with 0 to 12 objects of 5 classes of all COCO sizes, some crowd, ids with gaps."""
    rng = np.random.default_rng(0)
    category_ids = (2, 3, 11, 40, 90)
    images, annotations = [], []
    for number in range(40):
        image_id = 1000 - 7 * number
        images.append({"id": image_id, "width": 640, "height": 480, "file_name": f"{number}.jpg"})
        for _ in range(int(rng.integers(0, 13))):
            size = np.exp(rng.uniform(np.log(8), np.log(300), 2))
            corner = rng.uniform(0, [640, 480]) * 0.6
            box = np.round([*corner, *size], 2).tolist()
            is_crowd = int(rng.random() < 0.08)
            annotation = {
                "id": len(annotations) + 10,
                "image_id": image_id,
                "category_id": int(rng.choice(category_ids[:4])),
                "bbox": box,
                "area": box[2] * box[3] * 0.8,
                "iscrowd": is_crowd,
                "segmentation": _ellipse_rle(box) if is_crowd else _octagon(box),
            }
            annotations.append(annotation)
    categories = [{"id": i, "name": f"kind {i}"} for i in category_ids]
    return {"images": images, "annotations": annotations, "categories": categories}


def _octagon(box):
    x, y, w, h = box
    angles = np.arange(8) * np.pi / 4
    corners = np.column_stack([x + w / 2 * (1 + np.cos(angles)), y + h / 2 * (1 + np.sin(angles))])
    return [corners.ravel().tolist()]


def _ellipse_rle(box):
    x, y, w, h = box
    rows, columns = np.mgrid[:480, :640]
    inside = ((columns - x - w / 2) / (w / 2)) ** 2 + ((rows - y - h / 2) / (h / 2)) ** 2 <= 1
    rle = mask_api.encode(np.asfortranarray(inside.astype(np.uint8)))
    return {"size": rle["size"], "counts": rle["counts"].decode("ascii")}


def perturbed(dataset, *, iou_type):
    """Detections near the ground truth, some wrong, some missing, many of equal score."""
    rng = np.random.default_rng(1)
    sizes = {image["id"]: (image["height"], image["width"]) for image in dataset["images"]}
    category_ids = [category["id"] for category in dataset["categories"]]
    detections = []
    for annotation in dataset["annotations"]:
        for _ in range(int(rng.integers(0, 3))):
            box = np.array(annotation["bbox"], np.float64)
            box += rng.normal(0, 0.08, 4) * np.tile(box[2:], 2)
            box[2:] = np.maximum(box[2:], 1)
            category_id = annotation["category_id"]
            if rng.random() < 0.1:
                category_id = int(rng.choice(category_ids))
            entry = {
                "image_id": annotation["image_id"],
                "category_id": category_id,
                "score": round(float(rng.random()), 2),
            }
            if iou_type == "bbox":
                entry["bbox"] = box.tolist()
            else:
                height, width = sizes[annotation["image_id"]]
                entry["segmentation"] = mask_api.frPyObjects(_octagon(box), height, width)[0]
            detections.append(entry)
    return detections


def straight_from_pycocotools(dataset, detections, iou_type, image_ids=None):
    """The 12 numbers and the AP per class as pycocotools' own demo computes them."""
    with contextlib.redirect_stdout(io.StringIO()):
        ground_truth = COCO()
        ground_truth.dataset = json.loads(json.dumps(dataset))
        ground_truth.createIndex()
        results = ground_truth.loadRes([dict(entry) for entry in detections])
        evaluation = COCOeval(ground_truth, results, iou_type)
        if image_ids is not None:
            evaluation.params.imgIds = image_ids
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    expected = dict(zip(METRIC_NAMES, evaluation.stats.tolist()))
    for k, category_id in enumerate(evaluation.params.catIds):
        precision = evaluation.eval["precision"][:, :, k, 0, -1]
        precision = precision[precision > -1]
        name = ground_truth.cats[category_id]["name"]
        expected[f"AP_/{name}"] = float(precision.mean()) if precision.size else -1.0
    return expected


def rows_of(evaluator, detections):
    """Result entries as rows, the way they come from a model."""
    class_ids = {category_id: k for k, (category_id, _) in evaluator.categories.items()}
    indices = evaluator.image_indices(entry["image_id"] for entry in detections)
    return np.array(
        [
            [index, *entry["bbox"], entry["score"], class_ids[entry["category_id"]]]
            for index, entry in zip(indices, detections)
        ]
    )


@pytest.fixture(scope="module", params=["generated", "coco_cc"])
def dataset(request):
    if request.param == "generated":
        return generated_set()
    if not COCO_JSON.is_file():
        pytest.skip(f"no {COCO_JSON}: set DETECTION_TEST_DATA to the folder that holds coco_cc")
    return json.loads(COCO_JSON.read_bytes())


@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
def test_equal_to_pycocotools(dataset, iou_type):
    detections = perturbed(dataset, iou_type=iou_type)
    expected = straight_from_pycocotools(dataset, detections, iou_type)
    evaluator = CocoEvaluator(dataset, iou_type=iou_type, scorer="pycocotools")
    assert evaluator.evaluate(detections) == expected
    assert 0.1 < expected["AP"] < 0.9, "the comparison must be about something"


def test_rows_equal_to_pycocotools(dataset):
    detections = perturbed(dataset, iou_type="bbox")
    evaluator = CocoEvaluator(dataset, scorer="pycocotools")
    expected = straight_from_pycocotools(dataset, detections, "bbox")
    assert evaluator.evaluate(rows_of(evaluator, detections)) == expected


def test_subset_equal_to_pycocotools(dataset):
    evaluator = CocoEvaluator(dataset, scorer="pycocotools")
    subset = evaluator.image_ids[::3]
    detections = [d for d in perturbed(dataset, iou_type="bbox") if d["image_id"] in subset]
    expected = straight_from_pycocotools(dataset, detections, "bbox", image_ids=subset)
    found = evaluator.evaluate(detections, image_indices=evaluator.image_indices(subset))
    assert found == expected


@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
@pytest.mark.parametrize("name", [name for name in SCORERS if name != "pycocotools"])
def test_optional_scorers_agree(dataset, iou_type, name):
    if find_spec(name) is None:
        pytest.skip(f"{name} is not installed (optional)")
    detections = perturbed(dataset, iou_type=iou_type)
    expected = straight_from_pycocotools(dataset, detections, iou_type)
    evaluator = CocoEvaluator(dataset, iou_type=iou_type, scorer=name)
    assert evaluator.evaluate(detections) == pytest.approx(expected, abs=1e-12)
    assert evaluator.evaluate([]) == pytest.approx(
        CocoEvaluator(dataset, iou_type=iou_type, scorer="pycocotools").evaluate([])
    )


def test_json_of_real_ground_truth_meets_itself(dataset):
    evaluator = CocoEvaluator(dataset)
    rows, _ = ground_truth_rows(evaluator)
    assert evaluator.evaluate(rows)["AP"] == pytest.approx(1.0, abs=1e-9)
