"""The one reader of annotations: what is corrected, dropped, refused; conversion and scores agree.

Each fault is one that exporters or people produce. Perfect detections are the boxes that a fault
leaves, with score 1.
"""

import json

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as mask_api
from samples import instances

from object_detection.coco.annotations import read_annotations
from object_detection.coco.segmentation import bounds, read_segmentation, unpack_counts
from object_detection.convert.convert import convert
from object_detection.metrics.coco import CocoEvaluator
from object_detection.metrics.ground_truth_check import check_ground_truth, ground_truth_rows
from object_detection.metrics.set_scores import SetScores
from object_detection.records.class_map import ClassMap

HEIGHT, WIDTH = 60, 80
BOXES = [[10.5, 10, 20, 30], [40, 20, 15, 15.25], [2, 3, 30, 40], [50, 5, 20, 50]]
NAN = float("nan")


def polygon(box):
    x, y, w, h = box
    return [x, y, x + w, y, x + w, y + h, x, y + h]


def runs(mask):
    return mask_api.encode(np.asfortranarray(mask, np.uint8))["counts"].decode()


def content():
    """Two images of two objects each; annotation ids from 1."""
    objects = [(1 + k // 2, (3, 7)[k % 2], box) for k, box in enumerate(BOXES)]
    value = instances((1, 2), objects, size=(HEIGHT, WIDTH), ending=".png")
    for entry in value["annotations"]:
        entry["segmentation"] = [polygon(entry["bbox"])]
    return value


@pytest.fixture
def outcome(tmp_path):
    """Converts a changed set and scores perfect detections; returns (card, AP, mask AP)."""
    for image in (1, 2):
        Image.new("RGB", (WIDTH, HEIGHT)).save(tmp_path / f"{image}.png")

    def run(value, *, start=b"", on_orphan="stop"):
        path = tmp_path / "instances.json"
        path.write_bytes(start + json.dumps(value).encode())
        annotations = read_annotations(path, on_orphan=on_orphan)
        card = convert(annotations, tmp_path, tmp_path / "set", mask_format="bitpacked").card
        evaluator = CocoEvaluator(path, scorer="pycocotools")
        rows, objects = ground_truth_rows(evaluator)
        assert len(rows) == card.num_instances - card.num_crowd
        check_ground_truth(path)
        masked = [entry for entry in objects if entry["segmentation"] is not None]
        masks = [
            {
                "image_id": entry["image_id"],
                "category_id": entry["category_id"],
                "score": 1.0,
                "segmentation": pixels(entry["segmentation"]),
            }
            for entry in masked
        ]
        of_masks = CocoEvaluator(path, iou_type="segm", scorer="pycocotools").evaluate(masks)
        return card, evaluator.evaluate(rows)["AP"], of_masks["AP"]

    return run


def pixels(segmentation):
    found = mask_api.frPyObjects(segmentation, HEIGHT, WIDTH)
    return mask_api.merge(found) if isinstance(found, list) else found


def test_a_sound_set_is_left_alone(outcome):
    card, box_ap, mask_ap = outcome(content())
    assert (card.num_instances, card.dropped, card.corrected) == (4, {}, {})
    assert (box_ap, mask_ap) == (1.0, 1.0)


def first(**changes):
    """Changes annotation 1."""

    def change(value):
        value["annotations"][0].update(changes)

    return change


def every(**makers):
    """Changes all annotations: key -> function of the annotation."""

    def change(value):
        for entry in value["annotations"]:
            entry.update({key: make(entry) for key, make in makers.items()})

    return change


def without(key):
    def change(value):
        del value["annotations"][0][key]

    return change


def ids(kind, *, of_images=True):
    def change(value):
        for image in value["images"] if of_images else ():
            image["id"] = kind(image["id"])
        for entry in value["annotations"]:
            entry["image_id"] = kind(entry["image_id"])

    return change


def nothing(value):
    del value


NO_POLYGON = "mask unknown: no polygon with three points or more"
NO_SUM = "mask unknown: run lengths do not add up to the image"
NOT_FOUR = "box: not four finite numbers"
SIZE = {"size": [HEIGHT, WIDTH]}


@pytest.mark.parametrize(
    ("change", "corrected"),
    [
        (every(bbox=lambda e: [f" {side} " for side in e["bbox"]]), {"box: read from text": 4}),
        (first(bbox="[10.5, 10, 20, 30]"), {"box: read from text": 1}),
        (without("bbox"), {"box: missing, taken from the mask": 1}),
        (first(bbox=None), {"box: missing, taken from the mask": 1}),
        (first(bbox=[]), {"box: missing, taken from the mask": 1}),
        (every(area=lambda _: None, iscrowd=lambda _: None), {"area: filled in from the box": 4}),
        (first(area=NAN), {"area: filled in from the box": 1}),
        (first(area="600"), {"area: read from text": 1}),
        (first(area=[1]), {"area: filled in from the box": 1}),
        (first(area=0), {"area: filled in from the box": 1}),
        (every(iscrowd=lambda _: "0"), {"iscrowd: read from text": 4}),
        (first(iscrowd="false"), {"iscrowd: read from text": 1}),
        (first(iscrowd=0.0), {}),
        (first(iscrowd=False), {}),
        (first(iscrowd="perhaps"), {"iscrowd: 'perhaps' taken as 0": 1}),
        (first(iscrowd=NAN), {"iscrowd: nan taken as 0": 1}),
        (first(segmentation=None), {"mask unknown: no segmentation": 1}),
        (first(segmentation={}), {"mask unknown: no segmentation": 1}),
        (first(segmentation=""), {"mask unknown: no segmentation": 1}),
        (first(segmentation="none"), {"mask unknown: segmentation is a str": 1}),
        (first(segmentation=[[]]), {NO_POLYGON: 1}),
        (first(segmentation=[[10, 10, 12, 12]]), {NO_POLYGON: 1}),
        (first(segmentation=[[10, 10, 20, 10, 30, 10]]), {NO_POLYGON: 1}),
        (first(segmentation=[[10, 10, 20, 20, 30, 30]]), {NO_POLYGON: 1}),
        (first(segmentation=[[NAN] * 6]), {NO_POLYGON: 1}),
        (first(segmentation=[[0, 0, 1e9, 0, 1e9, 1e9]]), {NO_POLYGON: 1}),
        (first(segmentation=[polygon(BOXES[0]), [1, 2]]),
         {f"mask: a part left out ({NO_POLYGON.partition(': ')[2]})": 1}),
        (first(segmentation=[[str(v) for v in polygon(BOXES[0])[:6]]]),
         {"mask: polygons in another form than a list of lists of numbers": 1}),
        (first(segmentation=polygon(BOXES[0])),
         {"mask: polygons in another form than a list of lists of numbers": 1}),
        (first(segmentation={**SIZE, "counts": runs(np.tri(40))}), {NO_SUM: 1}),
        (first(segmentation={**SIZE, "counts": runs(np.ones((400, 400)))}), {NO_SUM: 1}),
        (first(segmentation={**SIZE, "counts": ""}), {NO_SUM: 1}),
        (first(segmentation={**SIZE, "counts": "o" * 10**6}), {NO_SUM: 1}),
        (first(segmentation={**SIZE, "counts": "\u00ff~~"}), {NO_SUM: 1}),
        (first(segmentation={**SIZE, "counts": [1, 2]}), {NO_SUM: 1}),
        (first(segmentation={**SIZE, "counts": [2400, -10, 2410]}), {NO_SUM: 1}),
        (first(segmentation={**SIZE, "counts": ["0", "4800"]}),
         {"mask: run lengths read from text": 1}),
        (first(segmentation={"size": [3, 3], "counts": [4, 5]}),
         {"mask unknown: run-length mask of another size than the image": 1}),
        (first(segmentation=SIZE), {"mask unknown: run-length mask without counts": 1}),
        (first(segmentation={**SIZE, "counts": [4800]}),
         {"mask unknown: run-length mask without a pixel": 1}),
        (ids(float), {}),
        (ids(lambda i: f"{i}.0", of_images=False), {}),
        (ids(str, of_images=False), {}),
        (every(category_id=lambda e: str(e["category_id"])), {}),
        (every(category_id=lambda e: float(e["category_id"])), {}),
        (every(id=lambda _: 0), {"annotation: id used before, renumbered for scoring": 3}),
        (every(id=lambda _: NAN), {}),
        (every(score=lambda _: 0.5, attributes=lambda _: {"occluded": False}), {}),
        (lambda value: [c.pop("name") for c in value["categories"]],
         {"category: without a name, called by its id": 2}),
    ],
)  # fmt: skip
def test_what_is_corrected(outcome, change, corrected):
    value = content()
    change(value)
    card, box_ap, mask_ap = outcome(value)
    assert (card.corrected, card.dropped) == (corrected, {})
    assert (card.num_instances, card.num_crowd) == (4, 0)
    assert (box_ap, mask_ap) == (1.0, 1.0)
    assert set(card.examples) == set(corrected)


def test_an_area_that_is_missing_is_that_of_the_box_inside_the_image():
    value = content()
    first(area=None, bbox=[-5, 40, 20, 30])(value)
    assert read_annotations(value).objects["1"][0]["area"] == 15 * 20


@pytest.mark.parametrize(
    ("rotation", "box"),
    [
        (90, [5, 15, 30, 20]),
        (-90.0, [5, 15, 30, 20]),
        ("90", [5, 15, 30, 20]),
        (45, [20 - 25 / 2**0.5, 25 - 25 / 2**0.5, 50 / 2**0.5, 50 / 2**0.5]),
        (180, [10, 10, 20, 30]),
    ],
)
def test_a_turned_box_of_cvat_is_the_box_around_it(rotation, box):  # cvat-ai/cvat#4745
    value = content()
    attributes = {"occluded": False, "rotation": rotation}
    first(attributes=attributes, bbox=[10, 10, 20, 30])(value)
    with_mask = read_annotations(value).objects["1"][0]
    assert with_mask["bbox"] == [10, 10, 20, 30]  # its polygons say where it is
    first(segmentation=[])(value)
    annotations = read_annotations(value)
    assert annotations.objects["1"][0]["bbox"] == pytest.approx(box)
    assert "turned by its attribute 'rotation'" in "".join(
        annotations.describe_findings(with_masks=False)
    )


@pytest.mark.parametrize("attributes", [{"rotation": 0}, {"rotation": "no"}, {"rotation": NAN}, []])
def test_what_turns_no_box(attributes):
    value = content()
    first(attributes=attributes, segmentation=[])(value)
    assert read_annotations(value).objects["1"][0]["bbox"] == BOXES[0]
    assert read_annotations(value).describe_findings(with_masks=False) == []


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (first(bbox=[NAN] * 4), NOT_FOUR),
        (first(bbox=[1, 2, float("inf"), 4]), NOT_FOUR),
        (first(bbox=[1, 2, 3]), NOT_FOUR),
        (first(bbox=[1, 2, 3, 4, 5]), NOT_FOUR),
        (first(bbox=[True, False, True, True]), NOT_FOUR),
        (first(bbox={"x": 1}), NOT_FOUR),
        (first(bbox=["a", "b", "c", "d"]), NOT_FOUR),
        (first(bbox=[1, 2, -3, 4]), "box: no width or no height"),
        (first(bbox=[500, 2, 3, 4]), "box: outside the image"),
        (first(bbox=None, segmentation=None), "box: missing, and no mask to take it from"),
    ],
)
def test_what_is_dropped(outcome, change, what):
    value = content()
    change(value)
    card, box_ap, mask_ap = outcome(value)
    assert card.dropped == {what: 1}
    assert card.examples[what] == ["1.png, annotation 1"]
    assert (card.num_instances, box_ap, mask_ap) == (3, 1.0, 1.0)


