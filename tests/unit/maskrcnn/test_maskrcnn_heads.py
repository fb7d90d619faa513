"""RPN, box and mask heads against NumPy, their variables and initial values."""

import dataclasses

import network_in_numpy as reference
import numpy as np
import pytest
import tensorflow as tf

from maskrcnn.config import model_config
from maskrcnn.network.heads import build_box_head, build_mask_head, build_roi_stage, build_rpn_head


def small(name="maskrcnn-r50-fpn", **changes):
    changes = {
        "box_mlp_dim": 12,
        "box_conv_dim": 6,
        "box_num_convs": 2,
        "mask_conv_dims": (6, 8),
        "mask_deconv_dim": 4,
        "num_norm_groups": 2,
    } | changes
    return dataclasses.replace(model_config(name), **changes)


def names_of(model):
    return {v.name.removesuffix(":0") for v in model.variables}


def features(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize(
    ("changes", "layers"),
    [
        ({}, ("fc6", "fc7")),
        ({"box_head_norm": "group_norm"}, ("fc6", "fc7")),
        ({"box_head": "conv"}, ("conv1", "conv2", "fc6")),
        ({"box_head": "conv", "box_head_norm": "group_norm"}, ("conv1", "conv2", "fc6")),
    ],
)
def test_box_head_equals_numpy(changes, layers):
    head = build_box_head((3, 4, 5), small(**changes), num_classes=7, batch_norm=None)
    weights = reference.randomise(head)
    x = expected = features(2, 3, 4, 5)
    for layer in layers:
        kernel = weights[f"box_head/{layer}/kernel"]
        bias = weights.get(f"box_head/{layer}/bias", 0.0)
        if layer.startswith("conv"):
            expected = reference.conv2d(expected, kernel) + bias
        else:
            expected = expected.reshape(2, -1) @ kernel + bias
        # After convolutions the dense layer has none.
        if "box_head_norm" in changes and (layer != "fc6" or "box_head" not in changes):
            expected = reference.norm(expected, weights, f"box_head/{layer}_gn", num_groups=2)
            assert f"box_head/{layer}/bias" not in weights
        expected = reference.relu(expected)
    for result, layer, size in zip(head(x), ("cls_score", "bbox_pred"), (8, 28)):
        values = expected @ weights[f"box_head/{layer}/kernel"] + weights[f"box_head/{layer}/bias"]
        assert values.shape == (2, size)
        np.testing.assert_allclose(result, values, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("norm", ["", "group_norm"])
def test_mask_head_equals_numpy(norm):
    head = build_mask_head((5, 5, 3), small(mask_head_norm=norm), num_classes=6, batch_norm=None)
    weights = reference.randomise(head)
    x = expected = features(2, 5, 5, 3)
    for layer in ("mask_fcn1", "mask_fcn2"):
        expected = reference.conv2d(expected, weights[f"mask_head/{layer}/kernel"])
        expected = expected + weights.get(f"mask_head/{layer}/bias", 0.0)
        if norm:
            expected = reference.norm(expected, weights, f"mask_head/{layer}_gn", num_groups=2)
        expected = reference.relu(expected)
    kernel, bias = (weights[f"mask_head/conv5_mask/{kind}"] for kind in ("kernel", "bias"))
    expected = reference.relu(reference.transposed_conv(expected, kernel, bias))
    kernel, bias = (weights[f"mask_head/mask_fcn_logits/{kind}"] for kind in ("kernel", "bias"))
    expected = reference.conv2d(expected, kernel) + bias
    assert expected.shape == (2, 10, 10, 6)
    np.testing.assert_allclose(head(x), expected, rtol=1e-4, atol=1e-4)


def test_rpn_head_is_shared_by_the_levels():
    maps = [tf.keras.Input((None, None, 4)) for _ in range(2)]
    model = tf.keras.Model(maps, build_rpn_head(maps, small()))
    assert names_of(model) == {
        f"rpn/{layer}/{kind}"
        for layer in ("conv", "cls_logits", "bbox_pred")
        for kind in ("kernel", "bias")
    }
    weights = reference.randomise(model)
    inputs = [features(1, 6, 4, 4), features(1, 3, 2, 4, seed=1)]
    logits, deltas = model(inputs)

    def conv(x, name):
        return reference.conv2d(x, weights[f"{name}/kernel"], bias=weights[f"{name}/bias"])

    for x, level_logits, level_deltas in zip(inputs, logits, deltas):
        hidden = reference.relu(conv(x, "rpn/conv"))
        np.testing.assert_allclose(level_logits, conv(hidden, "rpn/cls_logits"), atol=1e-4)
        np.testing.assert_allclose(level_deltas, conv(hidden, "rpn/bbox_pred"), atol=1e-4)
        assert level_logits.shape[-1] == 3 and level_deltas.shape[-1] == 12


def test_initial_deviations_are_the_documented_ones():
    maps = [tf.keras.Input((None, None, 64))]
    rpn = tf.keras.Model(maps, build_rpn_head(maps, small()))
    config = small(box_mlp_dim=64, mask_conv_dims=(64,), mask_deconv_dim=64, box_num_convs=1)
    box = build_box_head((7, 7, 16), config, num_classes=80, batch_norm=None)
    conv_box = build_box_head(
        (7, 7, 16),
        dataclasses.replace(config, box_head="conv", box_conv_dim=64),
        num_classes=80,
        batch_norm=None,
    )
    mask = build_mask_head((14, 14, 16), config, num_classes=80, batch_norm=None)
    variables = {
        v.name.removesuffix(":0"): v for m in (conv_box, rpn, box, mask) for v in m.variables
    }
    expected = {
        "rpn/conv": 0.01,
        "rpn/bbox_pred": 0.01,
        "box_head/conv1": 0.01,
        "box_head/fc6": (1.0 / (7 * 7 * 16)) ** 0.5,
        "box_head/cls_score": 0.01,
        "box_head/bbox_pred": 0.001,
        "mask_head/mask_fcn1": (2.0 / (9 * 64)) ** 0.5,
        "mask_head/conv5_mask": (2.0 / (4 * 64)) ** 0.5,
        "mask_head/mask_fcn_logits": (2.0 / 80) ** 0.5,
    }
    for name, deviation in expected.items():
        assert np.std(variables[f"{name}/kernel"]) == pytest.approx(deviation, rel=0.1), name
        assert not np.any(variables[f"{name}/bias"]), name


def test_stage_five_on_roi_features():
    config = small("maskrcnn-r50-c4", num_norm_groups=32, backbone_repeats=(1, 1, 1, 2))
    stage = build_roi_stage(8, config, batch_norm=None)
    assert stage.output_shape == (None, 7, 7, 2048)
    assert "box_head/layer4/0/conv1/kernel" in names_of(stage)
    assert "box_head/layer4/1/bn3/gamma" in names_of(stage)
    assert not any("bn" in v.name for v in stage.trainable_variables)
    box = build_box_head((7, 7, 16), config, num_classes=3, batch_norm=None)
    assert names_of(box) == {
        f"box_head/{layer}/{kind}"
        for layer in ("cls_score", "bbox_pred")
        for kind in ("kernel", "bias")
    }
    weights = reference.randomise(box)
    x = features(2, 7, 7, 16)
    expected = x.mean((1, 2)) @ weights["box_head/cls_score/kernel"]
    logits, _ = box(x)
    np.testing.assert_allclose(
        logits, expected + weights["box_head/cls_score/bias"], rtol=1e-4, atol=1e-5
    )
    mask = build_mask_head((7, 7, 16), config, num_classes=3, batch_norm=None)
    assert mask.output_shape == (None, 14, 14, 3)
    assert not any("mask_fcn1" in name for name in names_of(mask))
