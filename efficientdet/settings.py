"""The whole configuration of an EfficientDet run: shared settings, the model's, loss's and NMS's.

Presets and cross-field rules are here too. TensorFlow is not imported.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Optional

from detector import finetune
from efficientdet.config import MODEL_TABLE, ModelConfig, model_config
from engine.config.fields import ConfigError, Section, look_up, override, setting
from engine.config.settings import DataConfig, EvalConfig, OptimConfig, RuntimeConfig, TrainConfig


@dataclasses.dataclass(frozen=True)
class LossConfig(Section):
    """Focal and Huber loss (arXiv 1708.02002, section 3; fact values of the reference)."""

    alpha: float = setting(
        0.25, "Weight of positives in the focal loss.", flag=None, least=0, most=1
    )
    gamma: float = setting(1.5, "Focusing exponent of the focal loss.", flag=None, least=0)
    label_smoothing: float = setting(
        0.0, "Share moved from the class target to the others.", flag=None, least=0, below=1
    )
    delta: float = setting(
        0.1, "Where the Huber loss turns linear, in encoded units.", flag=None, above=0
    )
    box_loss_weight: float = setting(50.0, "Factor of the box loss.", flag=None, least=0)
    iou_loss_type: str = setting(
        "",
        "iou, giou, diou or ciou; '': none.",
        flag=None,
        choices=("", "iou", "giou", "diou", "ciou"),
    )
    iou_loss_weight: float = setting(1.0, "Factor of the IoU loss.", flag=None, least=0)
    loss_normalizer: str = setting(
        "global",
        "global: by the positives of all ranks; rank: by each rank's own (the reference).",
        flag=None,
        choices=("global", "rank"),
    )


@dataclasses.dataclass(frozen=True)
class NmsConfig(Section):
    """Post-processing (soft-NMS: arXiv 1704.04503, section 3)."""

    method: str = setting(
        "gaussian",
        "gaussian, linear, hard or diou.",
        flag=None,
        choices=("gaussian", "linear", "hard", "diou"),
    )
    iou_thresh: Optional[float] = setting(
        None, "IoU above which hard and linear act; none: 0.5 and 0.3.", flag=None, least=0, most=1
    )
    score_thresh: float = setting(
        0.0, "Least score kept; 0 means 0.001.", flag=None, least=0, most=1
    )
    sigma: Optional[float] = setting(
        None, "Width of gaussian soft-NMS; none: 0.5.", flag=None, least=1e-6
    )
    max_nms_inputs: int = setting(
        5000,
        "(anchor, class) pairs that enter NMS; 0: every anchor with its best class.",
        flag=None,
        least=0,
    )
    max_output_size: int = setting(100, "Detections per image.", flag=None, least=1)
    class_agnostic: bool = setting(
        False, "Boxes of different classes suppress each other.", flag=None
    )
    pixel_offset: float = setting(
        0.0, "Added to widths and heights in NMS's IoU; 1: the reference.", flag=None, least=0
    )
    clip_boxes: bool = setting(True, "Clip detections to the image.", flag=None)

    @property
    def least_score(self) -> float:
        """The least score kept, whatever 0 stands for."""
        return self.score_thresh or 0.001


@dataclasses.dataclass(frozen=True)
class EfficientDetConfig:
    """Everything that a run of this family is told."""

    model: ModelConfig = dataclasses.field(default_factory=lambda: model_config("efficientdet-d0"))
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    loss: LossConfig = dataclasses.field(default_factory=LossConfig)
    nms_configs: NmsConfig = dataclasses.field(default_factory=NmsConfig)
    optim: OptimConfig = dataclasses.field(default_factory=OptimConfig)
    train: TrainConfig = dataclasses.field(default_factory=TrainConfig)
    eval: EvalConfig = dataclasses.field(default_factory=EvalConfig)
    runtime: RuntimeConfig = dataclasses.field(default_factory=RuntimeConfig)


# The sections whose change makes a resumed run another run.
COMPARED_SECTIONS = ("model", "loss", "optim")

PRESETS: dict[str, dict[str, Any]] = {
    "": {},
    "automl": {
        "model.resampling": "bilinear",
        "data.num_classes": 90,
        "data.class_ids": "category_id",
    },
    "nvidia": {
        "model.double_normalize": True,
        "model.resampling": "bilinear_legacy",
        "model.raw_fusion_weights": True,
        "model.survival_prob": None,
        "data.num_classes": 91,
        "data.class_ids": "category_id",
        "loss.loss_normalizer": "rank",
        "optim.lr_batch_size": 0,
        "train.num_examples_per_epoch": 120000,
        "train.training_mode": "traineval",
        "nms_configs.pixel_offset": 1.0,
        "nms_configs.clip_boxes": False,
    },
}


def with_preset(config: EfficientDetConfig, name: str) -> EfficientDetConfig:
    """Applies a preset, which all models share; ConfigError for an unknown one."""
    return override(config, look_up(name, PRESETS, what="preset"), source="preset")


def base_config(model_name: str) -> EfficientDetConfig:
    """Returns the defaults with the row of a model; ConfigError for an unknown name."""
    return EfficientDetConfig(model=model_config(model_name))


def anchor_sides(model: ModelConfig) -> tuple[Any, Any, tuple[str, tuple[float, ...]]]:
    """Returns what anchors of aspect 1 are like: strides, sides of each level, setting of all."""
    strides = [2**level for level in range(model.min_level, model.max_level + 1)]
    octaves = [2.0 ** (octave / model.num_scales) for octave in range(model.num_scales)]
    sides = [[model.anchor_scale * stride * octave for octave in octaves] for stride in strides]
    return strides, sides, ("anchor_scale", (model.anchor_scale,))


def finetune_settings(
    config: EfficientDetConfig, *, num_images: int, num_ranks: int
) -> dict[str, Any]:
    """Returns the overrides of `--recipe=finetune`; see `detector.finetune`.

    Raises:
      ConfigError: the run starts from no weights.
    """
    frozen = ""
    if num_images < finetune.MIDDLE_SET:
        frozen = "(stem|stack_[0-2])" if num_images < finetune.SMALL_SET else "(stem|stack_[0-1])"
    return {
        **finetune.shared_settings(
            config, num_images=num_images, num_ranks=num_ranks, base_rate=0.003
        ),
        "optim.var_freeze_expr": frozen,
    }


def validate(config: EfficientDetConfig) -> None:
    """Checks what the engine cannot check, before any accelerator is touched.

    Raises:
      ConfigError: says what was expected, what came and what to do.
    """
    model = config.model
    stride = 2**model.max_level
    published = MODEL_TABLE[model.name].image_size if model.name in MODEL_TABLE else None
    for side in model.image_size:
        if (side < 1 or side % stride) and model.image_size != published:
            low = max(side // stride, 1) * stride
            raise ConfigError(
                f"image_size={side} is not divisible by the largest stride {stride} "
                f"(max_level={model.max_level}): use {low} or {low + stride}"
            )
    data = config.data
    for name, least in (("mosaic", 4), ("mixup", 2)):
        if getattr(data, name) and config.train.batch_size < least:
            raise ConfigError(
                f"{name}={getattr(data, name):g} makes an image of {least} of a rank's batch, but "
                f"batch_size={config.train.batch_size}: raise it to {least}, or leave {name} out"
            )
