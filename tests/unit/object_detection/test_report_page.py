"""The report of an evaluation as it is written: its page, charts and files."""

import csv
import json
import re

import numpy as np
import pytest
from PIL import Image
from report_example import CASES, OBJECTS, dataset_of, found, random_evaluation

from object_detection.coco.annotations import read_scored
from object_detection.metrics.coco import METRIC_NAMES, CocoEvaluator
from object_detection.report import history, page, sections
from object_detection.report.charts import Line, bar_chart, draw_table, line_chart
from object_detection.report.write import ReportOptions, read_evaluation, write_report

HOSTILE = "<script>alert(1)</script> & $x_1$"


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
    text = path.read_text()
    assert not re.search(">(nan|None|False)<", text)
    assert "Detections that score 0.00 or more" in text and "100 detections per image" in text


@pytest.mark.parametrize(
    "options", [{"score": 1}, {"score": -0.1}, {"iou": 0.1}, {"iou": 1.1}, {"num_images": -1}]
)
def test_options_that_no_report_can_have(options):
    with pytest.raises(ValueError, match="a report needs a score from 0 to below 1"):
        ReportOptions(**options)


def tables_of(text):
    """Returns the cells of each table of a page, row by row."""
    tables = re.findall("<table.*?</table>", text, re.DOTALL)
    rows = [re.findall("<tr>.*?</tr>", table, re.DOTALL) for table in tables]
    return [[re.findall("<t[dh][^>]*>(.*?)</t[dh]>", row) for row in table] for table in rows]


