"""What a report counts: matches and curves against hand-computed cases and other programs."""

import copy
import io
import json
from contextlib import redirect_stdout

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from report_example import CASES, OBJECTS, dataset_of, found, random_evaluation

from object_detection.coco.annotations import read_scored
from object_detection.report import curves, history, pictures
from object_detection.report.matches import (
    BACKGROUND,
    BOTH,
    CLASS,
    DUPLICATE,
    IGNORED,
    KIND_NAMES,
    PLACE,
    RIGHT,
    match,
)


def matched(dataset, entries, **options):
    return match(read_scored(dataset), entries, **options)


@pytest.fixture(name="example")
def fixture_example():
    dataset = dataset_of([*OBJECTS, (1, 1, (60, 60, 40, 40), 1)])
    return matched(dataset, [entry for entry, _ in CASES])


def test_every_kind_of_error_is_told_apart(example):
    matches = example
    kinds = [KIND_NAMES[kind] for kind in matches.kind]
    assert kinds == [KIND_NAMES[kind] for _, kind in CASES]
    assert matches.target.tolist() == [0, -1, 1, 2, -1, -1, -1]
    # The second object has the right box with the wrong class, the third a near miss.
    assert not curves.missed_objects(matches).any()
    assert curves.missed_objects(matches, 0.65).tolist() == [False, False, True, False]
    assert curves.counts_of_errors(matches, 0.6) == {
        CLASS: 1, PLACE: 1, BOTH: 0, DUPLICATE: 1, BACKGROUND: 0,
    }  # fmt: skip


def test_confusion_has_background_and_counts_from_a_score(example):
    matches = example
    # Rows: red, blue, background. The red object that is called blue; the blue one is missed.
    assert matches.confusion(0.05).tolist() == [[1, 1, 0], [0, 0, 1], [2, 2, 0]]
    assert matches.confusion(0.75).tolist() == [[1, 0, 1], [0, 0, 1], [1, 0, 0]]
    assert matches.confusion(0.95).tolist() == [[0, 0, 2], [0, 0, 1], [0, 0, 0]]


def test_best_score_precision_recall_and_f1_by_hand():
    dataset = dataset_of([(1, 1, (0, 0, 20, 20), 0), (1, 1, (50, 0, 20, 20), 0)])
    entries = [
        found(1, 1, (0, 0, 20, 20), 0.9),
        found(1, 1, (80, 80, 10, 10), 0.7),
        found(1, 1, (50, 0, 20, 20), 0.5),
        found(1, 1, (80, 60, 10, 10), 0.5),
    ]
    whole, (red, blue) = curves.curves_of(matched(dataset, entries))
    # At 0.9 1 of 1 is right and 1 of 2 found, at 0.7 1 of 2 and 1 of 2, at 0.5 2 of 4 and 2 of 2.
    assert whole.best == pytest.approx((0.9, 1.0, 0.5, 2 / 3))
    at_half, at_most = curves.THRESHOLDS.tolist().index(0.5), -1  # a score of 1
    assert (red.precisions[at_half], red.recalls[at_half]) == (0.5, 1.0)
    assert (red.f1[at_half], red.f1[at_most], red.recalls[at_most]) == (pytest.approx(2 / 3), 0, 0)
    assert np.isnan(red.precisions[at_most])
    assert blue.num_objects == 0 and np.isnan(blue.ap)
    assert curves.curves_of(matched(dataset, []))[0].best == (1, 0, 0, 0)


def test_what_errors_cost_by_hand(example):
    base, gains, without_missed = curves.costs_of_errors(example)
    # Red: right at 0.9, then only wrong, of 2 objects. Blue: three are wrong.
    assert base == pytest.approx(51 / 101 / 2)
    # The one at 0.7 becomes red: then 2 of 3 are right at the second half of the recalls.
    assert gains.pop(CLASS) == pytest.approx(50 / 101 * (2 / 3) / 2)
    # The one at 0.6 finds the blue object, behind a wrong one.
    assert gains.pop(PLACE) == pytest.approx(0.5 / 2)
    assert gains == {BOTH: 0, DUPLICATE: 0, BACKGROUND: 0} and without_missed == 0
    # Of several for one object the best is corrected; one for an object that is found is dropped.
    wrong = [found(1, 4, (50, 0, 20, 20), 0.35), found(1, 4, (0, 0, 20, 20), 0.95)]
    more = matched(dataset_of(OBJECTS), [*(entry for entry, _ in CASES[:5]), *wrong])
    assert [KIND_NAMES[kind] for kind in more.kind[more.score == 0.95]] == ["class"]
    assert curves.costs_of_errors(more)[1][CLASS] == pytest.approx(50 / 101 * (2 / 3) / 2)


