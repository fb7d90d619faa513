"""The whole configuration of a Mask R-CNN run: shared settings, sampling, losses, test.

Presets are here too; rules between settings are in `validation`, the arguments of NVIDIA's
TensorFlow 2 program in `nvidia.tf2`. TensorFlow is not imported. The learning rate is per image
of the global batch, 0.00125, whatever the number of ranks.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from detector import finetune
from engine.config.fields import ConfigError, Section, look_up, override, setting
from engine.config.settings import DataConfig, EvalConfig, OptimConfig, RuntimeConfig, TrainConfig
from maskrcnn.config import (
    IMAGENET_MEAN_RGB,
    IMAGENET_STDDEV_RGB,
    MSRA_MEAN_RGB,
    ModelConfig,
    model_config,
)

LEARNING_RATE_PER_IMAGE = 0.00125


@dataclasses.dataclass(frozen=True)
class RpnConfig(Section):
    """What the RPN is trained on and which proposals it makes; names of the TF2 reference."""

    rpn_positive_overlap: float = 0.7  # IoU from which an anchor is positive
    rpn_negative_overlap: float = 0.3  # IoU below which it is negative
    rpn_batch_size_per_im: int = setting(256, "Anchors sampled per image.", flag=None, least=1)
    rpn_fg_fraction: float = setting(0.5, "Most positives among them.", flag=None, least=0, most=1)
    rpn_straddle_thresh: float = -1.0  # pixels an anchor may reach out of the image; < 0: any
    rpn_min_size: float = setting(0.0, "Of a proposal's sides, pixels.", flag=None, least=0)
    train_rpn_pre_nms_topn: int = setting(2000, "Per level.", flag=None, least=1)
    train_rpn_post_nms_topn: int = setting(1000, "Per image, over all levels.", flag=None, least=1)
    train_rpn_level_topn: int = setting(
        0, "Per image and level, after suppression; 0: as many as per image.", flag=None, least=0
    )
    train_rpn_nms_threshold: float = setting(
        0.7, "IoU above which the lower proposal goes, in training.", flag=None, least=0, most=1
    )
    test_rpn_pre_nms_topn: int = setting(1000, "Per level, in evaluation.", flag=None, least=1)
    test_rpn_post_nms_topn: int = setting(1000, "Per image, in evaluation.", flag=None, least=1)
    test_rpn_level_topn: int = setting(
        0, "Per image and level, in evaluation; 0: likewise.", flag=None, least=0
    )
    test_rpn_nms_thresh: float = setting(0.7, "And in evaluation.", flag=None, least=0, most=1)


@dataclasses.dataclass(frozen=True)
class RoiConfig(Section):
    """Which proposals the heads are trained on; names of the TF2 reference."""

    batch_size_per_im: int = setting(512, "RoIs sampled per image.", flag=None, least=1)
    fg_fraction: float = setting(
        0.25,
        "Most positives among them; that many go through the mask head.",
        flag=None,
        least=0,
        most=1,
    )
    fg_thresh: float = 0.5  # IoU from which a RoI is positive
    bg_thresh_hi: float = 0.5  # IoU below which a RoI is background
    bg_thresh_lo: float = 0.0  # and from which
    bbox_reg_weights: tuple[float, float, float, float] = setting(
        (10.0, 10.0, 5.0, 5.0), "Factors of encoded (y, x, h, w).", flag=None, above=0
    )
    # RoIs that go through the mask head: all that may be positive; or needed: a quarter, half or
    # all of them, whatever holds the batch's positives. auto: needed, but all on an accelerator.
    mask_rois: str = setting(
        "auto", "Those that go through the mask head.", flag=None, choices=("auto", "all", "needed")
    )


@dataclasses.dataclass(frozen=True)
class LossConfig(Section):
    """Five losses, each a mean, weighted and added."""

    rpn_box_loss_weight: float = setting(1.0, "Of the RPN.", flag=None, least=0)
    fast_rcnn_box_loss_weight: float = setting(1.0, "Of the box head.", flag=None, least=0)
    mrcnn_weight_loss_mask: float = setting(1.0, "Of the mask head.", flag=None, least=0)
    rpn_box_beta: float = setting(
        1.0 / 9.0, "Where smooth L1 turns linear, in encoded units.", flag=None, above=0
    )
    box_beta: float = setting(1.0, "And that of the box head.", flag=None, above=0)
    # fixed: by the number of samples asked for; batch: by those drawn in a rank's batch; levels,
    # positives, image: see `losses`.
    rpn_score_normalizer: str = setting(
        "fixed",
        "What the score loss of the RPN is divided by.",
        flag=None,
        choices=("fixed", "batch"),
    )
    rpn_box_normalizer: str = setting(
        "fixed", "What its box loss is divided by.", flag=None, choices=("fixed", "batch", "levels")
    )
    class_normalizer: str = setting(
        "fixed", "What the class loss is divided by.", flag=None, choices=("fixed", "batch")
    )
    box_normalizer: str = setting(
        "fixed",
        "What the box loss is divided by.",
        flag=None,
        choices=("fixed", "batch", "positives"),
    )
    mask_normalizer: str = setting(
        "image", "What the mask loss is divided by.", flag=None, choices=("image", "batch")
    )


@dataclasses.dataclass(frozen=True)
class DetectionConfig(Section):
    """Mask R-CNN: what is kept of an image's detections."""

    test_score_thresh: float = setting(0.05, "Least class probability.", flag=None, least=0, most=1)
    test_nms: float = setting(
        0.5, "IoU above which the lower box of a class is suppressed.", flag=None, least=0, most=1
    )
    test_detections_per_image: int = setting(100, "Most detections kept.", flag=None, least=1)
    mask_threshold: float = setting(
        0.5, "Probability from which a pixel belongs to the object.", flag=None, least=0, most=1
    )
    mask_paste_convention: str = setting(
        "continuous", "Continuous or detectron.", flag=None, choices=("continuous", "detectron")
    )
    target_mask_ap: float = setting(
        0.0, "With target_ap: stop when mask AP reaches this as well; 0: off.", least=0, most=1
    )