def test_every_number_of_a_small_report_by_hand(tmp_path, monkeypatch):
    """The example at a score of 0.7: class by class, in the files, the charts and the page."""
    charts = {}

    def line_chart(lines, path, **options):
        charts[path.stem] = {line.name: [*zip(np.round(line.x, 6), line.y)] for line in lines}
        charts[f"{path.stem} mark"] = options.get("mark")
        return f"<svg>{options['title']}</svg>"

    monkeypatch.setattr(sections, "line_chart", line_chart)
    records = [
        {"kind": "step", "step": 1, "loss": 4.0, "learning_rate": 0.1, "images_per_second": 10},
        {"kind": "step", "step": 2, "loss": 2.0, "learning_rate": 0.2, "images_per_second": 30},
        *({"kind": "validation", "epoch": e, "val_loss": loss} for e, loss in ((1, 3.0), (2, 2.5))),
        *({"kind": "evaluation", "epoch": e, "AP": ap} for e, ap in ((1, 0.1), (2, 0.9))),
    ]
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, records)))
    numbers = {name: i / 100 for i, name in enumerate(METRIC_NAMES, start=1)}
    of_masks = {name: 0.5 + value for name, value in numbers.items()}
    metrics = numbers | {f"mask_{name}": value for name, value in of_masks.items()}
    about = {"model": "m", "epoch": 2, "annotations": "x.json", "records": "", "seconds": 0.5}
    about |= {"image_ids": None, "settings": {}, "cards": {}, "max_detections": 300}
    about["class_scores"] = {
        "": {"red": numbers, "blue": numbers},
        "mask_": {"red": of_masks, "blue": of_masks},
    }
    truth = read_scored(dataset_of([*OBJECTS, (1, 1, (60, 60, 40, 40), 1)]))
    options = ReportOptions(score=0.7, num_images=0)
    entries = [entry for entry, _ in CASES]
    path = write_report(tmp_path, about, entries, metrics, options=options, truth=truth)
    files, text = (tmp_path / "report").glob("*.csv"), path.read_text()
    written = {file.stem: file.read_text().splitlines() for file in files}

    assert written["scores"][0] == "number,over,boxes,masks"
    assert (written["scores"][1][:3], written["scores"][1][-10:]) == ("AP,", ",0.01,0.51")
    assert written["scores"][9] == "ARmax100,300 detections per image,0.09,0.59"
    # Red: 0.9 is right, 0.8 and 0.5 are not, of 2 objects; blue: 0.7, 0.6 and 0.4 are wrong, of 1.
    assert written["classes"] == [
        "class,objects,images,detections,AP,AP50,AP75,APs,APm,APl,ARmax100,mask AP,mask AP50,"
        "precision,recall,F1,best score",
        "red,2,1,2,0.01,0.02,0.03,0.04,0.05,0.06,0.09,0.51,0.52,1,0.5,0.666667,0.9",
        "blue,1,1,1,0.01,0.02,0.03,0.04,0.05,0.06,0.09,0.51,0.52,0,0,0,0.7",
    ]
    assert written["f1"][0] == "least score,precision,recall,F1,F1 of red,F1 of blue"
    assert written["f1"][101] == "0.5,0.2,0.333333,0.25,0.4,0"  # 1 of 5, for 3 objects
    assert written["f1"][201] == "1,,0,0,0,0"
    assert written["precision_recall"][0] == "recall,mean,red,blue"
    assert written["precision_recall"][51:53] == ["0.5,0.5,1,0", "0.51,0,0,0"]
    assert written["confusion"] == [
        *("annotated as / detected as,red,blue,background", "red,1,1,0", "blue,0,0,1"),
        "background,1,0,0",
    ]
    assert written["errors"] == [
        *("kind,count,AP gained without", "class,1,0.165017", "place,0,0.25", "both,0,0"),
        *("duplicate,1,0", "background,0,0", "missed,1,0"),
    ]
    assert written["images"] == ["image,right,wrong,missed", "1,1,2,2"]

    course = charts["loss"] | charts["rate"] | charts["val_loss"]
    assert course["loss"] == [(1, 4), (2, 2)] and course["val_loss"] == [(1, 3), (2, 2.5)]
    assert course["learning_rate"] == [(1, 0.1), (2, 0.2)]
    assert charts["scores"]["AP"] == [(1, 10), (2, 1)]  # of this evaluation, not the recorded 0.9
    assert {*charts["precision_recall"]} == {"mean, 25.2", "red, 50.5", "blue, 0.0"}
    assert charts["precision_recall"]["red, 50.5"][50:52] == [(0.5, 1), (0.51, 0)]
    assert {*charts["f1"]} == {"all classes", "red", "blue"}
    assert charts["f1"]["red"][100] == (0.5, 0.4)
    assert charts["f1 mark"] == (0.9, 0.5, "F1 0.50 at 0.90")
    both = charts["precision_and_recall"]
    assert (both["precision"][100], both["recall"][100]) == ((0.5, 0.2), (0.5, 1 / 3))

    precisions, recalls, by_class, confusion, errors, facts = tables_of(text)
    assert precisions[0] == ["", "over", "boxes, %", "masks, %"]
    assert [row[0] for row in precisions[1:] + recalls[1:]] == [*METRIC_NAMES]
    assert (precisions[6][2:], recalls[3][2:]) == (["6.0", "56.0"], ["9.0", "59.0"])
    assert by_class[1] == [
        *("red", "2", "1", "2", "1.0", "2.0", "3.0", "4.0", "5.0", "6.0", "9.0", "51.0", "52.0"),
        *("100.0", "50.0", "66.7", "0.90"),
    ]
    assert confusion[1:] == [
        ["red", "1", "1", ""],
        ["blue", "", "", "1"],
        ["background", "1", "", ""],
    ]
    assert [(row[0], *row[2:]) for row in errors[1:]] == [
        *(("class", "1", "16.5"), ("place", "0", "25.0"), ("both", "0", "0.0")),
        *(("duplicate", "1", "0.0"), ("background", "0", "0.0"), ("missed", "1", "0.0")),
    ]
    assert facts[1:] == [
        *(["annotations", "x.json"], ["run", str(tmp_path)]),
        *(["speed of the evaluation", "2.0 images/s"], ["speed of the training", "20.0 images/s"]),
    ]
    tiles = re.findall("<b>([^<]*)</b><span>([^<]*)</span>", text)
    assert tiles == [
        *(("1.0", "AP"), ("2.0", "AP50"), ("51.0", "mask AP"), ("52.0", "mask AP50")),
        *(("50.0", "best F1"), ("0.90", "at least score"), ("1", "images"), ("3", "objects")),
    ]
    assert '<td class="bar" style="--share:51.0%">51.0</td>' in text
    assert 'var(--accent) 31%, transparent)" title="50.0% of red">1</td>' in text
    assert text.count("<table class=sortable") == 1  # that of the classes
    assert "least score of 0.90: there 100.0% of the detections are right, and 33.3%" in text


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


def test_a_long_course_is_drawn_as_means():
    steps = [{"step": s, "loss": 2.0 * s, "cls_loss": 1.0} for s in range(600, 0, -1)]
    steps = [{**s, "gradient_norm": 5.0, "box_loss": 0.0, "det_loss": s["loss"]} for s in steps]
    loss, part = history.loss_lines(steps)  # not what is always 0, nor the total once more
    assert (loss.name, part.name) == ("loss", "cls_loss")
    assert loss.x.tolist() == [s + 0.5 for s in range(1, 600, 2)]
    assert loss.y.tolist() == [2 * s + 1 for s in range(1, 600, 2)]


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


def test_the_folder_of_a_run_is_answered_with_that_of_its_evaluation(tmp_path):
    with pytest.raises(FileNotFoundError, match="expected a folder that eval.py wrote"):
        read_evaluation(tmp_path)
    (tmp_path / "evaluation").mkdir()
    (tmp_path / "evaluation" / "detections.json").write_text("[]")
    with pytest.raises(FileNotFoundError, match=f"name {tmp_path}/evaluation$"):
        read_evaluation(tmp_path)