def test_a_dropped_box_is_no_hit_for_detections_elsewhere(outcome, tmp_path):
    value = content()
    first(bbox=[NAN] * 4)(value)
    outcome(value)
    evaluator = CocoEvaluator(tmp_path / "instances.json")
    missed = np.array([[0, 70, 50, 5, 5, 0.9, 0], [1, 70, 1, 5, 3, 0.9, 0]], float)
    assert evaluator.evaluate(missed)["AP"] == 0.0


def test_orphans_stop_a_conversion_and_are_left_out_of_scores(outcome):
    value = content()
    value["annotations"].append({**value["annotations"][0], "id": 9999, "image_id": 4242})
    with pytest.raises(ValueError, match="annotation 9999: image_id 4242.*on_orphan_annotation"):
        outcome(value)
    card, box_ap, _ = outcome(value, on_orphan="skip")
    what = "annotation: its image is not listed"
    assert (card.dropped, card.examples[what]) == ({what: 1}, ["annotation 9999: image_id 4242"])
    assert (card.num_instances, box_ap) == (4, 1.0)


def test_byte_order_mark_and_listed_twice(outcome):
    value = content()
    value["images"].append(value["images"][0])
    value["categories"].append(value["categories"][0])
    card, box_ap, _ = outcome(value, start=b"\xef\xbb\xbf")
    assert card.dropped == {"category: listed twice": 1, "image: listed twice": 1}
    assert (card.num_images, box_ap) == (2, 1.0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (every(bbox=lambda e: (np.array(e["bbox"]) / [WIDTH, HEIGHT, WIDTH, HEIGHT]).tolist()),
         r"4 of 4 boxes lie within 0 and 1.*1\.png, annotation 1.*Multiply"),
        (every(bbox=lambda e: (np.array(e["bbox"]) + [0, 0, *e["bbox"][:2]]).tolist()),
         r"corners \(x1, y1, x2, y2\).*1\.png, annotation 1.*Subtract"),
        (every(bbox=lambda _: [NAN] * 4),
         r"not one of 4 annotations is usable: 4 x box: not four finite.*1\.png, annotation 1"),
        (every(bbox=lambda _: None, segmentation=lambda _: None), "not one of 4.*'bbox'"),
        (lambda v: v.update(annotations=None), "'annotations' is null"),
        (lambda v: v.update(categories={"3": "cat"}), "'categories' is a dict"),
        (lambda v: v.update(categories=["cat"]), r"categories\[0\] is 'cat'"),
        (lambda v: v.update(Annotations=v.pop("annotations")), "is 'Annotations' meant for"),
        (lambda v: v["images"][0].update(id=NAN), r"images\[0\] has no id"),
        (lambda v: v["categories"][0].update(id=-1), r"categories\[0\] has id -1"),
        (lambda v: v["categories"][0].update(id=10**30), r"categories\[0\] has id 10000"),
        (lambda v: v["categories"][0].update(id="9" * 5000), r"categories\[0\] has id '9999"),
        (every(image_id=lambda _: 9), "4 of 4 annotations.*None fits"),
    ],
)  # fmt: skip
def test_what_is_refused(outcome, change, message):
    value = content()
    change(value)
    with pytest.raises(ValueError, match=message):
        outcome(value, on_orphan="skip")


