"""COCO metrics against numbers worked out by hand, and the errors a user can run into."""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest
from samples import instances

from engine.config.settings import EvalConfig
from object_detection.coco.annotations import read_scored
from object_detection.metrics import ground_truth_check
from object_detection.metrics import scorer as scoring
from object_detection.metrics.coco import METRIC_NAMES, CocoEvaluator
from object_detection.metrics.detection_rows import (
    detections_to_array,
    empty_rows,
    write_detections_json,
)
from object_detection.metrics.ground_truth_check import check_ground_truth, ground_truth_rows
from object_detection.metrics.report import CSV_HEADER, csv_line, format_metrics_table


def rows(*entries):
    """(image_index, (x, y, w, h), score, class_id) -> float64 [n, 7]."""
    return np.array([[i, *box, p, k] for i, box, p, k in entries], np.float64).reshape(-1, 7)


def score(dataset, *found, **options):
    """The metrics of detections as of `rows`."""
    return CocoEvaluator(dataset).evaluate(rows(*found), **options)


BOX, OTHER = (100, 100, 50, 60), (300, 200, 120, 100)


def test_one_perfect_detection():
    result = score(instances([1], [(1, 3, BOX)]), (0, BOX, 0.3, 0))
    assert list(result) == [*METRIC_NAMES, "AP_/cat", "AP_/dog"]
    for name in ("AP", "AP50", "AP75", "APm", "ARmax1", "ARmax10", "ARmax100", "ARm", "AP_/cat"):
        assert result[name] == pytest.approx(1.0), name
    for name in ("APs", "APl", "ARs", "ARl", "AP_/dog"):
        assert result[name] == -1.0, name


def test_false_positive_between_two_hits():
    """Precision is 1 up to recall 0.5 (51 of 101 points) and 2/3 from there on (50 points)."""
    dataset = instances([1], [(1, 3, BOX), (1, 3, OTHER)])
    found = (0, BOX, 0.9, 0), (0, (500, 10, 20, 20), 0.8, 0), (0, OTHER, 0.7, 0)
    result = score(dataset, *found)
    expected = (51 + 50 * 2 / 3) / 101
    assert result["AP"] == pytest.approx(expected)
    assert result["AP50"] == pytest.approx(expected)
    assert result["ARmax1"] == pytest.approx(0.5)
    assert result["ARmax10"] == pytest.approx(1.0)
    assert result["APm"] == pytest.approx(1.0), "detections outside an area range do not count"


def test_wrong_class_is_a_miss_and_classes_weigh_alike():
    dataset = instances([1], [(1, 3, BOX), (1, 7, OTHER)])
    result = score(dataset, (0, BOX, 0.9, 0), (0, OTHER, 0.9, 0))
    assert result["AP_/cat"] == pytest.approx(1.0)
    assert result["AP_/dog"] == 0.0
    assert result["AP"] == pytest.approx(0.5)


def test_empty_detections_and_empty_images():
    dataset = instances([1, 2, 3], [(1, 3, BOX)])
    assert CocoEvaluator(dataset).evaluate(empty_rows())["AP"] == 0.0
    assert CocoEvaluator(dataset).evaluate([])["AP"] == 0.0
    assert score(dataset, (0, BOX, 0.5, 0))["AP"] == pytest.approx(1.0)
    assert score(dataset, (0, BOX, 0.5, 0), (2, BOX, 0.9, 0))["AP"] == pytest.approx(0.5)
    nothing = instances([1, 2], [])
    assert score(nothing, (0, BOX, 0.5, 0))["AP"] == -1.0
    assert CocoEvaluator(nothing, iou_type="segm").evaluate([])["AP"] == -1.0


def test_all_images_of_the_json_count_unless_a_subset_is_named():
    dataset, found = instances([1, 2], [(1, 3, BOX), (2, 3, BOX)]), (0, BOX, 0.9, 0)
    assert score(dataset, found)["AP"] == pytest.approx(51 / 101)
    assert score(dataset, found, image_indices=[0])["AP"] == pytest.approx(1.0)
    with pytest.raises(ValueError, match="not among the 1 to score over: 1"):
        score(dataset, found, image_indices=[1])


