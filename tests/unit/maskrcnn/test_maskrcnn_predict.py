"""A checkpoint put to use: the right conventions and classes, and an export that says the same."""

from __future__ import annotations

import json

import numpy as np
import pytest
import tensorflow as tf
from mask_records import tiny_config

import families
from engine.config.fields import ConfigError, to_dict
from engine.files import checkpoint
from maskrcnn.config import Conventions
from maskrcnn.family import FAMILY
from maskrcnn.task import MaskRcnnTask
from maskrcnn.weights import weights
from object_detection.masks.mask_paste import MaskRule
from object_detection.records.class_map import ClassMap
from object_detection.serve import inference, saved_model

CLASSES = ClassMap(2, {0: (3, "cat"), 1: (8, "dog")})
THEIRS = Conventions(
    *("symmetric", "1x1", (120.0, 110.0, 100.0), (1.0, 1.0, 1.0)),
    *("detectron", 1.0, 1.0, "legacy", "bilinear"),
)
CONFIG = tiny_config(
    test__test_detections_per_image=6,
    test__mask_threshold=0.4,
    test__mask_paste_convention="detectron",
    **{f"model__{name}": value for name, value in THEIRS._asdict().items()},
)


DESCRIPTION = {"config": to_dict(CONFIG), "task": {"class_map": CLASSES.to_dict()}}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """The prefix of a checkpoint with a description, of a random network."""
    task = MaskRcnnTask(CONFIG, CLASSES)
    generator = tf.random.Generator.from_seed(1)
    for variable in task.model.trainable_variables:
        if "predict" in variable.name or "mask" in variable.name:
            variable.assign(generator.normal(variable.shape, stddev=0.1))
    tensors = {f"model/{v.name.removesuffix(':0')}": v for v in task.model.variables}
    folder = tmp_path_factory.mktemp("run")
    return checkpoint.save(folder / "ckpt-00000001", tensors, DESCRIPTION)


@pytest.fixture(scope="module")
def task(saved):
    return families.load_task(saved, model_name="efficientdet-d0", preset_name="", hparams="")


def test_what_the_checkpoint_overrules_is_told(saved, capsys):
    with pytest.raises(ConfigError, match="=efficientdet-d1, but the checkpoint is maskrcnn-r50"):
        families.load_task(saved, model_name="efficientdet-d1", preset_name="", hparams="")
    families.load_task(saved, model_name="", preset_name="nvidia_tf2", hparams="")
    assert "WARNING: --preset=nvidia_tf2 has no effect" in capsys.readouterr().out


def photos(height, width):
    return tf.constant(
        np.random.default_rng(0).integers(0, 255, [2, height, width, 3]).astype(np.uint8)
    )


def test_the_checkpoint_says_family_classes_and_conventions(task, saved):
    assert type(task).__name__ == "MaskRcnnTask"
    assert dict(task.class_map.categories) == dict(CLASSES.categories)
    assert task.config.model.stride_in == "1x1"
    assert tuple(task.config.model.mean_rgb) == THEIRS.mean_rgb
    assert task.config.model.anchor_convention == "detectron"
    stored = weights.read_source(saved).file.arrays
    for variable in task.model.variables[:5]:
        name = variable.name.removesuffix(":0")
        found = [value for key, value in stored.items() if key.endswith(name)]
        assert any(np.array_equal(value, variable.numpy()) for value in found), name


def test_a_checkpoint_that_lacks_weights_is_refused(tmp_path):
    tensors = {"model/backbone/conv1/kernel": tf.zeros([7, 7, 3, 8])}
    prefix = checkpoint.save(tmp_path / "ckpt-00000001", tensors, DESCRIPTION)
    with pytest.raises(ValueError, match=r"1 of \d+ variables.*backbone/bn1/gamma is not in"):
        FAMILY.load_task(prefix, config=CONFIG)


@pytest.mark.slow
def test_the_export_gives_boxes_and_masks_as_the_model_does(task, tmp_path):
    folder = tmp_path / "exported"
    families.load("maskrcnn-r50-fpn").export(task, folder)
    labels = json.loads((folder / "assets" / "labels.json").read_text())
    assert labels == [{"category_id": 3, "name": "cat"}, {"category_id": 8, "name": "dog"}]
    detector, class_map, mask_rule = inference.saved_model_detector(str(folder))
    assert mask_rule == MaskRule(0.4, "detectron")
    assert dict(class_map.categories) == {3: (3, "cat"), 8: (8, "dog")}
    for height, width in ((60, 100), (110, 70)):
        images = photos(height, width)
        boxes, scores, classes, count, masks = (t.numpy() for t in detector(images))
        ours = task.detect_images(images)
        assert masks.shape == (2, 6, 28, 28)
        assert (count > 0).all()
        assert np.array_equal(count, ours.num_valid)
        assert np.abs(boxes - ours.boxes).max() < 0.01
        assert np.abs(scores - ours.scores).max() < 1e-4
        assert np.abs(masks - ours.masks).max() < 1e-3
        assert masks[:, 0].std() > 1e-3, "masks say something"
        assert set(np.unique(classes)) <= {3, 8, -1}
        assert (boxes[..., 2] <= height).all() and (boxes[..., 3] <= width).all()
    with pytest.raises(tf.errors.InvalidArgumentError, match="expected at least one image"):
        detector(photos(60, 100)[:0])


def test_an_export_with_other_masks_is_refused(tmp_path):
    """The check compares masks too."""
    calls = []

    def detect(images):
        calls.append(images)
        shift = 0.0 if len(calls) == 1 else 0.2  # traced once, then asked for comparison
        batch = tf.shape(images)[0]
        return saved_model.MaskDetections(
            tf.tile([[[1.0, 1.0, 9.0, 9.0]]], [batch, 1, 1]),
            tf.ones([batch, 1]),
            tf.zeros([batch, 1], tf.int32),
            tf.ones([batch], tf.int32),
            tf.fill([batch, 1, 4, 4], 0.5 + shift),
        )

    with pytest.raises(RuntimeError, match="masks by 0.2"):
        saved_model.export_detector(
            detect, CLASSES, tmp_path / "exported", variables=[], check_size=(8, 8)
        )
    assert not (tmp_path / "exported").exists()