@pytest.mark.parametrize("sides", [{"height": 0}, {"height": "?"}, {"width": None}, {"width": NAN}])
def test_sizes_that_are_none(sides):
    value = content()
    value["images"][0].update(sides)
    value["images"][1].update(height=str(HEIGHT), width=WIDTH - 0.4)
    annotations = read_annotations(value)
    assert [(i.height, i.width) for i in annotations.images] == [(None, None), (HEIGHT, WIDTH)]
    assert list(annotations.counts(with_masks=True).examples.values()) == [["1.png"]]


def test_a_mask_between_pixels_is_unknown_and_not_scored(outcome):
    value = content()
    value["annotations"][0]["segmentation"] = [polygon([20.6, 20.6, 0.2, 0.2])]
    card, box_ap, _ = outcome(value)
    assert card.corrected == {"mask unknown: mask does not meet its box": 1}
    assert box_ap == 1.0
    evaluator = CocoEvaluator(value, iou_type="segm", scorer="pycocotools")
    found = [
        {**entry, "score": 1.0, "segmentation": pixels(entry["segmentation"])}
        for entry in value["annotations"][1:]
    ]
    assert evaluator.evaluate(found)["AP"] == 1.0


def test_small_true_boxes_are_no_fractions(outcome):
    value = content()
    for entry in value["annotations"]:
        entry.update(bbox=[0, 0, 1, 1], segmentation=[polygon([0, 0, 1, 1])])
    assert outcome(value)[0].num_instances == 4