def test_order_of_images_does_not_matter():
    """With another number of ranks the rows arrive in another order of images; ties must hold."""
    rng = np.random.default_rng(0)
    dataset = instances(range(8), [(i, 3, BOX) for i in range(8)])
    found = np.concatenate(
        [rows((i, (100 + rng.integers(0, 40), 100, 50, 60), 0.5, 0)) for i in range(8)]
    )
    evaluator = CocoEvaluator(dataset)
    straight = evaluator.evaluate(found)
    for _ in range(4):
        assert evaluator.evaluate(found[rng.permutation(8)]) == straight


@pytest.mark.parametrize(("ids", "ap"), [((10, 9), 0.5), (("10", "9"), 1.0)])
def test_equal_scores_count_in_the_order_of_pycocotools(ids, ap):
    """Numbers by value, texts as texts: the detection of the image without objects is 9's."""
    entry = {"category_id": 3, "bbox": BOX, "score": 0.5}
    evaluator = CocoEvaluator(instances(ids, [(ids[0], 3, BOX)]))
    found = [{**entry, "image_id": image_id} for image_id in ids]
    assert evaluator.evaluate(found)["AP"] == pytest.approx(ap)


@pytest.mark.parametrize("ids", [["b/1", "a/2"], [20, 3], ["000000000139", "17"]])
def test_ids_of_any_kind_meet_as_text(ids):
    evaluator = CocoEvaluator(instances(ids, [(ids[0], 3, BOX), (ids[1], 7, OTHER)]))
    indices = evaluator.image_indices([str(ids[0]).encode(), str(ids[1])])
    assert [evaluator.image_ids[i] for i in indices] == ids
    found = rows((indices[0], BOX, 0.9, 0), (indices[1], OTHER, 0.8, 1))
    assert evaluator.evaluate(found)["AP"] == pytest.approx(1.0)
    entries = evaluator.to_detections(found)
    assert [entry["image_id"] for entry in entries] == ids
    assert evaluator.evaluate(entries)["AP"] == pytest.approx(1.0)


def test_annotation_id_zero_can_be_matched():
    dataset = instances([1], [(1, 3, BOX)])
    dataset["annotations"][0]["id"] = 0
    assert score(dataset, (0, BOX, 0.9, 0))["AP"] == pytest.approx(1)


def test_missing_area_and_iscrowd_have_defaults():
    dataset = instances([1], [(1, 3, (0, 0, 20, 20))])
    for key in ("area", "iscrowd"):
        del dataset["annotations"][0][key]
    assert score(dataset, (0, (0, 0, 20, 20), 0.9, 0))["APs"] == pytest.approx(1.0)


def test_ground_truth_handed_over_is_left_alone_and_reusable():
    dataset = instances([1], [(1, 3, BOX)])
    before = copy.deepcopy(dataset)
    evaluator = CocoEvaluator(dataset)
    first = evaluator.evaluate(rows((0, BOX, 0.9, 0)))
    evaluator.evaluate(empty_rows())
    assert evaluator.evaluate(rows((0, BOX, 0.9, 0))) == first
    assert dataset == before


def test_class_map_translates_to_category_ids():
    dataset = instances([1], [(1, 7, BOX)])
    evaluator = CocoEvaluator(dataset, {0: (7, "dog")})
    result = evaluator.evaluate(rows((0, BOX, 0.9, 0)))
    assert result["AP_/dog"] == pytest.approx(1.0)
    assert evaluator.to_detections(rows((0, BOX, 0.9, 0)))[0]["category_id"] == 7


def test_classes_of_one_name_are_kept_apart():
    dataset = instances([1], [(1, 3, BOX)], categories=((3, "part"), (4, "part")))
    result = score(dataset, (0, BOX, 0.9, 0))
    assert result["AP_/part (3)"] == pytest.approx(1.0)
    assert result["AP_/part (4)"] == -1.0


