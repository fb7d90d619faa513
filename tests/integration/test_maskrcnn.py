"""Mask R-CNN through the real commands at the smallest size: train, resume, evaluate, two ranks."""

import json

import numpy as np
import pytest
import tensorflow as tf
from commands import mpirun
from pycocotools import mask as mask_api

from dataset.embedded.make_set import write_embedded_set
from object_detection.coco.annotations import read_annotations
from object_detection.convert.convert import convert

pytestmark = pytest.mark.slow

TINY = (
    "--model_name=maskrcnn-r50-fpn",
    "--hparams=image_size=128x96,backbone_width=8,backbone_repeats=[1,1,1,1],norm=batch_norm,"
    "freeze_at=0,fpn_num_filters=16,"
    "box_mlp_dim=32,mask_conv_dims=[8],mask_deconv_dim=8,anchor_sizes=[12,24,48,96,128],"
    "train_rpn_pre_nms_topn=100,train_rpn_post_nms_topn=50,test_rpn_pre_nms_topn=100,"
    "test_rpn_post_nms_topn=50,roi.batch_size_per_im=16,test_score_thresh=0.0,"
    "test_detections_per_image=10,rpn_batch_size_per_im=64",
    "--noamp",
    "--nouse_xla",
    "--batch_size=2",
    "--eval_batch_size=3",
    "--noreport",
    "--num_epochs=2",
    "--seed=5",
)


@pytest.fixture(scope="module")
def flags(tmp_path_factory):
    """The flags that name eight pictures with masks."""
    folder = tmp_path_factory.mktemp("masks")
    made = write_embedded_set(
        folder / "coco", num_train=8, num_eval=1, image_size=96, report=lambda line: None
    )
    for split in ("train", "val"):
        convert(
            read_annotations(made.train_annotations),
            made.train_images,
            folder / "records" / split,
            num_shards=2,
            mask_format="bitpacked",
        )
    convert(
        read_annotations(made.train_annotations), made.train_images, folder / "plain", num_shards=1
    )
    return {
        "train": f"--training_file_pattern={folder}/records/train-*.tfrecord",
        "plain": f"--training_file_pattern={folder}/plain-*.tfrecord",
        "eval": (
            f"--val_file_pattern={folder}/records/val-*.tfrecord",
            f"--val_json_file={made.train_annotations}",
        ),
    }


@pytest.fixture(scope="module")
def run(commands, tmp_path_factory, flags):
    """A finished run of two epochs, interrupted after the first."""
    folder = tmp_path_factory.mktemp("run")
    for stop in (1, 2):
        commands.run(
            "train.py",
            *TINY,
            flags["train"],
            *flags["eval"],
            f"--model_dir={folder}",
            f"--stop_epoch={stop}",
        ).require_success()
    return folder


def test_a_run_ends_with_scores_of_boxes_and_masks(run, flags):
    metrics = json.loads((run / "evaluation" / "metrics.json").read_text())
    assert metrics["epoch"] == 2
    assert {"AP", "AP50", "mask_AP", "mask_AP50"} <= set(metrics)
    assert sum(name.startswith("mask_AP_/") for name in metrics) > 1
    log = (run / "time_log.txt").read_text()
    for key in ("mask_rcnn_loss", "l2_regularization_loss", "train_latency_99", "MASK_mAP"):
        assert f'"{key}": ' in log
    annotations = flags["eval"][1].partition("=")[2]
    with open(annotations) as file:
        images = {image["id"]: image for image in json.load(file)["images"]}
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


def test_two_ranks_evaluate_as_one(commands, run, flags, tmp_path):
    arguments = (f"--ckpt_path={run}/ckpt-final", *flags["eval"], "--batch_size=3")
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
def test_two_ranks_train(flags, tmp_path):
    result = mpirun(
        2,
        "train.py",
        *TINY,
        flags["train"],
        *flags["eval"],
        f"--model_dir={tmp_path}/run",
        "--stop_epoch=1",
    ).require_success()
    assert "2 rank(s)" in result.output
    metrics = json.loads((tmp_path / "run/evaluation/metrics.json").read_text())
    assert np.isfinite([metrics["AP"], metrics["mask_AP"]]).all()


def test_records_without_masks_are_refused(commands, flags, tmp_path):
    result = commands.run(
        "train.py", *TINY, flags["plain"], *flags["eval"], f"--model_dir={tmp_path}/run"
    )
    result.require_explained_failure("no masks", "--include_masks", "fasterrcnn-*")