def test_a_set_of_crowds_is_refused_for_training(outcome, tmp_path):
    value = content()
    every(iscrowd=lambda _: 1)(value)
    value["annotations"][0]["iscrowd"] = 0
    outcome(value)[0].require_boxes()
    value["annotations"][0]["iscrowd"] = True
    card = convert(read_annotations(value), tmp_path, tmp_path / "crowds").card
    with pytest.raises(ValueError, match="all 4 objects of the record set 'crowds' are crowd"):
        card.require_boxes()


def test_unpacked_runs_are_pycocotools(tmp_path):
    generator = np.random.default_rng(0)
    for shape, empty_rows in (((7, 5), 1), ((300, 200), 0), ((1, 1), 0), ((40, 1000), 9)):
        mask = generator.random(shape) < generator.random()
        mask[:empty_rows] = False  # a run goes on in the next column where there are none
        counts = unpack_counts(runs(mask))
        expected = mask_api.frPyObjects({"size": list(shape), "counts": counts}, *shape)
        assert expected["counts"].decode() == runs(mask)
        if mask.any():
            value = read_segmentation({"size": list(shape), "counts": runs(mask)}, size=shape).value
            encoded = mask_api.encode(np.asfortranarray(mask, np.uint8))
            assert bounds(value) == mask_api.toBbox(encoded).tolist()
    assert unpack_counts(runs(np.ones((9, 9)))[:-1] + "o") is None  # the number goes on
    assert bounds({"size": [4, 4], "counts": [2, 0, 3, 2, 9]}) == [1, 1, 1, 2]  # an empty run


