"""Names of other programs in ours, and the order of their anchors."""

import dataclasses

import pytest

from maskrcnn.config import model_config
from maskrcnn.weights.foreign_names import foreign_name
from maskrcnn.weights.weight_names import anchor_order


@pytest.mark.parametrize(
    ("name", "ours"),
    [
        ("fpn_inner_res5_2_sum_w", "fpn/inner5/kernel"),
        ("fpn_inner_res4_22_sum_lateral_b", "fpn/inner4/bias"),
        ("fpn_res4_22_sum_w", "fpn/layer4/kernel"),
        ("conv_rpn_w", "rpn/conv/kernel"),
        ("rpn_bbox_pred_b", "rpn/bbox_pred/bias"),
        ("_[mask]_fcn4_w", "mask_head/mask_fcn4/kernel"),
        ("conv1_gn_s", "backbone/gn1/gamma"),
        ("res5_0_branch1_gn_b", "backbone/layer4/0/downsample_gn/beta"),
        ("fc1000_w", None),
        ("conv1_b", None),
    ],
)
def test_detectron(name, ours):
    assert foreign_name("detectron", name) == ours


@pytest.mark.parametrize(
    ("name", "ours"),
    [
        ("backbone.body.stem.bn1.bias", "backbone/gn1/beta"),
        ("backbone.body.layer2.0.downsample.1.weight", "backbone/layer2/0/downsample_gn/gamma"),
        ("backbone.fpn.fpn_inner1.0.weight", "fpn/inner2/kernel"),
        ("backbone.fpn.fpn_layer4.1.bias", "fpn/layer5_gn/beta"),
        ("roi_heads.box.feature_extractor.fc6.1.weight", "box_head/fc6_gn/gamma"),
        ("roi_heads.box.feature_extractor.xconvs.3.weight", "box_head/conv2/kernel"),
        ("roi_heads.box.feature_extractor.xconvs.4.weight", "box_head/conv2_gn/gamma"),
        (
            "roi_heads.box.feature_extractor.head.layer4.0.conv1.weight",
            "box_head/layer4/0/conv1/kernel",
        ),
        ("roi_heads.mask.feature_extractor.mask_fcn2.1.bias", "mask_head/mask_fcn2_gn/beta"),
        ("roi_heads.mask.feature_extractor.head.layer4.0.conv1.weight", None),
        ("rpn.anchor_generator.cell_anchors.0", None),
    ],
)
def test_benchmark_with_group_norm(name, ours):
    assert foreign_name("benchmark", name, has_group_norm=True) == ours


def test_batch_counter_is_left_out():
    assert foreign_name("torchvision", "bn1.num_batches_tracked") is None


def test_anchors_of_one_map():
    order = anchor_order(model_config("maskrcnn-r50-c4"))
    assert order == [ratio * 5 + size for size in range(5) for ratio in range(3)]


def test_other_aspects_are_refused():
    with pytest.raises(ValueError, match="aspect_ratios"):
        anchor_order(
            dataclasses.replace(
                model_config("maskrcnn-r50-fpn"), aspect_ratios=((1.0, 1.0), (2.0, 1.0), (1.0, 4.0))
            )
        )
