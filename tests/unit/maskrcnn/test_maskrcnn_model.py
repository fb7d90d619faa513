"""The whole network: known parameter counts, every name, parts, gradients, XLA, precision."""

import dataclasses
import re

import network_in_numpy as reference
import numpy as np
import precision
import pytest
import tensorflow as tf

from maskrcnn.config import MODEL_TABLE, model_config
from maskrcnn.network.model import build_model

# torchvision's maskrcnn_resnet50_fpn with 91 classes, its frozen batch norm not counted; it has box
# deltas (4 x 1025) and a mask (257) for the background too, which we have not.
KNOWN = 44401393 - 4 * 1025 - 257
REAL_DEPTH = ("maskrcnn-r50-fpn", "maskrcnn-r101-fpn", "maskrcnn-x101-32x8d-fpn")


def small(name="maskrcnn-r50-fpn", **changes):
    """A narrow model of one block per stage."""
    changes = {
        "backbone_repeats": (1, 1, 1, 1),
        "fpn_num_filters": 32,
        "box_mlp_dim": 32,
        "box_conv_dim": 32,
        "mask_conv_dims": (32,),
        "mask_deconv_dim": 32,
        "num_norm_groups": 8,
    } | changes
    return dataclasses.replace(model_config(name), **changes)


def num_elements(variables):
    return sum(v.shape.num_elements() for v in variables)


@pytest.fixture(scope="module")
def r50_fpn():
    return build_model(model_config("maskrcnn-r50-fpn"), num_classes=90)


def test_r50_fpn_has_the_known_parameters(r50_fpn):
    norms = [v for v in r50_fpn.variables if re.search(r"bn\d?/\w+:0$", v.name)]
    assert num_elements(r50_fpn.variables) - num_elements(norms) == KNOWN
    assert len(norms) == 53 * 4
    frozen = 7 * 7 * 3 * 64 + 3 * (64 * 64 * 9 + 64 * 256) + 64 * 64 + 2 * 256 * 64 + 64 * 256
    assert num_elements(r50_fpn.trainable_variables) == KNOWN - frozen
    assert num_elements(r50_fpn.box_head.variables) == 12846080 + 1049600 + 93275 + 369000
    assert r50_fpn.count_params() == num_elements(r50_fpn.variables)


def test_variable_names_are_unique_and_in_known_parts(r50_fpn):
    names = [v.name for v in r50_fpn.variables]
    assert len(set(names)) == len(names) == 265 + 42
    assert {name.split("/")[0] for name in names} == {
        *("backbone", "fpn", "rpn", "box_head", "mask_head")
    }


def test_second_model_has_the_same_names(r50_fpn):
    def outside_of_later_blocks(model):
        names = [v.name for v in model.variables]
        return [n for n in names if "/layer" not in n or "/0/" in n or n.startswith("fpn")]

    second = build_model(small(mask_conv_dims=(32,) * 4), num_classes=3)
    assert outside_of_later_blocks(second) == outside_of_later_blocks(r50_fpn)


