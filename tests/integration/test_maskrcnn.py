"""Mask R-CNN through the real commands at the smallest size: train, resume, evaluate, two ranks."""

import json

import numpy as np
import pytest
import tensorflow as tf
from commands import mpirun
from pycocotools import mask as mask_api
from tiny_runs import SMALLEST_MASK

from object_detection.coco.annotations import read_annotations
from object_detection.convert.convert import convert

pytestmark = pytest.mark.slow

TINY = (
    "--model_name=maskrcnn-r50-fpn",
    SMALLEST_MASK,
    "--noamp",
    "--nouse_xla",
    "--batch_size=2",
    "--eval_batch_size=3",
    "--noreport",
    "--num_epochs=2",
    "--seed=5",
)


@pytest.fixture(scope="module")
def run(commands, tmp_path_factory, tiny_set):
    """A finished run of two epochs, interrupted after the first."""
    folder = tmp_path_factory.mktemp("run")
    for stop in (1, 2):
        commands.run(
            "train.py", *TINY, *tiny_set.flags, f"--model_dir={folder}", f"--stop_epoch={stop}"
        ).require_success()
    return folder


def test_a_run_ends_with_scores_of_boxes_and_masks(run, tiny_set):
    metrics = json.loads((run / "evaluation" / "metrics.json").read_text())
    assert metrics["epoch"] == 2
    assert {"AP", "AP50", "mask_AP", "mask_AP50"} <= set(metrics)
    assert sum(name.startswith("mask_AP_/") for name in metrics) > 1
    log = (run / "time_log.txt").read_text()
    for key in ("mask_rcnn_loss", "l2_regularization_loss", "train_latency_99", "MASK_mAP"):
        assert f'"{key}": ' in log
    images = json.loads(tiny_set.annotations.read_text())["images"]
    images = {image["id"]: image for image in images}
    results = json.loads((run / "evaluation" / "segm.json").read_text())
    assert len(results) > 0
    for result in results:
        image = images[result["image_id"]]
        shape = (image["height"], image["width"])
        assert mask_api.decode(result["segmentation"]).shape == shape


@pytest.mark.both_stacks
def test_the_export_gives_masks_without_this_repository(run):
    model = tf.saved_model.load(str(run / "model-final"))
    boxes, scores, classes, count, masks = model(tf.zeros([1, 50, 70, 3], tf.uint8))
    assert boxes.shape == (1, 10, 4) and masks.shape == (1, 10, 28, 28)
    assert scores.shape == classes.shape == (1, 10) and count.shape == (1,)


def test_two_ranks_evaluate_as_one(commands, run, tiny_set, tmp_path):
    arguments = (f"--ckpt_path={run}/ckpt-final", *tiny_set.eval_flags, "--batch_size=3")
    commands.run("eval.py", *arguments, f"--output_dir={tmp_path}/one").require_success()
    mpirun(2, "eval.py", *arguments, f"--output_dir={tmp_path}/two").require_success()
    one, two = (
        json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("one", "two")
    )
    assert one == pytest.approx(two, abs=1e-6)
    trained = json.loads((run / "evaluation" / "metrics.json").read_text())
    assert {k: one[k] for k in trained} == pytest.approx(trained, abs=1e-6)
    masks = [
        len(json.loads((tmp_path / name / "segm.json").read_text())) for name in ("one", "two")
    ]
    assert masks[0] == masks[1] > 0


@pytest.mark.nightly  # test_scripts.py has two ranks train every day
def test_two_ranks_train(tiny_set, tmp_path):
    result = mpirun(
        2, "train.py", *TINY, *tiny_set.flags, f"--model_dir={tmp_path}/run", "--stop_epoch=1"
    ).require_success()
    assert "2 rank(s)" in result.output
    metrics = json.loads((tmp_path / "run/evaluation/metrics.json").read_text())
    assert np.isfinite([metrics["AP"], metrics["mask_AP"]]).all()


def test_records_without_masks_are_refused(commands, tiny_set, tmp_path):
    convert(read_annotations(tiny_set.annotations), tiny_set.images, tmp_path / "plain")
    places = (f"--training_file_pattern={tmp_path}/plain-*", f"--model_dir={tmp_path}/run")
    result = commands.run("train.py", *TINY, *tiny_set.eval_flags, *places)
    result.require_explained_failure("no masks", "--include_masks", "fasterrcnn-*")