def test_masks_are_scored_by_mask():
    """Two boxes alike, one mask a triangle: box AP 1, mask AP 0. A mask without a pixel is none."""
    mask_api = pytest.importorskip("pycocotools.mask")
    dataset = instances([1], [(1, 3, (0, 0, 64, 64)), (1, 3, (99, 99.1, 70, 0.2))])
    outlines = [0, 0, 64, 0, 64, 64, 0, 64], [99, 99.1, 169, 99.1, 169, 99.3, 99, 99.3]
    for entry, outline in zip(dataset["annotations"], outlines):
        entry["segmentation"] = [outline]
    square = np.zeros((480, 640), np.uint8, order="F")
    square[:64, :64] = 1
    corner = square.copy(order="F")
    corner[:64, :64] = np.tri(64, dtype=np.uint8) * (np.arange(64) < 40)
    evaluator = CocoEvaluator(dataset, iou_type="segm")
    for mask, expected in ((square, 1.0), (corner, 0.0)):
        entry = {
            "image_id": 1,
            "category_id": 3,
            "score": 0.9,
            "bbox": [0, 0, 64, 64],
            "segmentation": mask_api.encode(mask),
        }
        assert evaluator.evaluate([entry])["AP50"] == pytest.approx(expected)
    boxes_only = CocoEvaluator(instances([1], [(1, 3, BOX)]), iou_type="segm")
    with pytest.raises(ValueError, match="not one of 1 objects has a usable segmentation"):
        boxes_only.evaluate([])


def test_bad_detections_are_named():
    evaluator = CocoEvaluator(instances([1], [(1, 3, BOX)]))
    with pytest.raises(ValueError, match=r"not in .*77.*look like 1"):
        evaluator.image_indices(["77"])
    with pytest.raises(ValueError, match="image indices 0 to 4 for 1 images"):
        evaluator.evaluate(rows((0, BOX, 0.9, 0), (4, BOX, 0.9, 0)))
    with pytest.raises(ValueError, match="class ids 9"):
        evaluator.evaluate(rows((0, BOX, 0.9, 9)))
    with pytest.raises(ValueError, match="not finite"):
        evaluator.evaluate(rows((0, BOX, float("nan"), 0)))
    with pytest.raises(ValueError, match=r"\[n, 7\]"):
        evaluator.evaluate(np.zeros((3, 6)))
    entry = {"image_id": 1, "category_id": 3, "bbox": BOX, "score": 1.0}
    with pytest.raises(ValueError, match="category ids 5"):
        evaluator.evaluate([{**entry, "category_id": 5}])
    for value in ({"score": float("nan")}, {"bbox": (0, 0, float("inf"), 5)}):
        with pytest.raises(ValueError, match="a detection is not finite: .*'image_id': 1"):
            evaluator.evaluate([entry, {**entry, **value}])


def test_bad_ground_truth_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nothing\.json"):
        CocoEvaluator(tmp_path / "nothing.json")
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(ValueError, match=r"broken\.json is no valid JSON"):
        CocoEvaluator(tmp_path / "broken.json")
    with pytest.raises(ValueError, match="no 'categories'"):
        CocoEvaluator({"images": [{"id": 1, "file_name": "a"}]})
    with pytest.raises(ValueError, match="bird"):
        CocoEvaluator(instances([1], []), {0: (3, "cat"), 1: (99, "bird")})
    image_list = instances([1], [])
    del image_list["annotations"]
    with pytest.raises(ValueError, match="set --testdev_dir"):
        CocoEvaluator(image_list).evaluate(empty_rows())
    with pytest.raises(ValueError, match="unknown COCO scorer 'fastest'"):
        CocoEvaluator(instances([1], []), scorer="fastest").evaluate([])


def test_json_file_is_read_like_a_dictionary(tmp_path):
    dataset = instances([1], [(1, 3, BOX)])
    path = tmp_path / "instances.json"
    path.write_text(json.dumps(dataset))
    found = rows((0, BOX, 0.9, 0))
    from_file = CocoEvaluator(path).evaluate(found)
    assert from_file == CocoEvaluator(dataset).evaluate(found)


def test_coverage_names_missing_and_repeated_images():
    evaluator = CocoEvaluator(instances([10, 20, 30], []))
    coverage = evaluator.coverage([0, 2, 2])
    assert coverage.missing == [20]
    assert coverage.repeated == [30]
    assert coverage.describe() == (
        "2 of 3 images evaluated; 1 missing: 20; 1 evaluated more than once: 30"
    )
    assert evaluator.coverage([2, 0, 1]).describe() == "3 of 3 images evaluated"


