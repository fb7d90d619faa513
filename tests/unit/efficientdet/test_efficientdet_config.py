"""The model table against the paper's compound scaling and the published rows."""

import dataclasses

import pytest

from efficientdet.config import MODEL_TABLE, ModelConfig, model_config
from efficientdet.settings import LossConfig, NmsConfig, base_config, validate, with_preset
from engine.config.fields import ConfigError, override, to_dict
from engine.config.recipe_yaml import parse_hparams
from engine.config.settings import DataConfig

# name: (backbone, image, width, cells, repeats, anchor scale, max level, fusion)
PUBLISHED = {
    "d0": ("b0", 512, 64, 3, 3, 4, 7, "fastattn"),
    "d1": ("b1", 640, 88, 4, 3, 4, 7, "fastattn"),
    "d2": ("b2", 768, 112, 5, 3, 4, 7, "fastattn"),
    "d3": ("b3", 896, 160, 6, 4, 4, 7, "fastattn"),
    "d4": ("b4", 1024, 224, 7, 4, 4, 7, "fastattn"),
    "d5": ("b5", 1280, 288, 7, 4, 4, 7, "fastattn"),
    "d6": ("b6", 1280, 384, 8, 5, 4, 7, "sum"),
    "d7": ("b6", 1536, 384, 8, 5, 5, 7, "sum"),
    "d7x": ("b7", 1536, 384, 8, 5, 4, 8, "sum"),
    "lite0": ("lite0", 320, 64, 3, 3, 3, 7, "sum"),
    "lite1": ("lite1", 384, 88, 4, 3, 3, 7, "sum"),
    "lite2": ("lite2", 448, 112, 5, 3, 3, 7, "sum"),
    "lite3": ("lite3", 512, 160, 6, 4, 4, 7, "sum"),
    "lite3x": ("lite3", 640, 200, 6, 4, 3, 7, "sum"),
    "lite4": ("lite4", 640, 224, 7, 4, 4, 7, "sum"),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_rows_are_the_published_ones(name):
    backbone, size, width, cells, repeats, scale, max_level, fusion = PUBLISHED[name]
    config = model_config(f"efficientdet-{name}")
    assert config.backbone_name == f"efficientnet-{backbone}"
    assert config.image_size == (size, size)
    assert (config.fpn_num_filters, config.fpn_cell_repeats) == (width, cells)
    assert config.box_class_repeats == repeats
    assert config.anchor_scale == scale
    assert (config.min_level, config.max_level) == (3, max_level)
    assert config.fpn_weight_method == fusion
    assert config.num_anchors_per_cell == 9


def test_table_holds_nothing_else():
    assert set(MODEL_TABLE) == {f"efficientdet-{name}" for name in PUBLISHED}


def test_lite_models_use_relu6_and_symmetric_pixels():
    for name, config in MODEL_TABLE.items():
        is_lite = "lite" in name
        assert config.act_type == ("relu6" if is_lite else "swish")
        expected = (127.0, 128.0) if is_lite else (123.675, 58.395)
        assert (config.mean_rgb[0], config.stddev_rgb[0]) == pytest.approx(expected)


def test_only_the_smallest_models_keep_every_branch():
    always = {name for name, config in MODEL_TABLE.items() if config.survival_prob is None}
    assert always == {"efficientdet-d0", "efficientdet-lite0"}
    assert model_config("efficientdet-d3").survival_prob == 0.8


def test_defaults_are_the_published_ones():
    """Of google/automl's and NVIDIA's programs, but what docs/departures.md names."""
    published = {
        "data": {
            **{"input_rand_hflip": True, "jitter_min": 0.1, "jitter_max": 2.0},
            **{"shuffle_buffer": 5000, "skip_crowd_during_training": True},
            **{"max_instances_per_image": 100, "color_jitter": 0, "autoaugment": ""},
        },
        "optim": {
            **{"optimizer": "sgd", "momentum": 0.9, "learning_rate": 0.08, "lr_batch_size": 64},
            **{"lr_warmup_epoch": 1, "lr_decay_method": "cosine", "clip_gradients_norm": 10},
            **{"weight_decay": 4e-5, "moving_average_decay": 0.9998, "loss_scale": 32768},
            **{"gradient_accumulation": 1, "var_freeze_expr": ""},
        },
        "loss": {
            **{"alpha": 0.25, "gamma": 1.5, "label_smoothing": 0, "delta": 0.1},
            **{"box_loss_weight": 50, "iou_loss_type": "", "iou_loss_weight": 1},
        },
        "nms_configs": {
            **{"method": "gaussian", "iou_thresh": None, "score_thresh": 0, "sigma": None},
            **{"max_nms_inputs": 5000, "max_output_size": 100, "pixel_offset": 0},
            **{"class_agnostic": False, "clip_boxes": True},
        },
        "train": {"num_epochs": 300},
    }
    nvidia = {
        "model": {"raw_fusion_weights": True, "survival_prob": None, "double_normalize": True},
        "data": {"num_classes": 91, "class_ids": "category_id"},
        "optim": {"lr_batch_size": 0, "momentum": 0.9},
        "loss": {"loss_normalizer": "rank"},
        "nms_configs": {"pixel_offset": 1, "clip_boxes": False},
        "train": {"num_examples_per_epoch": 120000, "training_mode": "traineval"},
    }
    ours = base_config("efficientdet-d1")
    for config, expected in ((ours, published), (with_preset(ours, "nvidia"), nvidia)):
        values = to_dict(config)
        for section, wanted in expected.items():
            assert {name: values[section][name] for name in wanted} == wanted


def test_unknown_name_names_the_nearest():
    with pytest.raises(ConfigError, match="did you mean 'efficientdet-lite3x'"):
        model_config("efficientdet-lite3-x")


@pytest.mark.parametrize(
    ("section", "name", "value"),
    [
        (model_config("efficientdet-d0"), "fpn_weight_method", "fastatn"),
        (model_config("efficientdet-d0"), "fpn_name", "pan"),
        (model_config("efficientdet-d0"), "min_level", 2),
        (model_config("efficientdet-d0"), "max_level", 4),
        (model_config("efficientdet-d0"), "num_scales", 0),
        (model_config("efficientdet-d0"), "num_scales", 10**9),
        (DataConfig(), "num_classes", 0),
        (DataConfig(), "num_classes", 10**9),
        (model_config("efficientdet-d0"), "fpn_cell_repeats", 0),
        (model_config("efficientdet-d0"), "fpn_cell_repeats", 10**9),
        (model_config("efficientdet-d0"), "aspect_ratios", ((1.0, 0.0),)),
        (model_config("efficientdet-d0"), "stddev_rgb", (1.0, 0.0, 1.0)),
        (model_config("efficientdet-d0"), "survival_prob", 1.5),
        (LossConfig(), "iou_loss_type", "siou"),
        (LossConfig(), "delta", -0.1),
        (NmsConfig(), "sigma", 0.0),
        (NmsConfig(), "max_output_size", 0),
    ],
)
def test_impossible_values_are_refused(section, name, value):
    with pytest.raises(ConfigError, match=name):
        dataclasses.replace(section, **{name: value})


@pytest.mark.parametrize(("name", "batch_size", "least"), [("mosaic", 3, 4), ("mixup", 1, 2)])
def test_images_are_mixed_within_batches_that_are_large_enough(name, batch_size, least):
    config = override(base_config("efficientdet-d0"), {name: 0.5}, source="test")
    validate(override(config, {"batch_size": least}, source="test"))
    with pytest.raises(ConfigError, match=f"{name}=0.5 .*batch_size={batch_size}: raise it to"):
        validate(override(config, {"batch_size": batch_size}, source="test"))


@pytest.mark.parametrize(
    ("model", "size", "fitting"),
    [
        ("efficientdet-d0", (500, 512), "500 is .* stride 128 .max_level=7.: use 384 or 512"),
        ("efficientdet-d0", (512, 64), "64 is .*: use 128 or 256"),
        ("efficientdet-d7x", (1536, 1600), "1600 is .* stride 256 .max_level=8.: use 1536 or 1792"),
        ("efficientdet-lite0", (320, 384), "320 is .*: use 256 or 384"),
        ("efficientdet-lite0", (320, 320), ""),  # as published
        ("efficientdet-d0", (640, 384), ""),
    ],
)
def test_sizes_are_those_that_the_levels_divide(model, size, fitting):
    config = override(base_config(model), {"model.image_size": size}, source="test")
    if not fitting:
        validate(config)
        return
    with pytest.raises(ConfigError, match=f"image_size={fitting}"):
        validate(config)


def test_config_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        model_config("efficientdet-d0").name = "other"
    assert dataclasses.is_dataclass(ModelConfig)


def test_one_number_is_an_aspect_ratio_at_area_one():
    values = parse_hparams("aspect_ratios=1.0*2.0*0.5")
    config = override(base_config("efficientdet-d0"), values, source="hparams")
    expected = [(1.0, 1.0), (2**0.5, 0.5**0.5), (0.5**0.5, 2**0.5)]
    assert [pytest.approx(pair) for pair in config.model.aspect_ratios] == expected
