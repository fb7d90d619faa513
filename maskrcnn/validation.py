"""Rules between settings of a Mask R-CNN run, checked before any accelerator is touched.

What a single section can know is checked there, when it is made. TensorFlow is not imported.
"""

from __future__ import annotations

from engine.config.fields import ConfigError
from maskrcnn.config import ModelConfig
from maskrcnn.settings import MaskRcnnConfig


def validate(config: MaskRcnnConfig) -> None:
    """Checks what the engine cannot check, before any accelerator is touched.

    Raises:
      ConfigError: says what was expected, what came and what to do.
    """
    _check_parts(config.model)
    _check_canvases(config.model)
    _check_anchors(config.model)
    _check_sampling(config)
    for name in ("mosaic", "mixup", "autoaugment"):
        if value := getattr(config.data, name):
            raise ConfigError(
                f"{name}={value}: Mask R-CNN neither mixes nor turns images, as a mask is stored "
                "as an upright crop of its whole box, and its targets would show what is covered "
                "or elsewhere. Leave it out; --translate and --color_jitter work"
            )
    if config.solver.bias_lr_factor != 1.0 and config.optim.optimizer != "sgd":
        raise ConfigError(
            f"bias_lr_factor={config.solver.bias_lr_factor} acts on SGD only, but optimizer="
            f"{config.optim.optimizer}: set it to 1 or use optimizer=sgd"
        )


def _check_parts(model: ModelConfig) -> None:
    """Raises ConfigError for bodies and heads that cannot be put together."""
    if model.rpn_only:
        if model.include_mask:
            raise ConfigError("rpn_only=true has no heads: set include_mask=false as well")
        return
    if model.box_head == "res5" and model.body != "c4":
        raise ConfigError(
            f"box_head=res5 runs stage 5 on the features of stage 4, but body={model.body} "
            f"{'ends in stage 5 already' if model.body == 'c5' else 'gives pyramid features'}: "
            "use box_head=mlp, or body=c4"
        )
    if model.include_mask and model.mask_head == "res5" and model.box_head != "res5":
        raise ConfigError(
            f"mask_head=res5 takes the features of box_head=res5, but box_head={model.box_head}: "
            "use mask_head=fcn"
        )
    if model.res5_dilation not in (1, 2) or (model.res5_dilation == 2 and model.body != "c5"):
        raise ConfigError(
            f"res5_dilation={model.res5_dilation} with body={model.body}: expected 1, or 2 with "
            "body=c5"
        )


def _check_canvases(model: ModelConfig) -> None:
    divisor = model.size_divisor
    if min(model.image_size) < divisor:
        raise ConfigError(f"image_size={model.image_size}: expected at least {divisor} per side")
    for canvas in model.canvases:
        for side in canvas:
            if side % divisor or side < divisor:
                low = max(side // divisor, 1) * divisor
                raise ConfigError(
                    f"canvases: {canvas} has a side that is not divisible by the largest stride "
                    f"{divisor} of body={model.body}: use {low} or {low + divisor}"
                )


def _check_anchors(model: ModelConfig) -> None:
    levels = len(model.anchor_strides)
    if model.body == "fpn" and len(model.anchor_sizes) != levels:
        raise ConfigError(
            f"anchor_sizes={model.anchor_sizes}: expected {levels} sizes, one for each level of "
            f"body=fpn (strides {model.anchor_strides})"
        )
    if not model.anchor_sizes or not model.aspect_ratios:
        raise ConfigError("anchor_sizes and aspect_ratios: expected at least one of each")


def _check_sampling(config: MaskRcnnConfig) -> None:
    rpn, roi = config.rpn, config.roi
    for low, high, names in (
        (
            rpn.rpn_negative_overlap,
            rpn.rpn_positive_overlap,
            "rpn_negative_overlap <= rpn_positive_overlap",
        ),
        (roi.bg_thresh_lo, roi.bg_thresh_hi, "bg_thresh_lo <= bg_thresh_hi"),
        (roi.bg_thresh_hi, roi.fg_thresh, "bg_thresh_hi <= fg_thresh"),
    ):
        if not 0.0 <= low <= high <= 1.0:
            raise ConfigError(f"expected 0 <= {names} <= 1, got {low} and {high}")
    if config.model.include_mask and roi.batch_size_per_im * roi.fg_fraction < 1:
        raise ConfigError(
            f"batch_size_per_im={roi.batch_size_per_im} with fg_fraction={roi.fg_fraction} leaves "
            "no RoI for the mask head: raise one of them"
        )