def test_detections_to_array_drops_padding():
    boxes = np.arange(2 * 3 * 4, dtype=np.float32).reshape(2, 3, 4)
    array = detections_to_array(
        np.array([5, 9]),
        boxes,
        scores=np.array([[0.9, 0.8, 0.7], [0.6, 0.5, 0.4]]),
        classes=np.array([[1, 0, -1], [3, -1, 4]]),
    )
    # Second row: box (y1, x1, y2, x2) = (4, 5, 6, 7).
    assert array[:, 0].tolist() == [5, 5, 9, 9]
    assert array[1].tolist() == [5, 5, 4, 2, 2, 0.8, 0]
    assert array[:, 6].tolist() == [1, 0, 3, 4]


def test_rows_of_ranks_without_images_can_be_joined():
    nothing = detections_to_array(
        np.zeros(0, int), np.zeros((0, 3, 4)), scores=np.zeros((0, 3)), classes=np.zeros((0, 3))
    )
    assert nothing.shape == empty_rows().shape == (0, 7)
    assert np.concatenate([nothing, rows((0, BOX, 1, 0))]).shape == (1, 7)
    with pytest.raises(ValueError, match="boxes"):
        detections_to_array(
            np.zeros(1), np.zeros((1, 3, 5)), scores=np.zeros((1, 3)), classes=np.zeros((1, 3))
        )


def test_detections_file_rounds_as_the_server_wants(tmp_path):
    evaluator = CocoEvaluator(instances(["x"], [("x", 7, BOX)]))
    found = evaluator.to_detections(rows((0, (1.23456, 2, 3, 4.5678), 0.98765, 1)))
    path = write_detections_json(tmp_path / "a" / "b" / "results.json", found)
    assert json.loads(path.read_text()) == [
        {"image_id": "x", "category_id": 7, "bbox": [1.23, 2.0, 3.0, 4.57], "score": 0.988}
    ]
    write_detections_json(path, found, full_precision=True)
    assert json.loads(path.read_text())[0]["bbox"] == [1.23456, 2.0, 3.0, 4.5678]
    assert [file.name for file in path.parent.iterdir()] == ["results.json"]


def test_failed_write_keeps_the_file_that_was_there(tmp_path):
    path = write_detections_json(tmp_path / "results.json", [])
    with pytest.raises((TypeError, ValueError)):
        write_detections_json(
            path, [{"image_id": object(), "category_id": 1, "bbox": BOX, "score": 1}]
        )
    assert path.read_text() == "[]"
    assert len(list(tmp_path.iterdir())) == 1


def test_masks_in_a_file_are_text(tmp_path):
    mask = {"size": [4, 4], "counts": b"52203"}
    entry = {"image_id": 1, "category_id": 1, "score": 0.5, "segmentation": mask}
    path = write_detections_json(tmp_path / "masks.json", [entry])
    assert json.loads(path.read_text())[0]["segmentation"]["counts"] == "52203"


def test_csv_line_and_table():
    values = dict(zip(METRIC_NAMES, np.linspace(0.05, 0.6, 12)))
    values |= {"APs": -1.0, "AP_/cat": 0.12345, "AP_/dog": -1.0}
    assert CSV_HEADER == "epoch,AP,AP50,AP75,APs,APm,APl"
    assert csv_line(12, values) == "12,5.00,10.00,15.00,-1.00,25.00,30.00"
    table = format_metrics_table(values, title="val, 5000 images")
    assert table.startswith("val, 5000 images\n")
    assert "cat  12.35" in table or "cat  12.34" in table
    assert "dog      -" in table
    assert len(table.splitlines()) == 1 + 6 + 1 + 1


def test_summary_follows_the_limits_given():
    """More than 100 objects of one class in an image: only a higher limit reaches recall 1."""
    boxes = [(1, 3, (5 * i, 0, 4, 4)) for i in range(120)]
    dataset, found = instances([1], boxes), [(0, box, 0.9, 0) for _, _, box in boxes]
    assert check_ground_truth(dataset) == (1, 120)
    assert score(dataset, *found)["ARmax100"] == pytest.approx(100 / 120)
    assert score(dataset, *found, max_detections=(1, 10, 120))["AP"] == pytest.approx(1.0)


def test_mean_of_measured_ignores_the_unmeasured():
    assert scoring.mean_of_measured(np.array([-1.0, 0.5, 1.0])) == 0.75
    assert scoring.mean_of_measured(np.array([-1.0])) == -1.0


