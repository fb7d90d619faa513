"""The table of models, derived numbers, and the conventions that weights demand."""

import dataclasses

import pytest

from maskrcnn import config as config_lib
from maskrcnn.config import (
    MODEL_TABLE,
    Conventions,
    ModelConfig,
    conventions_of,
    derived_canvases,
    model_config,
    with_conventions,
    with_our_conventions,
)

MSRA = Conventions("symmetric", "1x1", (122.7717, 115.9465, 102.9801), (1.0, 1.0, 1.0))
NAMED = (
    *("r50-fpn", "r101-fpn", "r50-c4", "r50-c5", "r101-c4", "r101-c5", "x101-32x8d-fpn"),
    *("r50-fpn-gn", "r101-fpn-gn", "r50-fpn-4conv1fc-gn", "r101-fpn-4conv1fc-gn", "r50-fpn-v2"),
    *("r50-fpn-matterport", "r101-fpn-matterport"),
)


def test_table_holds_each_network_with_masks_with_boxes_and_as_rpn():
    assert set(MODEL_TABLE) == {
        f"{family}-{name}" for family in ("maskrcnn", "fasterrcnn", "rpn") for name in NAMED
    }
    for name, config in MODEL_TABLE.items():
        assert config.name == name
        assert config.include_mask == name.startswith("maskrcnn")
        assert config.rpn_only == name.startswith("rpn")


@pytest.mark.parametrize(
    ("name", "strides", "anchors", "mask_size", "divisor"),
    [
        ("maskrcnn-r50-fpn", (4, 8, 16, 32, 64), 3, 28, 32),
        ("maskrcnn-r50-c4", (16,), 15, 14, 16),
        ("maskrcnn-r101-c5", (32,), 15, 28, 32),
    ],
)
def test_numbers_of_the_bodies(name, strides, anchors, mask_size, divisor):
    config = model_config(name)
    assert config.anchor_strides == strides
    assert [2**level for level in config.map_levels] == list(strides)
    assert config.num_anchors_per_cell == anchors
    assert config.mask_size == mask_size
    assert config.size_divisor == divisor


def test_levels_of_roi_features():
    config = model_config("maskrcnn-r50-fpn")
    assert config.roi_levels == (2, 3, 4, 5)
    assert dataclasses.replace(config, roi_max_level=6).roi_levels == (2, 3, 4, 5, 6)
    assert model_config("maskrcnn-r50-c4").roi_levels == (4,)
    assert model_config("maskrcnn-r50-c5").roi_levels == (5,)


def test_dilated_stage_five_has_stride_16():
    config = dataclasses.replace(model_config("fasterrcnn-r50-c5"), res5_dilation=2)
    assert config.anchor_strides == (16,) and config.roi_levels == (4,)
    assert config.size_divisor == 16


def test_group_norm_is_everywhere_or_nowhere():
    config = model_config("maskrcnn-r50-fpn-4conv1fc-gn")
    norms = (config.norm, config.fpn_norm, config.box_head_norm, config.mask_head_norm)
    assert norms == ("group_norm",) * 4 and config.box_head == "conv"
    config = model_config("maskrcnn-r50-fpn")
    assert (config.norm, config.fpn_norm, config.box_head_norm) == ("frozen_bn", "", "")


def test_finetune_bn_trains_the_norm_of_a_frozen_model():
    config = model_config("maskrcnn-r50-fpn")
    assert config.backbone_norm == "frozen_bn"
    assert dataclasses.replace(config, finetune_bn=True).backbone_norm == "batch_norm"
    gn = dataclasses.replace(model_config("maskrcnn-r50-fpn-gn"), finetune_bn=True)
    assert gn.backbone_norm == "group_norm"


