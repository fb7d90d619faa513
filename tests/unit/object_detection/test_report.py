"""The report of an evaluation: matches against hand-computed cases and other programs, the page."""

import copy
import csv
import io
import json
import re
from contextlib import redirect_stdout

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from samples import instances

from object_detection.coco.annotations import read_scored
from object_detection.metrics.coco import METRIC_NAMES, CocoEvaluator
from object_detection.report import curves, history, page, pictures
from object_detection.report.charts import Line, bar_chart, draw_table, line_chart
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
from object_detection.report.write import ReportOptions, write_report

HOSTILE = "<script>alert(1)</script> & $x_1$"


def dataset_of(annotations, *, num_images=1, names=("red", "blue")):
    """An instances dictionary from (image, category, box, crowd)."""
    categories = [(3 * k + 1, name) for k, name in enumerate(names)]
    images = range(1, num_images + 1)
    return instances(images, annotations, categories, size=(100, 100), ending=".png")


def found(image, category, box, score):
    return {"image_id": image, "category_id": category, "bbox": list(box), "score": score}


def matched(dataset, entries, **options):
    return match(read_scored(dataset), entries, **options)


OBJECTS = [(1, 1, (0, 0, 20, 20), 0), (1, 1, (50, 0, 20, 20), 0), (1, 4, (0, 50, 20, 20), 0)]
CASES = [
    (found(1, 1, (0, 0, 20, 20), 0.9), RIGHT),
    (found(1, 1, (0, 0, 20, 18), 0.8), DUPLICATE),
    (found(1, 4, (50, 0, 20, 20), 0.7), CLASS),
    (found(1, 4, (0, 55, 20, 28), 0.6), PLACE),  # 15 x 20 of 20 x 33: 0.45
    (found(1, 1, (0, 60, 20, 20), 0.5), BOTH),  # 10 x 20 of 20 x 30, of the other class
    (found(1, 4, (80, 80, 10, 10), 0.4), BACKGROUND),
    (found(1, 1, (62, 62, 20, 20), 0.3), IGNORED),
]


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
    assert curves.counts_of_errors(matches, 0.55) == {
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
    assert red.f1[curves.THRESHOLDS.tolist().index(0.7)] == pytest.approx(0.5)
    assert blue.num_objects == 0 and np.isnan(blue.ap)


def random_evaluation(*, with_crowds, seed=0):
    """A set of 40 images and detections that are near, doubled, of another class or nowhere."""
    rng = np.random.default_rng(seed)
    annotations, entries = [], []
    for image in range(1, 41):
        for _ in range(rng.integers(0, 8)):
            x, y, w, h = *rng.uniform(0, 60, 2), *rng.uniform(8, 40, 2)
            category = int(rng.choice([1, 4, 7]))
            crowd = int(with_crowds and rng.random() < 0.1)
            annotations.append((image, category, (x, y, w, h), crowd))
            for _ in range(rng.integers(0, 4)):
                spread = rng.choice([0.02, 0.1, 0.3])
                moved = (x, y, w, h) + rng.normal(size=4) * spread * np.array([w, h, w / 2, h / 2])
                moved[2:] = np.maximum(moved[2:], 2)
                called = category if rng.random() < 0.8 else int(rng.choice([1, 4, 7]))
                entries.append(found(image, called, moved.tolist(), float(rng.random())))
        box = [*rng.uniform(0, 80, 2), *rng.uniform(8, 20, 2)]
        entries.append(found(image, int(rng.choice([1, 4, 7])), box, float(0.5 * rng.random())))
    return dataset_of(annotations, num_images=40, names=("a", "b", "c")), entries


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
    lines = [{"kind": "step", "step": s, "loss": v} for s, v in ((1, 5.0), (2, 4.0), (2, 3.0))]
    text = "\n".join(json.dumps(line) for line in lines) + '\n{"kind": "step", "st'
    (tmp_path / "metrics.jsonl").write_text(text)
    records = history.read_records(tmp_path)
    assert [(r["step"], r["loss"]) for r in records["step"]] == [(1, 5.0), (2, 3.0)]


# ------------------------------------------------------------------------------ the page


@pytest.fixture(scope="module", name="evaluation")
def fixture_evaluation(tmp_path_factory):
    """A folder as eval.py leaves it, of a set whose names are hostile, with a run around it."""
    run = tmp_path_factory.mktemp("run")
    folder = run / "evaluation"
    folder.mkdir()
    dataset, entries = random_evaluation(with_crowds=True)
    dataset["categories"][0]["name"] = HOSTILE
    (run / "images").mkdir()
    for image in dataset["images"]:
        image["file_name"] = f"<b>{image['id']}</b>&.png".replace("/", "_")
        Image.new("RGB", (100, 100), (90, 120, 150)).save(run / "images" / image["file_name"])
    (run / "truth.json").write_text(json.dumps(dataset))
    (folder / "detections.json").write_text(json.dumps(entries))

    metrics = CocoEvaluator(dataset).evaluate(entries)
    (folder / "metrics.json").write_text(json.dumps({"epoch": 2, **metrics}))
    records = [
        {"kind": "step", "step": s, "epoch": 1, "loss": 1 / s, "cls_loss": 0.5 / s,
         "learning_rate": 0.1}
        for s in range(1, 9)
    ] + [{"kind": "evaluation", "epoch": 1, "step": 4, "AP": 0.1, "AP50": 0.2}]  # fmt: skip
    (run / "metrics.jsonl").write_text("\n".join(json.dumps(r) for r in records))
    return run, metrics


@pytest.fixture
def make_report(commands, evaluation):
    """Runs the command with flags."""
    run, _ = evaluation
    return lambda *flags: commands.run("report.py", f"--evaluation={run / 'evaluation'}", *flags)


def test_command_makes_the_page_with_charts_tables_and_pictures(evaluation, make_report):
    run, metrics = evaluation
    make_report(
        f"--annotations={run / 'truth.json'}", f"--images={run / 'images'}", "--num_images=3"
    ).require_success()
    text = (run / "evaluation" / "report.html").read_text()
    assert text.count("<svg") == text.count("</svg>") == 7
    assert text.count("data:image/jpeg") == 6
    # One file that asks for nothing, and in which nothing of the data is HTML.
    assert not re.findall(r'(?:src|href)="(?!data:|#)', text)
    assert "<script>alert" not in text and "<_b>" not in text
    assert text.count("&lt;script&gt;alert(1)&lt;/script&gt; &amp; $x_1$") > 4
    assert f"<b>{100 * metrics['AP']:.1f}</b><span>AP</span>" in text
    files = run / "evaluation" / "report"
    assert {f.stem for f in files.glob("*.png")} == {
        *("loss", "rate", "scores", "precision_recall", "f1", "precision_and_recall"),
        *("confusion", "errors"),
    }
    with (files / "classes.csv").open(encoding="utf-8") as file:
        rows = {row["class"]: row for row in csv.DictReader(file)}
    for name, row in rows.items():
        assert float(row["AP"]) == pytest.approx(metrics[f"AP_/{name}"], abs=1e-5)
    truth = json.loads((run / "truth.json").read_text())["annotations"]
    objects = [entry for entry in truth if not entry["iscrowd"]]
    assert sum(int(row["objects"]) for row in rows.values()) == len(objects) < len(truth)


@pytest.mark.parametrize(
    ("objects", "entries"),
    [([(1, 1, (0, 0, 20, 20), 0)], []), ([], [found(1, 1, (0, 0, 20, 20), 0.5)])],
)
def test_a_page_of_nothing_found_and_of_nothing_to_find(tmp_path, objects, entries):
    dataset = dataset_of(objects, names=("red",))
    numbers = dict.fromkeys(METRIC_NAMES, -1.0)
    about = {"model": "m", "epoch": 1, "annotations": "x.json", "records": f"{tmp_path}/x-*"}
    about |= {"image_ids": None, "class_scores": {"": {"red": numbers}}}
    about |= {"settings": {}, "cards": {}}
    path = write_report(
        tmp_path, about, entries, numbers, options=ReportOptions(), truth=read_scored(dataset)
    )
    assert not re.search(">(nan|None|False)<", path.read_text())


def test_charts_take_names_in_any_script_and_of_any_length(tmp_path, recwarn):
    names = ["細胞", "a rather long name of a class, 0.0", "<b>", "_ü"]
    lines = [Line(name, np.arange(3), np.arange(3)) for name in names]
    svg = line_chart(lines, tmp_path / "a.png", title="t", labels=("x", "y"))
    draw_table(np.eye(4, dtype=int), names, tmp_path / "b.png", title="細胞")
    bar_chart(names, [1.0] * 4, tmp_path / "c.png", title="t", label="x")
    assert not recwarn.list and "細胞" in svg and "_ü" in svg
    rows = page.table(["name", "score"], [["a", "-"], ["b", "0.5"]])
    assert "<td>-</td>" in rows and "<td>0.5</td>" in rows


def test_what_a_report_lacks_is_said(evaluation, make_report):
    run, _ = evaluation
    truth, folder = json.loads((run / "truth.json").read_text()), run / "evaluation"
    make_report(f"--annotations={run / 'truth.json'}", "--num_images=0").require_success()
    truth["categories"][1]["name"] = "renamed"
    (run / "renamed.json").write_text(json.dumps(truth))
    truth["categories"].pop()
    truth["annotations"] = [a for a in truth["annotations"] if a["category_id"] != 7]
    (run / "other.json").write_text(json.dumps(truth))
    for name, said in (
        ("renamed", "classes that this evaluation did not score: renamed"),
        ("other", "detections of category 7, which the annotations do not have (1, 4)"),
    ):
        make_report(f"--annotations={run / name}.json").require_explained_failure(said)
    (folder / "evaluation.json").unlink()
    make_report().require_explained_failure("--annotations")
    metrics = json.loads((folder / "metrics.json").read_text())
    (folder / "metrics.json").write_text(json.dumps({**metrics, "ARs": None}))
    make_report().require_explained_failure("metrics.json")


def test_records_that_lack_something_are_left_out():
    steps = [{"step": 1, "loss": 2.0}, {"step": 2}, {"loss": 3.0}, {"step": 3, "loss": "x"}]
    (line,) = history.loss_lines([*steps, {"step": 4, "loss": 1.0, "images_per_second": 5.0}])
    assert (line.x.tolist(), line.y.tolist()) == ([1, 4], [2, 1])
    assert history.median_speed([*steps, {"images_per_second": 0}]) == 0
    scores = [{"AP": 0.5}, {"epoch": 4, "AP": 0.3}, {"epoch": 2, "AP": 0.1}, {"epoch": 3, "AP": -1}]
    (line,) = history.score_lines(scores)
    assert (line.x.tolist(), line.y.tolist()) == ([2, 4], [10, 30])


def test_colours_of_the_page_have_a_dark_twin():
    text = page.page("t", "", [], "")
    light, dark = re.findall(r":root \{[^}]*?((?:--\w+: #\w+; ?)+)", text)
    assert re.findall(r"--(\w+)", light) == re.findall(r"--(\w+)", dark)