def two_class_set():
    rng = np.random.default_rng(3)
    annotations = [
        (image, 3 if rng.random() < 0.6 else 7, (*rng.uniform(50, 250, 2), *rng.uniform(20, 90, 2)))
        for image in range(1, 13)
        for _ in range(5)
    ]
    return instances(range(1, 13), annotations)


def test_ground_truth_meets_itself(monkeypatch):
    dataset = two_class_set()
    dataset["annotations"].append(
        {"id": 900, "image_id": 1, "category_id": 3, "bbox": [9, 9, 0, 5], "area": 0, "iscrowd": 0}
    )
    assert check_ground_truth(dataset) == (12, 60)
    assert read_scored(dataset).describe_findings(with_masks=False) == [
        "the annotations given: dropped:",
        "  1 x box: no width or no height (1.jpg, annotation 900)",
    ]
    monkeypatch.setattr(ground_truth_check, "_MOST_IMAGES", 4)
    assert check_ground_truth(dataset) == (4, 20)


def test_annotations_of_unknown_images_or_categories():
    orphaned = read_scored(instances([1], [(1, 3, BOX), (99, 3, BOX)]))
    assert check_ground_truth(orphaned) == (1, 1)
    said = orphaned.describe_findings(with_masks=False)
    assert "its image is not listed (annotation 2: image_id 99)" in said[1]
    with pytest.raises(ValueError, match="annotation 1: category_id 8.*None fits"):
        check_ground_truth(instances([1], [(1, 8, BOX)]))
    with pytest.raises(
        ValueError,
        match=r"objects of .* \(7\) belong to no class of the model; of its list .* cat\.",
    ):
        check_ground_truth(instances([1], [(1, 7, BOX)]), categories={0: (3, "cat")})
    for objects, why in (
        ([], "it has no annotations"),
        ([(1, 3, BOX, 1)] * 2, "its 2 annotations are crowd regions"),
    ):
        with pytest.raises(ValueError, match=f"no box to score in the 1 images of .*: {why}. Scor"):
            check_ground_truth(instances([1], objects))
    with pytest.raises(ValueError, match="the records have none of its objects"):
        check_ground_truth(instances([1], [(1, 3, BOX)]), rows=np.zeros([0, 7]))


PLACES = slice(1, 5)  # columns of x, y, w, h
CORNERS = np.array([[1, 0, 1, 0], [0, 1, 0, 1], [0, 0, 1, 0], [0, 0, 0, 1]])
SCALES = np.repeat([[0.5], [0.8]] * 6, 5, axis=0)  # of every second image
FARTHER = np.where(np.arange(60) % 5, 0, 1000)[:, np.newaxis]


@pytest.mark.parametrize(
    ("columns", "mistake", "message"),
    [
        (PLACES, lambda boxes: boxes / [640, 480, 640, 480], "normalised"),
        (PLACES, lambda boxes: boxes[:, [1, 0, 3, 2]], "x and y are exchanged"),
        (PLACES, lambda boxes: boxes @ CORNERS, r"corners \(x1, y1, x2, y2\)"),
        (PLACES, lambda boxes: boxes[:, [1, 0, 3, 2]] @ CORNERS, r"corners \(y1, x1, y2, x2\)"),
        (PLACES, lambda boxes: boxes * SCALES, "pixels of a resized image"),
        (
            0,
            lambda images: (images + 1) % 12,
            "image ids do not meet: boxes filed under image 2 belong to 1, 3 belong to 2, 4 bel",
        ),
        (6, lambda classes: 1 - classes, r"'dog' \(class 1\) where the JSON has 'cat' \(class 0\)"),
        (
            slice(1, 3),
            lambda corners: corners + FARTHER,
            "12 of the JSON's 60 boxes are missing and 12 are not in it, in images 1, 2, 3",
        ),
    ],
)
def test_each_usual_mistake_is_named(columns, mistake, message):
    dataset = two_class_set()
    given, _ = ground_truth_rows(CocoEvaluator(dataset))
    assert check_ground_truth(dataset, rows=given) == (12, 60)
    given[:, columns] = mistake(given[:, columns])
    with pytest.raises(ValueError, match=message):
        check_ground_truth(dataset, rows=given)


def test_the_setting_names_every_scorer():
    choices = EvalConfig.__dataclass_fields__["coco_scorer"].metadata["choices"]
    assert set(choices) == {"auto", *scoring.SCORERS}
