"""Scores of a record set: rows of batches, coverage, masks beside boxes."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from pycocotools import mask as mask_api
from samples import instances

from object_detection.coco.annotations import read_annotations
from object_detection.convert.convert import convert
from object_detection.masks.rows import pack_mask
from object_detection.metrics.ground_truth_check import ground_truth_rows
from object_detection.metrics.set_scores import SetScores
from object_detection.records.card import RecordFile
from object_detection.records.card_builder import Tally, build_card
from object_detection.records.class_map import ClassMap, make_class_map

HEIGHT, WIDTH = 60, 80
BOXES = [[10, 10, 20, 30], [40, 20, 15, 15]]  # x, y, w, h
CLASSES = ClassMap(2, {0: (7, "cell")})  # channel 1 stands for no category


def mask_of(box, *, scale=1):
    mask = np.zeros((scale * HEIGHT, scale * WIDTH), np.uint8, order="F")
    x, y, w, h = (scale * side for side in box)
    mask[y : y + h, x : x + w] = 1
    return mask_api.encode(mask)


def annotations(*, with_masks=True, num_images=2):
    images = range(11, 11 + num_images)
    objects = [(image, 7, box) for image in images for box in BOXES]
    value = instances(images, objects, [(7, "cell")], size=(HEIGHT, WIDTH))
    for entry in value["annotations"] if with_masks else ():
        rle = mask_of(entry["bbox"])
        entry["segmentation"] = {"size": rle["size"], "counts": rle["counts"].decode()}
    return value


def card():
    tally = Tally()
    for image in ("11", "12"):
        boxes = np.array([[y, x, y + h, x + w] for x, y, w, h in BOXES], float)
        kinds = {"category_ids": [7, 7], "is_crowd": [False, False]}
        tally.add_image(image, (HEIGHT, WIDTH), boxes=boxes, **kinds)
    shards, categories = [RecordFile("val", 2)], [(7, "cell")]
    return build_card(
        tally, split="val", categories=categories, shards=shards, mask_format="bitpacked"
    )


@pytest.fixture
def scores(tmp_path):
    def make(*, has_masks=True, **changes):
        path = tmp_path / "val.json"
        path.write_text(json.dumps(annotations(**changes)))
        return SetScores(str(path), CLASSES, "val-*", card(), "pycocotools", has_masks=has_masks)

    return make


def batch(ids=(b"11", b"12", b""), valid=(True, True, False)):
    return {"valid": np.array(valid), "source_id": np.array(ids)}


def detections():
    """The two boxes on each of three images, a channel without category, and padding."""
    yxyx = [[y, x, y + h, x + w] for x, y, w, h in BOXES]
    boxes = np.array([[*yxyx, [0, 0, 9, 9], [0, 0, 0, 0]]] * 3, np.float32)
    return {
        "boxes": boxes,
        "scores": np.array([[0.9, 0.8, 0.7, 0.0]] * 3, np.float32),
        "classes": np.array([[0, 0, 1, -1]] * 3),
        "num_valid": np.array([3] * 3),
    }


def test_rows_are_those_of_known_classes_on_real_images(scores):
    rows, images, origins = scores().rows(batch(), **detections())
    assert images.tolist() == [0, 1]
    assert rows[:, 0].tolist() == [0, 0, 1, 1]
    np.testing.assert_allclose(rows[:2, 1:5], BOXES)
    assert origins.tolist() == [[0, 0], [0, 1], [1, 0], [1, 1]]


def test_records_without_image_ids_are_told_what_they_lack(scores):
    with pytest.raises(ValueError, match="a record has no image/source_id.*create_coco_tfrecord"):
        scores().rows(batch(ids=(b"11", b"", b"")), **detections())


def test_num_valid_limits_the_rows(scores):
    found = detections()
    found["num_valid"][:] = 1
    rows, _, origins = scores().rows(batch(), **found)
    assert len(rows) == 2 and origins.tolist() == [[0, 0], [1, 0]]


def score(scores, masks, **changes):
    rows, images, _ = scores.rows(batch(), **detections())
    options = {"is_limited": False, "most_bad_records": 0, **changes}
    return scores.score(rows, images, masks=masks, **options)


def test_boxes_and_masks_are_scored_apart(scores):
    right = [pack_mask(mask_of(box)) for box in BOXES * 2]
    metrics = score(scores(), right)
    assert metrics["AP"] == metrics["mask_AP"] == metrics["mask_AP_/cell"] == pytest.approx(1.0)
    swapped = [pack_mask(mask_of(box)) for box in BOXES[::-1] * 2]
    empty = [pack_mask(mask_of([0, 0, 0, 0]))] * 4
    assert score(scores(), empty)["mask_AP"] == 0.0
    assert score(scores(), empty)["AP"] == pytest.approx(1.0)
    # Each mask is right for the other object: matching is by mask, not by box.
    assert score(scores(), swapped)["mask_AP50"] == pytest.approx(1.0)


def test_the_json_of_smaller_pictures_is_scaled_as_the_records_were(scores):
    made = scores()
    made.card = dataclasses.replace(card(), resized_images={"11": (120, 160), "12": (120, 160)})
    found = detections()
    found["boxes"] = found["boxes"] * 2
    rows, images, _ = made.rows(batch(), **found)
    doubled = [pack_mask(mask_of(box, scale=2)) for box in BOXES]
    options = {"is_limited": False, "most_bad_records": 0}
    metrics = made.score(rows, images, masks=doubled * 2, **options)
    assert metrics["AP"] == metrics["mask_AP"] == pytest.approx(1.0)


def test_sizes_that_the_json_lacks_are_the_records(small_set, tmp_path):
    content = small_set["val"]
    for image in content["images"]:
        del image["height"], image["width"]
    for entry in content["annotations"]:
        x, y, width, height = entry["bbox"]
        entry["segmentation"] = [[x, y, x + width, y, x + width, y + height, x, y + height]]
    outside, other = content["annotations"][:2]
    outside["bbox"] = [500, 5, 20, 20]
    other["segmentation"] = {"size": [3, 3], "counts": [4, 5]}
    path = tmp_path / "instances.json"
    path.write_text(json.dumps(content))
    made = convert(
        read_annotations(path), tmp_path / "val", tmp_path / "set", mask_format="bitpacked"
    )
    assert made.card.dropped == {"box: outside the image": 1}
    classes = make_class_map(made.card, class_ids="contiguous", num_classes=None)
    truth = SetScores(str(path), classes, "set-*", made.card, has_masks=True)
    truth.check(lambda: None)
    rows, objects = ground_truth_rows(truth.evaluator)
    assert len(rows) == made.card.num_instances == 7
    assert [entry["segmentation"] is None for entry in objects] == [True] + [False] * 6


def test_masks_of_another_size_than_the_json_are_refused(scores):
    other = pack_mask(mask_api.encode(np.ones((HEIGHT, WIDTH + 1), np.uint8, order="F")))
    with pytest.raises(ValueError, match=r"image 11 is 81x60 pixels in val-\*, but 80x60 in"):
        score(scores(), [other] * 4)


def test_without_masks_there_are_box_metrics_only(scores):
    metrics = score(scores(has_masks=False, with_masks=False), None)
    assert metrics["AP"] == pytest.approx(1.0)
    assert not [name for name in metrics if name.startswith("mask_")]
    assert list(scores(has_masks=False).class_scores()) == [""]


def test_missing_and_repeated_images_are_errors(scores, caplog):
    made = scores()
    rows = np.zeros((0, 7))
    options = {"masks": [], "is_limited": False}
    with pytest.raises(ValueError, match="1 of 2 images evaluated; 1 missing: 12"):
        made.score(rows, np.array([0]), most_bad_records=0, **options)
    with pytest.raises(ValueError, match="more than once: 11"):
        made.score(rows, np.array([0, 0, 1]), most_bad_records=5, **options)
    metrics = made.score(rows, np.array([0]), most_bad_records=1, **options)
    assert metrics["AP"] == metrics["mask_AP"] == 0.0
    assert "1 missing: 12; the others count as images without detections" in caplog.text


def test_a_limited_evaluation_scores_what_was_seen(scores):
    made = scores()
    rows, _, _ = made.rows(batch(valid=(True, False, False)), **detections())
    masks = [pack_mask(mask_of(box)) for box in BOXES]
    metrics = made.score(rows, np.array([0]), masks=masks, is_limited=True, most_bad_records=0)
    assert metrics["AP"] == metrics["mask_AP"] == pytest.approx(1.0)
    assert made.scored_image_ids == [11]


def test_a_json_without_masks_is_refused_for_a_mask_model(scores):
    with pytest.raises(ValueError, match="not one of 4 objects has a usable segmentation"):
        scores(with_masks=False).check(lambda: None)
    scores(with_masks=False, has_masks=False).check(lambda: None)
    scores().check(lambda: None)


def edited(made, edit):
    """Changes the JSON of scores, which is read at its first use."""
    path = Path(made.annotations)
    value = json.loads(path.read_text())
    edit(value)
    path.write_text(json.dumps(value))
    return made


def test_masks_need_the_sizes_of_images_with_objects(scores):
    made = edited(scores(), lambda value: value["images"][1].update(height=None, width=None))
    with pytest.raises(ValueError, match="image 12 has no height and width"):
        made.check(lambda: None)
    edited(made, lambda value: value.update(annotations=value["annotations"][:2]))
    dataclasses.replace(made).check(lambda: None)


def test_a_list_of_images_is_not_scored(scores):
    made = edited(scores(), lambda value: value.update(annotations=[]))
    with pytest.raises(ValueError, match="no box to score"):
        made.check(lambda: None)
    submission = dataclasses.replace(made, is_submission=True)
    submission.check(lambda: None)
    assert score(submission, None) == {}


def test_all_images_of_the_json_are_in_the_records_or_left_out(scores):
    made = scores()
    made.card = dataclasses.replace(card(), num_images=1)
    with pytest.raises(ValueError, match="holds 1 images but .* lists 2, of which 0 were left out"):
        made.check(lambda: None)
    made.card = dataclasses.replace(made.card, skipped_source_ids=("12",))
    made.check(lambda: None)


def test_what_the_records_deliver_is_scored_against_the_json(scores):
    """Crowds, padding and images whose rows are all taken are not asked for."""
    classes = np.array([[0, 0, 0, -1], [0, 0, 0, 0], [0, 0, 0, -1]])
    is_crowd = np.array([[False, False, True, False]] * 3)
    fields = {**batch(), "boxes": detections()["boxes"], "classes": classes, "is_crowd": is_crowd}
    scores().check(lambda: fields)
    fields["boxes"][1:] = [0, 0, 5, 5]
    scores().check(lambda: fields)
    fields["boxes"] = fields["boxes"][..., [1, 0, 3, 2]]
    with pytest.raises(ValueError, match="on 1 images .*: x and y are exchanged"):
        scores().check(lambda: fields)


def test_more_objects_of_a_class_than_are_scored_are_said(scores, caplog):
    made = edited(scores(), lambda value: value["annotations"][3].update(iscrowd=1))
    made.max_detections = 2
    made.check(lambda: None)
    assert "AP cannot reach 1" not in caplog.text
    made.max_detections = 1
    made.check(lambda: None)
    assert "best 1 detections of an image and class are scored, but 1 images" in caplog.text
    assert "(image 11: 2 of 'cell'), so AP cannot reach 1: raise --max_detections" in caplog.text


def named(tmp_path, **category):
    """Scores of a JSON whose category has another id or name."""
    value = annotations(with_masks=False)
    value["categories"] = [{"id": 7, "name": "cell", **category}]
    for entry in value["annotations"]:
        entry["category_id"] = value["categories"][0]["id"]
    path = tmp_path / "val.json"
    path.write_text(json.dumps(value))
    return SetScores(str(path), CLASSES, "val-*", card(), "pycocotools")


def test_classes_of_the_json_meet_those_of_the_model_by_name(tmp_path, caplog):
    made = named(tmp_path, id=3)
    made.check(lambda: None)
    assert "classes are matched by name: 'cell' is category 3 there, 7 here" in caplog.text
    assert score(made, None)["AP"] == pytest.approx(1.0)
    rows, _, _ = made.rows(batch(), **detections())
    assert {entry["category_id"] for entry in made.evaluator.to_detections(rows)} == {3}


def test_other_names_under_the_same_ids_are_never_scored(tmp_path):
    with pytest.raises(ValueError, match="category 7 is 'nucleus' there, 'cell' here"):
        named(tmp_path, name="nucleus").check(lambda: None)


def test_a_class_that_the_json_does_not_list_is_left_out(tmp_path):
    made = named(tmp_path)
    made.class_map = ClassMap(2, {0: (7, "cell"), 1: (8, "person")})
    rows, _, _ = made.rows(batch(), **detections())
    assert set(rows[:, 6]) == {0}


def test_no_detection_at_all_is_said_with_the_best_score(scores, caplog):
    made = scores(has_masks=False)
    made.score_threshold = 0.05
    found = detections()
    found |= {"num_valid": np.zeros(3, int), "classes": np.full((3, 4), -1)}
    found["scores"] = np.array([[0.03, 0, 0, 0], [0.02, 0, 0, 0], [0.9, 0, 0, 0]], np.float32)
    rows, images, _ = made.rows(batch(), **found)
    assert made.score(rows, images, is_limited=False, most_bad_records=0)["AP"] == 0.0
    assert "not one detection on 2 images" in caplog.text
    assert "highest score that rank 0 saw is 0.03, below the threshold of 0.05" in caplog.text
