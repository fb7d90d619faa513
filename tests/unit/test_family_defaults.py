"""What `DetectorFamily` does for a family that reads no weights of other programs."""

from types import SimpleNamespace

import keras_choice  # noqa: F401  (before TensorFlow)

import numpy as np
import pytest
import tensorflow as tf
from weight_samples import assert_holds, assert_refused, random_values, save_tensors

import families
from detector.family import DetectorFamily
from engine.config.fields import ConfigError

FAMILY = DetectorFamily(SimpleNamespace(COMPARED_SECTIONS=()), object, object)


@pytest.fixture
def task():
    model = tf.keras.Sequential([tf.keras.layers.Dense(3, name="head", input_shape=[2])])
    config = SimpleNamespace(model=SimpleNamespace(name="toy"))
    return SimpleNamespace(model=model, config=config, class_map=SimpleNamespace(num_classes=3))


def test_our_checkpoint_is_loaded_by_its_own_names_and_averages_go_first(task, tmp_path):
    plain, averages = random_values(task.model, 1), random_values(task.model, 2)
    tensors = {f"model/{name}": value for name, value in plain.items()}
    path = save_tensors(tmp_path / "plain", {**tensors, "state/step": 7})
    report = FAMILY.load_detector(task, path)
    assert_holds(task.model, plain)
    assert report.skipped == {"state/step": "training state"} and not report.missing
    of_averages = {f"ema/{name}": value for name, value in averages.items()}
    path = save_tensors(tmp_path / "both", tensors | of_averages)
    assert FAMILY.load_detector(task, path, channels=[0, 1, 2]).num_averaged == 2
    assert_holds(task.model, averages)


def test_what_the_base_cannot_load_is_refused(task, tmp_path):
    values = {f"model/{name}": value for name, value in random_values(task.model).items()}
    path = save_tensors(tmp_path / "ckpt", values | {"model/head/bias": tf.zeros(4)})
    assert_refused(
        lambda model, file: FAMILY.load_detector(task, file), task.model, path, "another network"
    )
    with pytest.raises(ConfigError, match="has other classes: of toy only equal ones"):
        FAMILY.load_detector(task, path, channels=[1, 0, 2])
    with pytest.raises(ConfigError, match="--backbone_init=r50: no weights of others .* for toy"):
        FAMILY.load_backbone(task, "r50")


@pytest.mark.parametrize(
    ("model", "strides", "first", "limits", "scale"),
    [
        # Sides of 4 x 8 at the first octave of three, cut 1:1, 2:1 and 1:2 at almost equal area.
        (
            "efficientdet-d0",
            [8, 16, 32, 64, 128],
            [(32, 32), (44.8, 22.4), (22.4, 44.8), (40.3, 40.3), (56.4, 28.2), (28.2, 56.4)],
            (512, 512),
            ("anchor_scale", (4.0,)),
        ),
        (
            "maskrcnn-r50-fpn",
            (4, 8, 16, 32, 64),
            [(32, 32), (44.8, 22.4), (22.4, 44.8)],
            (832, 1344),
            ("anchor_sizes", (32, 64, 128, 256, 512)),
        ),
        (
            "maskrcnn-r50-c4",
            (16,),
            [(32, 32), (44.8, 22.4), (22.4, 44.8), (64, 64), (89.6, 44.8), (44.8, 89.6)],
            (832, 1344),
            ("anchor_sizes", (32, 64, 128, 256, 512)),
        ),
    ],
)
def test_the_check_of_data_knows_the_anchors(model, strides, first, limits, scale):
    layout = families.anchor_layout(families.base_config(model).model)
    assert (layout.strides, layout.limits, layout.scale) == (strides, limits, scale)
    assert len(layout.shapes) == len(strides)
    found = {tuple(shape) for shape in np.round(layout.shapes[0][: len(first)], 1).tolist()}
    assert found == set(first)