@dataclasses.dataclass(frozen=True)
class SolverConfig(Section):
    """Rules of the optimizer by kind of variable, beside the shared settings."""

    bias_lr_factor: float = setting(
        1.0, "Of the learning rate of biases; 2: the PyTorch reference.", flag=None, least=0
    )
    decay_norm_scale: bool = False  # weight decay on the scale of trained norms as well


def _optim() -> OptimConfig:
    """The 12-epoch recipe that both references share, per image (arXiv 1706.02677, 2.1)."""
    return OptimConfig(
        momentum_follows_rate=True,
        learning_rate=LEARNING_RATE_PER_IMAGE,
        lr_batch_size=1,
        lr_warmup_init=0.0,
        lr_warmup_epoch=0.3,
        lr_decay_method="stepwise",
        lr_step_epochs=(8.0, 10.0),
        clip_gradients_norm=0.0,
        weight_decay=1e-4,
        moving_average_decay=None,
    )


@dataclasses.dataclass(frozen=True)
class MaskRcnnConfig:
    """Everything that a run of this family is told."""

    model: ModelConfig = dataclasses.field(default_factory=lambda: model_config("maskrcnn-r50-fpn"))
    data: DataConfig = dataclasses.field(
        default_factory=lambda: DataConfig(jitter_min=1.0, jitter_max=1.0)
    )
    rpn: RpnConfig = dataclasses.field(default_factory=RpnConfig)
    roi: RoiConfig = dataclasses.field(default_factory=RoiConfig)
    loss: LossConfig = dataclasses.field(default_factory=LossConfig)
    test: DetectionConfig = dataclasses.field(default_factory=DetectionConfig)
    optim: OptimConfig = dataclasses.field(default_factory=_optim)
    solver: SolverConfig = dataclasses.field(default_factory=SolverConfig)
    train: TrainConfig = dataclasses.field(
        default_factory=lambda: TrainConfig(batch_size=4, num_epochs=12, checkpoint_period=1)
    )
    eval: EvalConfig = dataclasses.field(default_factory=lambda: EvalConfig(eval_batch_size=8))
    runtime: RuntimeConfig = dataclasses.field(default_factory=RuntimeConfig)


# The sections whose change makes a resumed run another run.
COMPARED_SECTIONS = ("model", "rpn", "roi", "loss", "optim", "solver")

