"""Training and evaluation by their commands: what they leave, and that their scores agree."""

import json
import re
import shutil

import numpy as np
import pytest
import tensorflow as tf
import yaml
from left_by_runs import recorded

from object_detection.records.card import load_card

LAST_EPOCH, LAST_STEP, STEPS_PER_EPOCH = 12, 84, 7
COCO_NAMES = (
    "AP AP50 AP75 APs APm APl ARmax1 ARmax10 ARmax100 ARs ARm ARl".split()
)  # the twelve numbers that COCO's own program prints


def evaluate(commands, tiny_set, path, folder, *flags):
    """Runs eval.py; returns (metrics, detections)."""
    commands.run(
        "eval.py", f"--ckpt_path={path}", f"--output_dir={folder}", *tiny_set.eval_flags, *flags
    ).require_success()
    return read_evaluation(folder)


def read_evaluation(folder):
    """Returns (metrics.json, detections.json) of a folder."""
    names = ("metrics.json", "detections.json")
    return tuple(json.loads((folder / name).read_text()) for name in names)


def assert_same_rows(ours, theirs, *, atol=1e-3):
    """Compares detections, sorted by image, category, score and box."""
    rows = [
        np.array(sorted((d["image_id"], d["category_id"], d["score"], *d["bbox"]) for d in some))
        for some in (ours, theirs)
    ]
    assert rows[0].shape == rows[1].shape
    np.testing.assert_allclose(*rows, atol=atol)


@pytest.fixture(scope="module")
def evaluation(commands, tiny_set, trained_run):
    """(metrics, detections, folder) of eval.py on the last averages, in the run's batch size."""
    folder = trained_run.folder / "scored"
    prefix = trained_run.folder / "ema_weights" / f"emackpt-{LAST_EPOCH}"
    metrics, detections = evaluate(
        commands, tiny_set, prefix, folder, "--batch_size=4", "--report", "--report_images=3"
    )
    return metrics, detections, folder


# ---------------------------------------------------------------------------- what training leaves


def test_the_documented_tree_is_there(trained_run):
    folder = trained_run.folder
    for prefix in (
        *(f"ckpt-{step:08d}" for step in (28, 56, 84)),
        "ckpt-final",
        *(f"ema_weights/emackpt-{epoch:02d}" for epoch in (4, 8, 12)),
        "ema_weights/emackpt-best",
    ):
        for suffix in (".index", ".data-00000-of-00001", ".json"):
            assert (folder / f"{prefix}{suffix}").is_file(), prefix + suffix
    assert (folder / "emackpt-final" / "saved_model.pb").is_file()
    assert (folder / "first_batch.jpg").is_file()
    assert list((folder / "train").glob("events.out.tfevents.*"))
    assert re.fullmatch(
        r"train-\d{4}-\d\d-\d\d-\d\d-\d\d-\d\d\.log", next(folder.glob("*.log")).name
    )
    assert not list(folder.rglob(".writing*"))
    assert tf.train.latest_checkpoint(str(folder)) == str(folder / "ckpt-00000084")


def test_configuration_and_environment_are_stored_with_every_checkpoint(trained_run):
    folder = trained_run.folder
    config = yaml.safe_load((folder / "config.yaml").read_text())
    environment = json.loads((folder / "environment.json").read_text())
    assert config["model"]["image_size"] == [128, 128]
    assert config["optim"]["learning_rate"] == 0.004
    assert environment["packages"]["numpy"] == np.__version__
    described = list(folder.rglob("*ckpt*.json"))
    assert len(described) == 8
    for path in described:
        stored = json.loads(path.read_text())
        assert stored["config"] == config
        assert stored["environment"] == environment
        assert stored["task"]["class_map"]["num_classes"] == 8
        assert stored["global_batch_size"] == 2


def test_the_log_file_holds_what_the_console_said(trained_run):
    text = next(trained_run.folder.glob("train-*.log")).read_text()
    assert text.splitlines() == trained_run.result.output.splitlines()
    assert "global batch 2" in text
    assert "7 steps per epoch" in text