def call_all_parts(model, images):
    """Runs every part on random RoI features of the shapes the configuration says."""
    config = model.config
    outputs = model(images)
    assert sorted(outputs.features) == list(config.roi_levels)
    for level, features in outputs.features.items():
        assert features.shape[1:3] == [-(-side // 2**level) for side in images.shape[1:3]]
    channels = outputs.features[config.roi_levels[0]].shape[-1]
    cells = [x.shape[1] * x.shape[2] for x in outputs.rpn_logits]
    assert len(cells) == len(config.anchor_strides)
    for stride, logits, deltas in zip(
        config.anchor_strides, outputs.rpn_logits, outputs.rpn_deltas
    ):
        assert logits.shape[1:3] == [-(-side // stride) for side in images.shape[1:3]]
        assert logits.shape[-1] == config.num_anchors_per_cell
        assert deltas.shape[-1] == 4 * config.num_anchors_per_cell
    if config.rpn_only:
        assert model.box_head is None and model.mask_head is None
        return outputs
    side = config.box_resolution
    features = model.roi_features(tf.ones([2, side, side, channels]))
    boxes = model.boxes(features)
    assert boxes.class_logits.shape == (2, model.num_classes + 1)
    assert boxes.box_deltas.shape == (2, model.num_classes, 4)
    if not config.include_mask:
        assert model.mask_head is None
        return outputs
    if config.mask_head != "res5":
        side = config.mask_resolution
        features = model.roi_features(tf.ones([2, side, side, channels]))
    masks = model.masks(features)
    assert masks.shape == (2, config.mask_size, config.mask_size, model.num_classes)
    return outputs


@pytest.mark.parametrize("name", REAL_DEPTH[1:])
def test_deep_models_build(name):
    model = build_model(small(name, box_mlp_dim=8, backbone_repeats=()), num_classes=3)
    blocks = {v.name.split("/")[2] for v in model.variables if "backbone/layer3/" in v.name}
    assert len(blocks) == 23
    kernel = next(v for v in model.variables if v.name == "backbone/layer1/0/conv2/kernel:0")
    assert kernel.shape == ((3, 3, 64, 64) if "r101" in name else (3, 3, 8, 256))
    assert model.trunk.output_shape[1][0] == (None, None, None, 3)


NETWORKS = (
    *("maskrcnn-r50-fpn", "maskrcnn-r50-c4", "maskrcnn-r50-c5", "maskrcnn-x101-32x8d-fpn"),
    *("maskrcnn-r50-fpn-gn", "maskrcnn-r50-fpn-4conv1fc-gn", "fasterrcnn-r50-c4", "rpn-r50-c5"),
    *("maskrcnn-r50-fpn-v2", "maskrcnn-r50-fpn-matterport"),
)


@pytest.mark.parametrize("name", NETWORKS)
def test_network_builds_and_runs(name):
    call_all_parts(build_model(small(name), num_classes=3), tf.ones([1, 64, 96, 3]))


def test_all_other_models_differ_from_these_by_depth_or_left_out_heads():
    for name, config in MODEL_TABLE.items():
        twin = name.replace("r101", "r50")
        twin = twin if twin in NETWORKS else "maskrcnn" + twin[twin.index("-") :]
        assert twin in NETWORKS
        same = {"name": name, "include_mask": config.include_mask, "rpn_only": config.rpn_only}
        if "r101" in name:
            same["backbone_name"] = "resnet101"
        assert dataclasses.replace(model_config(twin), **same) == config


def test_no_class_is_an_error():
    with pytest.raises(ValueError, match="num_classes >= 1, got 0"):
        build_model(model_config("maskrcnn-r50-fpn"), num_classes=0)


def train_step(model):
    """Gradients of all outputs' squares with respect to the trained variables."""
    side = model.config.box_resolution

    def step(images, pick):
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(model.trainable_variables)
            outputs = model(images, training=True)
            # Stands for RoIAlign: any part of a map in the shape of RoI features.
            finest = outputs.features[model.config.roi_levels[0]]
            rois = finest[:, :side, :side]
            rois = tf.concat([rois, rois[:, ::-1]], 0)
            rois = tf.gather(rois, pick)
            features = model.roi_features(rois, training=True)
            boxes = model.boxes(features, training=True)
            masks = model.masks(features, training=True)
            parts = [*outputs.rpn_logits, *outputs.rpn_deltas, *boxes, masks]
            loss = tf.add_n([tf.reduce_mean(tf.cast(x, tf.float32) ** 2) for x in parts])
        return [loss, *tape.gradient(loss, model.trainable_variables)]

    return step


IMAGES = np.random.default_rng(0).normal(size=(2, 32, 32, 3)).astype(np.float32)
PICK = tf.constant([0, 3, 1])


@pytest.mark.parametrize(
    ("name", "changes"),
    [("maskrcnn-r50-c4", {"box_resolution": 2}), ("maskrcnn-r50-fpn-gn", {"mask_resolution": 7})],
)
def test_xla_gives_the_same_gradients(name, changes):
    model = build_model(small(name, **changes), num_classes=3)
    reference.randomise(model)
    step = train_step(model)
    compiled = tf.function(step, autograph=False, jit_compile=True)(IMAGES, PICK)
    names = ["loss"] + [v.name for v in model.trainable_variables]
    for name, plain, result in zip(names, step(IMAGES, PICK), compiled):
        scale = np.abs(plain).max()
        assert scale > 0, name
        np.testing.assert_allclose(result, plain, rtol=1e-2, atol=1e-3 * scale, err_msg=name)


def test_masks_of_one_class_and_their_gradients_are_those_of_all_classes(r50_fpn):
    rng = np.random.default_rng(0)
    rois = tf.constant(rng.normal(size=(3, 14, 14, 256)), tf.float32)
    classes = tf.constant([5, -1, 89])
    factors = tf.constant(rng.normal(size=(3, 28, 28)), tf.float32)
    variables = r50_fpn.mask_head.trainable_variables
    results = []
    for predict in (
        lambda: tf.gather(r50_fpn.masks(rois), tf.maximum(classes, 0), axis=-1, batch_dims=0),
        lambda: r50_fpn.masks_of_classes(rois, classes),
    ):
        with tf.GradientTape() as tape:
            logits = predict()
            if logits.shape.rank == 4:  # every RoI with every class: take the diagonal
                logits = tf.stack([logits[i, ..., i] for i in range(3)])
            loss = tf.reduce_sum((logits * factors)[::2])  # -1 is padding
        gradients = tape.gradient(loss, variables)
        results.append([logits[::2], *(tf.convert_to_tensor(g) for g in gradients)])
    for all_classes, own in zip(*results):
        np.testing.assert_allclose(own, all_classes, rtol=1e-3, atol=1e-3)
    assert len(r50_fpn.variables) == 265 + 42


def test_half_precision_network_with_float32_variables():
    with precision.policy("mixed_float16"):
        model = build_model(small("maskrcnn-r50-fpn-gn", mask_resolution=7), num_classes=3)
    outputs = call_all_parts(model, tf.cast(IMAGES[:1], tf.float16))
    assert {x.dtype for x in (*outputs.rpn_logits, *outputs.features.values())} == {tf.float16}
    assert {v.dtype for v in model.variables} == {tf.float32}
    masks = model.masks(tf.ones([1, 7, 7, 32], tf.float16))
    chosen = model.masks_of_classes(tf.ones([1, 7, 7, 32], tf.float16), tf.constant([2]))
    assert chosen.dtype == tf.float16
    np.testing.assert_allclose(chosen, masks[..., 2], rtol=1e-2, atol=1e-2)
    assert masks.dtype == tf.float16 and np.all(np.isfinite(masks))