PRESETS: dict[str, dict[str, Any]] = {
    "": {},
    "nvidia_tf2": {
        "model.image_size": (832, 1344),
        "model.canvases": ((832, 1344),),
        "model.padding": "same",
        "model.stride_in": "3x3",
        "model.mean_rgb": IMAGENET_MEAN_RGB,
        "model.stddev_rgb": IMAGENET_STDDEV_RGB,
        "model.aspect_ratios": ((1.0, 1.0), (1.4, 0.7), (0.7, 1.4)),
        "model.coding_offset": 1.0,
        "model.roi_sampling_ratio": 1,
        "model.roi_align_convention": "crop",
        "model.roi_max_level": 6,
        "data.num_classes": 90,
        "data.class_ids": "category_id",
        "loss.rpn_box_normalizer": "levels",
        "loss.box_normalizer": "positives",
        "loss.mask_normalizer": "batch",
        "optim.momentum_follows_rate": False,
        "test.test_score_thresh": 0.0,
        "test.mask_paste_convention": "detectron",
    },
    "nvidia_pytorch": {
        "model.image_size": (800, 1333),
        "model.padding": "symmetric",
        "model.mean_rgb": MSRA_MEAN_RGB,
        "model.stddev_rgb": (1.0, 1.0, 1.0),
        "model.anchor_convention": "detectron",
        "model.coding_offset": 1.0,
        "model.iou_offset": 1.0,
        "model.roi_align_convention": "legacy",
        "rpn.rpn_straddle_thresh": 0.0,
        "loss.rpn_score_normalizer": "batch",
        "loss.rpn_box_normalizer": "batch",
        "loss.class_normalizer": "batch",
        "loss.box_normalizer": "batch",
        "loss.mask_normalizer": "batch",
        "optim.lr_warmup_epoch": 0.0683,  # 500 of 7329 steps at 16 images per step
        "test.mask_paste_convention": "detectron",
        "solver.bias_lr_factor": 2.0,
        "solver.decay_norm_scale": True,
    },
}


def with_preset(config: MaskRcnnConfig, name: str) -> MaskRcnnConfig:
    """Applies a preset.

    Args:
      config: its model decides where the stride is in the PyTorch reference: in the 1x1 convolution
        of its ResNets, in the 3x3 of ResNeXt and of networks with group norm.
      name: '', `nvidia_tf2` or `nvidia_pytorch`.

    Raises:
      ConfigError: unknown name, with the nearest; or a model that the reference does not have.
    """
    overrides = dict(look_up(name, PRESETS, what="preset"))
    model = model_config(config.model.name)
    if name == "nvidia_tf2" and (
        (model.body, model.backbone_name, model.norm) != ("fpn", "resnet50", "frozen_bn")
    ):
        raise ConfigError(
            f"preset=nvidia_tf2 is a ResNet-50 with FPN, model_name={model.name} is not: choose "
            "maskrcnn-r50-fpn or fasterrcnn-r50-fpn, or leave the preset out"
        )
    if name == "nvidia_pytorch":
        is_msra = model.norm != "group_norm" and not model.backbone_name.startswith("resnext")
        overrides["model.stride_in"] = "1x1" if is_msra else "3x3"
        overrides["model.roi_sampling_ratio"] = 2 if model.body == "fpn" else 0
    return override(config, overrides, source="preset")


def anchor_sides(model: ModelConfig) -> tuple[Any, Any, tuple[str, tuple[float, ...]]]:
    """Returns what anchors of aspect 1 are like: strides, sides of each level, setting of all."""
    sizes = model.anchor_sizes
    sides = [[size] for size in sizes] if model.body == "fpn" else [list(sizes)]
    return model.anchor_strides, sides, ("anchor_sizes", sizes)


def finetune_settings(config: MaskRcnnConfig, *, num_images: int, num_ranks: int) -> dict[str, Any]:
    """Returns the overrides of `--recipe=finetune`; see `detector.finetune`.

    Of large sets only the stem stays frozen, of others what the model says.

    Raises:
      ConfigError: the run starts from no weights.
    """
    freeze_at = config.model.freeze_at
    return {
        **finetune.shared_settings(
            config, num_images=num_images, num_ranks=num_ranks, base_rate=0.001
        ),
        "model.freeze_at": freeze_at if num_images < finetune.MIDDLE_SET else min(freeze_at, 1),
        "optim.clip_gradients_norm": 10.0,
        "solver.bias_lr_factor": 1.0,
    }


def base_config(model_name: str) -> MaskRcnnConfig:
    """Returns the defaults with the row of `model_name`.

    Raises:
      ConfigError: unknown name, with the nearest.
    """
    model = model_config(model_name)
    rpn = RpnConfig()
    if model.body != "fpn":  # one map with many anchors: Detectron's numbers
        rpn = RpnConfig(
            train_rpn_pre_nms_topn=12000, train_rpn_post_nms_topn=2000, test_rpn_pre_nms_topn=6000
        )
    return MaskRcnnConfig(model=model, rpn=rpn)