def test_every_step_is_recorded_and_the_loss_falls(trained_run):
    steps = recorded(trained_run.folder)
    assert [s["step"] for s in steps] == list(range(1, LAST_STEP + 1))
    assert [s["epoch"] for s in steps] == [-(-s // STEPS_PER_EPOCH) for s in range(1, 85)]
    for step in steps:
        assert step["det_loss"] == pytest.approx(step["cls_loss"] + 50 * step["box_loss"], rel=1e-5)
        assert step["loss"] == pytest.approx(step["det_loss"] + step["reg_l2_loss"], rel=1e-5)
        assert step["loss_scale"] == 1
        assert step["skipped"] == 0
    losses = [s["det_loss"] for s in steps]
    assert np.mean(losses[-14:]) < 0.8 * np.mean(losses[:14])


# ---------------------------------------------------------------------------- scores


def test_an_evaluation_leaves_a_report_with_the_run_and_pictures_from_the_records(evaluation):
    metrics, _, folder = evaluation
    page = (folder / "report.html").read_text()
    assert f"<b>{100 * metrics['AP']:.1f}</b><span>AP</span>" in page
    assert 'id="training"' in page and "efficientdet-lite0 on " in page
    assert page.count("data:image/jpeg") == 6
    about = json.loads((folder / "evaluation.json").read_text())
    assert {"training", "evaluation"} >= set(about["cards"]) and about["seconds"] > 0
    for name, scores in about["class_scores"][""].items():
        assert scores["AP"] == metrics[f"AP_/{name}"]


def test_in_training_scores_are_those_of_the_saved_file(trained_run, evaluation):
    metrics, detections, _ = evaluation
    logged = recorded(trained_run.folder, "evaluation")[-1]
    assert logged["epoch"] == LAST_EPOCH
    assert logged["AP"] > 0.01  # otherwise equality would mean little
    assert {name: metrics[name] for name in logged if name in metrics and name != "epoch"} == {
        name: value for name, value in logged.items() if name in metrics and name != "epoch"
    }
    while_training, their_detections = read_evaluation(trained_run.folder / "evaluation")
    assert metrics == while_training
    assert detections == their_detections


def test_metrics_are_the_twelve_of_coco_and_one_per_class(tiny_set, evaluation):
    metrics, _, _ = evaluation
    names = {c.name for c in load_card(tiny_set.records / "val-card.json").categories}
    assert len(names) == 8
    assert {name for name in metrics if "/" not in name} == {"epoch", "max_detections", *COCO_NAMES}
    per_class = {name.removeprefix("AP_/"): metrics[name] for name in metrics if "/" in name}
    assert set(per_class) == names
    known = [value for value in per_class.values() if value >= 0]
    assert metrics["AP"] == pytest.approx(np.mean(known), abs=1e-9)


def test_detections_are_in_the_terms_of_the_annotations(tiny_set, evaluation):
    _, detections, _ = evaluation
    content = json.loads(tiny_set.annotations.read_text())
    sizes = {image["id"]: (image["width"], image["height"]) for image in content["images"]}
    categories = {category["id"] for category in content["categories"]}
    assert {d["image_id"] for d in detections} == set(sizes)
    assert {d["category_id"] for d in detections} <= categories
    for detection in detections:
        x, y, width, height = detection["bbox"]
        image_width, image_height = sizes[detection["image_id"]]
        assert x >= 0 and y >= 0 and width >= 0 and height >= 0
        assert x + width <= image_width + 1e-3 and y + height <= image_height + 1e-3
        assert 0 < detection["score"] < 1


def test_eval_prints_the_csv_line_in_percent(commands, tiny_set, trained_run):
    result = commands.run(
        *("eval.py", f"--ckpt_path={trained_run.folder}", "--only_this_epoch=8", "--noreport"),
        *tiny_set.eval_flags,
    ).require_success()
    metrics, _ = read_evaluation(trained_run.folder / "ema_weights" / "emackpt-08-evaluation")
    logged = recorded(trained_run.folder, "evaluation")[1]
    assert metrics["AP"] == pytest.approx(logged["AP"], abs=1e-6)
    line = re.search(r"csv format: (.*)", result.output)[1]
    percents = [metrics[n] for n in ("AP", "AP50", "AP75", "APs", "APm", "APl")]
    percents = [100 * p if p >= 0 else p for p in percents]
    assert line == ",".join(["8", *(f"{p:.2f}" for p in percents)])


def test_batch_size_does_not_change_the_scores(commands, tiny_set, trained_run, evaluation):
    metrics, detections = evaluate(
        *(commands, tiny_set, trained_run.folder, trained_run.folder / "by-3"),
        *("--batch_size=3", "--which=last", "--noreport"),
    )
    assert metrics == pytest.approx(evaluation[0], abs=1e-6)
    assert_same_rows(detections, evaluation[1])


def test_a_data_folder_with_ids_of_its_own_scores_as_the_records(
    commands, tiny_set, trained_run, evaluation, tmp_path
):
    annotations = json.loads(tiny_set.annotations.read_text())
    for entry in annotations["categories"]:
        entry["id"] = 1000 - entry["id"]
    for entry in annotations["annotations"]:
        entry["category_id"] = 1000 - entry["category_id"]
    annotations["categories"].reverse()
    shutil.copytree(tiny_set.images, tmp_path / "set" / "pictures")
    (tmp_path / "set" / "instances_mine.json").write_text(json.dumps(annotations))
    flags = (f"--ckpt_path={trained_run.folder}", "--which=last", "--noreport")
    for again in (False, True):
        result = commands.run(
            "eval.py", *flags, f"--data={tmp_path}/set", f"--output_dir={tmp_path}/out"
        ).require_success()
        assert (f"records of {tmp_path}/set are in {tmp_path}/out-data" in result.output) == again
    assert "classes are matched by name" in result.errors
    metrics, detections = read_evaluation(tmp_path / "out")
    assert metrics == pytest.approx(evaluation[0], abs=1e-6)
    for entry in detections:
        entry["category_id"] = 1000 - entry["category_id"]
    assert_same_rows(detections, evaluation[1])


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--data_records={}", "--data_split=mine"], "no split 'mine'; there are"),
        (["--ckpt_path=x", "--val_json_file=x.json"], "--val_json_file names some: drop one"),
        (["--ckpt_path=zoo:x"], "--data needs --output_dir, beside which the records go"),
    ],
)
def test_a_data_folder_does_not_go_with(commands, tiny_set, tmp_path, flags, says):
    flags = [flag.format(tmp_path / "records") for flag in flags]
    result = commands.run("eval.py", f"--data={tiny_set.annotations.parents[1]}", *flags)
    result.require_explained_failure(says)


def test_testdev_writes_the_submission_without_annotations(
    commands, tiny_set, trained_run, evaluation, tmp_path
):
    content = json.loads(tiny_set.annotations.read_text())
    content.pop("annotations")
    images = tmp_path / "image_info.json"
    images.write_text(json.dumps(content))
    result = commands.run(
        "eval.py",
        f"--ckpt_path={trained_run.folder}",
        f"--testdev_dir={tmp_path / 'submission'}",
        f"--output_dir={tmp_path / 'out'}",
        *("--batch_size=4", "--which=last"),
        tiny_set.eval_flags[0],
        f"--val_json_file={images}",
    ).require_success()
    assert "csv format" not in result.output
    written = tmp_path / "submission" / "detections_test-dev2017_test_results.json"
    detections = json.loads(written.read_text())
    # The submission is rounded: the evaluation's rows are rounded alike before both are sorted.
    rounded = [
        {**d, "bbox": [round(v, 2) for v in d["bbox"]], "score": round(d["score"], 3)}
        for d in evaluation[1]
    ]
    assert_same_rows(detections, rounded, atol=0.011)