def crowded(tmp_path, count):
    value = content()
    value["annotations"] = [
        {"id": i, "image_id": 1, "category_id": 3, "bbox": [i % 70, i // 70, 5, 5], "area": 25}
        for i in range(count)
    ]
    path = tmp_path / "crowded.json"
    path.write_text(json.dumps(value))
    return path


def test_a_crowded_image_is_checked_by_a_sample(tmp_path):
    path = crowded(tmp_path, 3000)
    assert check_ground_truth(path, scorer="pycocotools") == (1, 200)
    rows, _ = ground_truth_rows(CocoEvaluator(path))
    assert check_ground_truth(path, rows=rows) == (1, 200)
    halved = rows * [1, 0.5, 0.5, 0.5, 0.5, 1, 1]
    with pytest.raises(ValueError, match="pixels of a resized image|ground truth scored"):
        check_ground_truth(path, rows=halved)


def test_the_number_of_detections_scored_is_a_setting(tmp_path):
    path = crowded(tmp_path, 300)
    classes = ClassMap(2, {0: (3, "cat"), 1: (7, "dog")})
    rows, _ = ground_truth_rows(CocoEvaluator(path))

    def ap(limit):
        scores = SetScores(str(path), classes, "val", None, max_detections=limit, is_scored=True)
        options = {"image_indices": None, "max_detections": (1, 10, limit)}
        return scores.evaluator.evaluate(rows, **options)["AP"]

    assert ap(100) < 0.5
    assert ap(300) == pytest.approx(1.0)
