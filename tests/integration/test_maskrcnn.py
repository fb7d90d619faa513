"""Mask R-CNN through the real commands at the smallest size: train, resume, evaluate, two ranks."""

import json
import re
import signal

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
    """A finished run of two epochs, stopped by a signal in the first."""
    folder = tmp_path_factory.mktemp("run")
    flags = (*TINY, *tiny_set.flags, f"--model_dir={folder}", "--console_seconds=0")
    stopped = commands.start("train.py", *flags)
    stopped.wait_until_said(" step 1/")
    stopped.send(signal.SIGTERM)
    assert stopped.wait().code == 75
    continued = commands.run("train.py", *flags).require_success()
    assert re.search(r"continuing at step [1-6], epoch 1", continued.output), continued.output
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


@pytest.mark.parametrize("num_ranks", [pytest.param(1, marks=pytest.mark.nightly), 2])
def test_ranks_score_as_the_training_on_one(run, tiny_set, tmp_path, num_ranks):
    checkpoint = (f"--ckpt_path={run}/ckpt-final", "--batch_size=3", "--noreport")
    arguments = (*checkpoint, *tiny_set.eval_flags)
    mpirun(num_ranks, "eval.py", *arguments, f"--output_dir={tmp_path}").require_success()
    ours, trained = (
        {name: json.loads((folder / f"{name}.json").read_text()) for name in ("metrics", "segm")}
        for folder in (tmp_path, run / "evaluation")
    )
    scores = {name: ours["metrics"][name] for name in trained["metrics"]}
    assert scores == pytest.approx(trained["metrics"], abs=1e-6)
    assert len(ours["segm"]) == len(trained["segm"]) > 0


def test_records_without_masks_are_refused(commands, tiny_set, tmp_path):
    convert(read_annotations(tiny_set.annotations), tiny_set.images, tmp_path / "plain")
    places = (f"--training_file_pattern={tmp_path}/plain-*", f"--model_dir={tmp_path}/run")
    result = commands.run("train.py", *TINY, *tiny_set.eval_flags, *places)
    result.require_explained_failure("no masks", "--include_masks", "fasterrcnn-*")