@pytest.mark.parametrize(("with_crowds", "iou"), [(False, 0.5), (True, 0.5), (True, 0.75)])
def test_average_precision_is_that_of_pycocotools(with_crowds, iou):
    dataset, entries = random_evaluation(with_crowds=with_crowds)
    matches = matched(dataset, entries, iou=iou)
    _, classes = curves.curves_of(matches)
    with redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = copy.deepcopy(dataset)
        truth.createIndex()
        scorer = COCOeval(truth, truth.loadRes(copy.deepcopy(entries)), "bbox")
        scorer.evaluate()
        scorer.accumulate()
    threshold = int(np.flatnonzero(np.isclose(scorer.params.iouThrs, iou))[0])
    expected = scorer.eval["precision"][threshold, :, :, 0, -1]
    np.testing.assert_allclose(np.stack([c.precision for c in classes], 1), expected, atol=1e-12)
    if with_crowds and iou == 0.5:
        assert (matches.kind == IGNORED).sum() > 3


def test_errors_are_those_of_hotcoco():
    hotcoco = pytest.importorskip("hotcoco")
    dataset, entries = random_evaluation(with_crowds=False, seed=1)
    matches = matched(dataset, entries)
    truth = hotcoco.COCO()
    truth.dataset = dataset
    truth.createIndex()
    scorer = hotcoco.COCOeval(truth, truth.loadRes(entries), "bbox")
    scorer.evaluate()
    expected = scorer.tide_errors()
    names = {CLASS: "Cls", PLACE: "Loc", BOTH: "Both", DUPLICATE: "Dupe", BACKGROUND: "Bkg"}
    counts = curves.counts_of_errors(matches, 0.0)
    assert {names[kind]: count for kind, count in counts.items()} | {
        "Miss": curves.missed_objects(matches).sum()
    } == expected["counts"]
    base, gains, without_missed = curves.costs_of_errors(matches)
    assert base == pytest.approx(expected["ap_base"], abs=1e-12)
    assert without_missed == pytest.approx(expected["delta_ap"]["Miss"], abs=1e-12)
    for kind in (BOTH, DUPLICATE, BACKGROUND):
        assert gains[kind] == pytest.approx(expected["delta_ap"][names[kind]], abs=1e-12)
    # The two programs keep another of several corrections of one object.
    for kind in (CLASS, PLACE):
        assert gains[kind] == pytest.approx(expected["delta_ap"][names[kind]], abs=0.02)


def test_masks_are_compared_where_detections_have_them():
    dataset = dataset_of([(1, 1, (0, 0, 20, 20), 0)])
    dataset["annotations"][0]["segmentation"] = [[0, 0, 20, 0, 20, 20, 0, 20]]
    strip = np.zeros((100, 100), np.uint8, order="F")
    strip[:20, :5] = 1
    from pycocotools import mask as rle_lib

    rle = rle_lib.encode(strip)
    entry = found(1, 1, (0, 0, 20, 20), 0.9)
    with_mask = {**entry, "segmentation": {"size": rle["size"], "counts": rle["counts"].decode()}}
    assert matched(dataset, [entry]).kind.tolist() == [RIGHT]
    assert matched(dataset, [with_mask]).kind.tolist() == [PLACE]


def test_worst_images_first():
    boxes = [(0, 0, 20, 20), (50, 0, 20, 20)]
    dataset = dataset_of([(i, 1, box, 0) for i in (1, 2, 3) for box in boxes], num_images=3)
    entries = [found(i, 1, box, 0.9) for i in (1, 2) for box in boxes[:i]]
    worst = pictures.worst_images(matched(dataset, entries), 0.5, 5)
    assert [tuple(result) for result in worst] == [(2, 0, 0, 2), (0, 1, 0, 1)]


def test_records_of_a_run_survive_a_cut_and_a_resume(tmp_path):
    lines = [{"kind": "step", "step": s, "loss": v} for s, v in ((2, 4.0), (1, 5.0), (2, 3.0))]
    text = "\n".join(json.dumps(line) for line in lines) + '\n{"kind": "step", "st'
    (tmp_path / "metrics.jsonl").write_text(text)
    records = history.read_records(tmp_path)
    assert [(r["step"], r["loss"]) for r in records["step"]] == [(1, 5.0), (2, 3.0)]
