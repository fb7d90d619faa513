"""Defaults, presets, rules between settings, and the arguments of the TensorFlow 2 program."""

import dataclasses
import json

import pytest

from engine.config.fields import ConfigError, from_dict, override, settings, to_dict
from engine.optim.plan import check_settings, make_plan
from maskrcnn.config import MODEL_TABLE
from maskrcnn.nvidia.tf2 import Tf2Arguments, tf2_overrides
from maskrcnn.settings import PRESETS, MaskRcnnConfig, base_config, with_preset
from maskrcnn.validation import validate


def changed(model_name="maskrcnn-r50-fpn", **values):
    """Overrides `section__field=value`."""
    values = {name.replace("__", "."): value for name, value in values.items()}
    return override(base_config(model_name), values, source="test")


def preset(name, model_name="maskrcnn-r50-fpn"):
    return with_preset(base_config(model_name), name)


@pytest.mark.parametrize("model_name", MODEL_TABLE)
def test_every_model_is_valid_and_survives_json(model_name):
    config = base_config(model_name)
    validate(config)
    check_settings(config.train, config.data, config.eval)
    stored = json.loads(json.dumps(to_dict(config)))
    assert from_dict(MaskRcnnConfig, stored) == config


def test_no_two_settings_share_a_name():
    known = settings(MaskRcnnConfig)
    assert known["batch_size_per_im"] == ("roi", "batch_size_per_im")
    assert known["batch_size"] == ("train", "batch_size")


@pytest.mark.parametrize(
    ("ranks", "batch_size", "accumulation", "rate"),
    [(1, 4, 1, 0.005), (8, 2, 1, 0.02), (8, 4, 1, 0.04), (8, 12, 1, 0.12), (8, 2, 4, 0.08)],
)
def test_learning_rate_is_that_of_every_documented_recipe(ranks, batch_size, accumulation, rate):
    config = changed(train__batch_size=batch_size, optim__gradient_accumulation=accumulation)
    plan = make_plan(config.train, config.optim, num_examples=118287, num_ranks=ranks)
    assert plan.learning_rate == pytest.approx(rate)
    assert plan.warmup_steps == int(0.3 * plan.steps_per_epoch)
    assert plan.stop_epoch == 12


def test_defaults_are_the_published_ones():
    """Of Detectron, in the names of NVIDIA's TensorFlow 2 program."""
    published = {
        "rpn": {
            **{"rpn_positive_overlap": 0.7, "rpn_negative_overlap": 0.3, "rpn_fg_fraction": 0.5},
            **{"rpn_batch_size_per_im": 256, "rpn_min_size": 0, "rpn_straddle_thresh": -1},
            **{"train_rpn_pre_nms_topn": 2000, "train_rpn_post_nms_topn": 1000},
            **{"test_rpn_pre_nms_topn": 1000, "test_rpn_post_nms_topn": 1000},
            **{"train_rpn_nms_threshold": 0.7, "test_rpn_nms_thresh": 0.7},
            **{"train_rpn_level_topn": 0, "test_rpn_level_topn": 0},
        },
        "roi": {
            **{"batch_size_per_im": 512, "fg_fraction": 0.25, "bbox_reg_weights": [10, 10, 5, 5]},
            **{"fg_thresh": 0.5, "bg_thresh_hi": 0.5, "bg_thresh_lo": 0},
        },
        "loss": {
            **{"rpn_box_loss_weight": 1, "fast_rcnn_box_loss_weight": 1},
            **{"mrcnn_weight_loss_mask": 1, "rpn_box_beta": 1 / 9, "box_beta": 1},
        },
        "test": {
            **{"test_score_thresh": 0.05, "test_nms": 0.5, "test_detections_per_image": 100},
            **{"mask_threshold": 0.5, "target_mask_ap": 0},
        },
        "optim": {
            **{"momentum": 0.9, "weight_decay": 1e-4, "lr_warmup_init": 0, "lr_step_factor": 0.1},
            **{"lr_step_epochs": [8, 10], "clip_gradients_norm": 0, "moving_average_decay": None},
            **{"momentum_follows_rate": True},
        },
        "data": {"jitter_min": 1, "jitter_max": 1},
        "solver": {"bias_lr_factor": 1, "decay_norm_scale": False},
    }
    ours = json.loads(json.dumps(to_dict(base_config("maskrcnn-r50-fpn"))))
    for section, wanted in published.items():
        assert {name: ours[section][name] for name in wanted} == wanted


def test_one_map_gets_the_proposals_of_detectron():
    rpn = base_config("maskrcnn-r50-c4").rpn
    numbers = (rpn.train_rpn_pre_nms_topn, rpn.train_rpn_post_nms_topn, rpn.test_rpn_pre_nms_topn)
    assert numbers == (12000, 2000, 6000)
    assert base_config("maskrcnn-r50-fpn").rpn.train_rpn_pre_nms_topn == 2000