@pytest.mark.parametrize(
    ("image_size", "expected"),
    [
        ((832, 1344), ((832, 1344), (1344, 832), (928, 928))),
        ((800, 1333), ((800, 1344), (1344, 800), (928, 928))),
        ((256, 256), ((256, 256),)),
        ((1344, 832), ((832, 1344), (1344, 832), (928, 928))),
    ],
)
def test_canvases(image_size, expected):
    assert derived_canvases(image_size, divisor=32) == expected
    config = dataclasses.replace(model_config("maskrcnn-r50-fpn"), image_size=image_size)
    assert config.canvas_sizes == expected
    fixed = dataclasses.replace(config, canvases=((64, 96),))
    assert fixed.canvas_sizes == ((64, 96),)


def test_square_canvas_saves_pixels_and_holds_square_images():
    for short in range(320, 1024, 96):
        for long in range(short, 2 * short, 160):
            landscape, *others = derived_canvases((short, long), divisor=32)
            for canvas in others[1:]:
                assert canvas[0] == canvas[1] >= landscape[0]
                assert canvas[0] * canvas[1] < landscape[0] * landscape[1]


class TestConventions:
    def test_a_detector_also_decides_anchors_and_box_coding(self):
        detector = Conventions(*MSRA[:4], "detectron", 1.0, 1.0, "legacy", "antialiased")
        filled = with_conventions(model_config("maskrcnn-r50-fpn"), detector, source="model.pkl")
        assert conventions_of(filled) == detector
        assert with_our_conventions(filled) == filled
        # Weights that demand nothing of the kind leave them as they are.
        assert with_conventions(filled, MSRA, source="R-50.pkl") == filled

    def test_zero_is_a_choice(self):
        config = dataclasses.replace(model_config("maskrcnn-r50-fpn"), coding_offset=0.0)
        detector = Conventions(*MSRA[:4], "detectron", 1.0, 1.0, "legacy", "antialiased")
        with pytest.raises(ValueError, match=r"model\.coding_offset=0\.0.*model\.pkl.*1\.0"):
            with_conventions(config, detector, source="model.pkl")

    def test_equal_values_pass(self):
        config = dataclasses.replace(
            model_config("maskrcnn-r50-fpn"), stride_in="1x1", mean_rgb=(122.77, 115.95, 102.98)
        )
        filled = with_conventions(config, MSRA, source="R-50.pkl")
        assert filled.mean_rgb == config.mean_rgb

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"padding": "same"}, r"model\.padding='same'.*R-50\.pkl.*'symmetric'"),
            ({"mean_rgb": (123.7, 116.3, 103.5)}, r"model\.mean_rgb"),
            ({"stddev_rgb": (58.4, 57.1, 57.4)}, r"stddev_rgb.*leave model\.stddev_rgb unset"),
        ],
    )
    def test_other_values_are_refused(self, change, message):
        config = dataclasses.replace(model_config("maskrcnn-r50-fpn"), **change)
        with pytest.raises(ValueError, match=message):
            with_conventions(config, MSRA, source="R-50.pkl")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"norm": "groupnorm"}, "norm='groupnorm'.*did you mean 'group_norm'"),
        ({"freeze_at": 6}, "freeze_at=6"),
        ({"backbone_repeats": (3, 4, 6)}, "expected four numbers of at least 1"),
        ({"backbone_repeats": (1, 1, 0, 1)}, "expected four numbers of at least 1"),
        ({"mean_rgb": (1.0, 2.0)}, "mean_rgb"),
        ({"box_num_convs": 10**9}, "box_num_convs=1000000000: expected 0 to 100"),
        ({"mask_conv_dims": (8, 0)}, r"mask_conv_dims=\(8, 0\): expected at least 1"),
    ],
)
def test_impossible_values_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(model_config("maskrcnn-r50-fpn"), **change)


def test_every_text_option_is_checked():
    """A field with a list of allowed values that nobody checks would pass any word."""
    for field in dataclasses.fields(ModelConfig):
        if field.type == "str" and field.name != "name":
            with pytest.raises(ValueError, match=field.name):
                dataclasses.replace(model_config("maskrcnn-r50-fpn"), **{field.name: "nonsense"})
    assert set(config_lib.NORMS) >= set(config_lib.HEAD_NORMS) - {""}