class TestPresets:
    def test_both_references_are_valid(self):
        for name in PRESETS:
            validate(preset(name))

    def test_tf2(self):
        config = preset("nvidia_tf2")
        assert config.model.canvas_sizes == ((832, 1344),)
        assert config.model.roi_levels == (2, 3, 4, 5, 6)
        assert config.test.test_score_thresh == 0.0
        assert (config.data.num_classes, config.data.class_ids) == (90, "category_id")
        assert config.solver.bias_lr_factor == 1.0
        assert not config.optim.momentum_follows_rate

    @pytest.mark.parametrize(
        ("model_name", "stride_in", "sampling"),
        [
            ("maskrcnn-r50-fpn", "1x1", 2),
            ("maskrcnn-r50-c4", "1x1", 0),
            ("maskrcnn-x101-32x8d-fpn", "3x3", 2),
            ("maskrcnn-r50-fpn-gn", "3x3", 2),
        ],
    )
    def test_pytorch(self, model_name, stride_in, sampling):
        config = preset("nvidia_pytorch", model_name)
        validate(config)
        assert (config.model.stride_in, config.model.roi_sampling_ratio) == (stride_in, sampling)
        assert config.model.canvas_sizes[0] == (800, 1344)
        assert config.model.mean_rgb == (122.7717, 115.9465, 102.9801)
        assert config.solver.bias_lr_factor == 2.0
        assert config.optim.momentum_follows_rate

    def test_unknown(self):
        with pytest.raises(ConfigError, match="did you mean 'nvidia_pytorch'"):
            preset("pytorch")

    @pytest.mark.parametrize("model_name", ["maskrcnn-r101-fpn", "maskrcnn-r50-c4", "rpn-r50-c5"])
    def test_tf2_has_one_network_only(self, model_name):
        with pytest.raises(ConfigError, match="preset=nvidia_tf2 is a ResNet-50"):
            preset("nvidia_tf2", model_name)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"data__mosaic": 0.5}, "mosaic=0.5: Mask R-CNN neither mixes.*--translate"),
        ({"data__autoaugment": "v1"}, "autoaugment=v1: Mask R-CNN neither"),
        ({"model__box_head": "res5"}, "box_head=res5.*body=fpn gives pyramid.*use box_head=mlp"),
        ({"model__body": "c5", "model__box_head": "res5"}, "ends in stage 5 already"),
        ({"model__mask_head": "res5"}, "mask_head=res5.*box_head=mlp: use mask_head=fcn"),
        ({"model__rpn_only": True}, "include_mask=false"),
        ({"model__res5_dilation": 2}, "res5_dilation=2 with body=fpn"),
        ({"model__roi_max_level": 7}, "roi_max_level=7"),
        ({"model__canvases": [[800, 1333]]}, r"canvases.*by the largest stride 32.*1312 or 1344"),
        ({"model__image_size": 16}, "image_size"),
        ({"model__anchor_sizes": [32.0, 64.0]}, "expected 5 sizes"),
        ({"model__aspect_ratios": []}, "at least one"),
        ({"model__anchor_sizes": [0.0] * 5}, r"anchor_sizes=.*: expected more than 0"),
        ({"model__anchor_sizes": [float("nan")] * 5}, "anchor_sizes: expected float, got nan"),
        ({"model__aspect_ratios": [[1.0, -1.0]]}, r"aspect_ratios=.*: expected more than 0"),
        ({"model__stddev_rgb": [1.0, 0.0, 1.0]}, r"stddev_rgb=.*: expected more than 0"),
        ({"roi__bbox_reg_weights": [0, 0, 1, 1]}, r"bbox_reg_weights=.*: expected more than 0"),
        ({"loss__box_beta": 0.0}, "box_beta=0.0: expected more than 0"),
        ({"loss__mrcnn_weight_loss_mask": -1.0}, "mrcnn_weight_loss_mask=-1.0: expected at least"),
        ({"rpn__rpn_negative_overlap": 0.8}, "rpn_negative_overlap <= rpn_positive_overlap"),
        ({"roi__fg_thresh": 0.4}, "bg_thresh_hi <= fg_thresh"),
        ({"roi__fg_fraction": 1.5}, "fg_fraction=1.5"),
        ({"roi__fg_fraction": 0.001}, "leaves no RoI for the mask head"),
        ({"roi__batch_size_per_im": 0}, "batch_size_per_im=0"),
        ({"test__test_nms": -0.1}, "test_nms=-0.1"),
        ({"data__class_ids": "raw"}, "class_ids='raw'"),
        ({"eval__eval_batch_size": 0}, "eval_batch_size=0"),
    ],
)
def test_rules_between_settings(values, message):
    with pytest.raises(ConfigError, match=message):
        validate(changed(**values))


def test_an_unknown_key_names_the_nearest():
    with pytest.raises(ConfigError, match="unknown key 'fg_fractions'; did you mean 'fg_fraction'"):
        override(base_config("maskrcnn-r50-fpn"), {"fg_fractions": 0.5}, source="test")


class TestTf2Arguments:
    def apply(self, given):
        overrides = tf2_overrides(given, global_batch_size=32)
        return override(base_config("maskrcnn-r50-fpn"), overrides, source="arguments")

    def test_its_defaults_are_our_schedule(self):
        ours, defaults = base_config("maskrcnn-r50-fpn"), Tf2Arguments()
        names = (
            *("train_batch_size", "epochs", "learning_rate_values", "learning_rate_boundaries"),
            *("init_learning_rate", "l2_weight_decay"),
        )
        config = self.apply({name: getattr(defaults, name) for name in names})
        assert config.train == ours.train
        assert dataclasses.replace(config.optim, lr_step_factor=0.1) == ours.optim
        assert config.optim.lr_step_factor == pytest.approx(0.1)

    def test_schedules_we_do_not_have(self):
        for values in ((0.01, 0.001, 0.0005), (0.0, 0.0), (0.01, 0.0, 0.0)):
            with pytest.raises(ConfigError, match="constant factor"):
                self.apply({"learning_rate_values": values})
        with pytest.raises(ConfigError, match="equally many"):
            self.apply(
                {"learning_rate_values": (0.01, 0.001), "learning_rate_boundaries": (1.0, 2.0, 3.0)}
            )
