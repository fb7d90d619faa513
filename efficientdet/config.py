"""Configuration of EfficientDet: the model section and the table of published sizes.

Field names are the hyperparameter keys of the reference and of google/automl, so that
`--hparams=key=value` addresses them directly. What surprises a newcomer: `survival_prob` is the
stochastic depth of the backbone only; the residual heads of google/automl have a key of their own,
`head_survival_prob`, because they change the function that the network computes.
"""

from __future__ import annotations

import dataclasses
from dataclasses import MISSING
from typing import Optional

from engine.config.fields import ConfigError, Section, look_up, setting

IMAGENET_MEAN_RGB = (0.485 * 255, 0.456 * 255, 0.406 * 255)
IMAGENET_STDDEV_RGB = (0.229 * 255, 0.224 * 255, 0.225 * 255)

FUSION_METHODS = ("fastattn", "sum", "attn", "channel_attn", "channel_fastattn")
FPN_NAMES = ("bifpn", "bifpn_dyn", "qufpn")


@dataclasses.dataclass(frozen=True)
class ModelConfig(Section):
    """EfficientDet: shape of one network, and nothing about data, losses or training."""

    name: str
    backbone_name: str
    image_size: tuple[int, int] = setting(
        MISSING, "EfficientDet's network input, pixels: 512 or WIDTHxHEIGHT; unset: the model's."
    )  # (height, width)
    fpn_num_filters: int = setting(
        MISSING, "Channels of every pyramid level.", flag=None, least=1, most=10_000
    )
    fpn_cell_repeats: int = setting(MISSING, "Cells in a row.", flag=None, least=1, most=100)
    box_class_repeats: int = setting(
        MISSING, "Convolutions in each head before the predictor.", flag=None, least=0, most=100
    )
    min_level: int = setting(3, "Finest level of the pyramid.", flag=None, least=3, most=5)
    max_level: int = setting(7, "Coarsest.", flag=None, least=5, most=10)
    num_scales: int = setting(3, "Anchor octaves per level.", flag=None, least=1, most=20)
    aspect_ratios: tuple[tuple[float, float], ...] = setting(
        ((1.0, 1.0), (1.4, 0.7), (0.7, 1.4)), "(w, h) of anchors.", flag=None, above=0
    )
    anchor_scale: float = setting(
        4.0, "Anchor side in strides, before octave and aspect.", flag=None, least=0.01
    )
    fpn_name: str = setting("bifpn", "Connections of a BiFPN cell.", flag=None, choices=FPN_NAMES)
    fpn_weight_method: str = setting(
        "fastattn", "How a node's inputs are weighted.", flag=None, choices=FUSION_METHODS
    )
    raw_fusion_weights: bool = False  # True: no ReLU on the edge weights, as in the reference
    act_type: str = "swish"
    separable_conv: bool = True
    apply_bn_for_resampling: bool = True
    conv_after_downsample: bool = False  # True: project channels after pooling, not before
    conv_bn_act_pattern: bool = False  # True: conv, BN, activation in a BiFPN node
    survival_prob: Optional[float] = setting(
        None, "Stochastic depth of the backbone; none or 1: off.", flag=None, least=0, most=1
    )
    head_survival_prob: Optional[float] = setting(
        None, "Residual heads with stochastic depth; none: plain.", flag=None, least=0, most=1
    )
    is_training_bn: bool = True  # False: batch normalisation is frozen, statistics and affine
    bn_momentum: float = setting(0.99, "Of moving statistics.", flag=None, least=0, below=1)
    bn_epsilon: float = setting(1e-3, "Added to the variance.", flag=None, above=0)
    mean_rgb: tuple[float, float, float] = IMAGENET_MEAN_RGB  # of uint8 pixel values
    stddev_rgb: tuple[float, float, float] = setting(
        IMAGENET_STDDEV_RGB,
        "Divides pixel values less their mean.",
        flag=None,
        above=0,
    )
    resampling: str = setting(
        "",
        "How images are resized; '': by the weights, else antialiased.",
        flag=None,
        choices=("", "antialiased", "bilinear", "bilinear_legacy"),
    )
    backbone_padding: str = setting(
        "",
        "Of the backbone's strided convolutions; '': by the weights, else same.",
        flag=None,
        choices=("", "same", "symmetric"),
    )
    double_normalize: bool = False  # True: normalise again inside the backbone (reference)

    def __post_init__(self) -> None:
        """Rejects values that could only fail later, inside the model."""
        super().__post_init__()
        if not self.aspect_ratios:
            raise ConfigError("aspect_ratios: expected at least one pair (w, h)")
        if self.min_level == self.max_level:
            raise ConfigError(f"min_level=max_level={self.max_level}: expected two levels or more")

    @property
    def num_anchors_per_cell(self) -> int:
        """Anchors at one position of one level."""
        return self.num_scales * len(self.aspect_ratios)


# Name: backbone, side of the square input, width of the pyramid, its cells, convolutions of each
# head; what else differs from the defaults. Table 1 of the paper (arXiv 1911.09070), and the Lite
# table of google/automl, whose scales are chosen for int8.
_SUMS = {"fpn_weight_method": "sum"}
_LITE = {
    **_SUMS,
    "act_type": "relu6",
    "mean_rgb": (127.0, 127.0, 127.0),
    "stddev_rgb": (128.0, 128.0, 128.0),
}
_SMALL_ANCHORS = {"anchor_scale": 3.0}
_ROWS = {
    "d0": ("b0", 512, 64, 3, 3, {}),
    "d1": ("b1", 640, 88, 4, 3, {}),
    "d2": ("b2", 768, 112, 5, 3, {}),
    "d3": ("b3", 896, 160, 6, 4, {}),
    "d4": ("b4", 1024, 224, 7, 4, {}),
    "d5": ("b5", 1280, 288, 7, 4, {}),
    "d6": ("b6", 1280, 384, 8, 5, _SUMS),
    "d7": ("b6", 1536, 384, 8, 5, {**_SUMS, "anchor_scale": 5.0}),
    "d7x": ("b7", 1536, 384, 8, 5, {**_SUMS, "max_level": 8}),
    "lite0": ("lite0", 320, 64, 3, 3, {**_LITE, **_SMALL_ANCHORS}),
    "lite1": ("lite1", 384, 88, 4, 3, {**_LITE, **_SMALL_ANCHORS}),
    "lite2": ("lite2", 448, 112, 5, 3, {**_LITE, **_SMALL_ANCHORS}),
    "lite3": ("lite3", 512, 160, 6, 4, _LITE),
    "lite3x": ("lite3", 640, 200, 6, 4, {**_LITE, **_SMALL_ANCHORS}),
    "lite4": ("lite4", 640, 224, 7, 4, _LITE),
}

MODEL_TABLE: dict[str, ModelConfig] = {
    f"efficientdet-{name}": ModelConfig(
        name=f"efficientdet-{name}",
        backbone_name=f"efficientnet-{backbone}",
        image_size=(side, side),
        fpn_num_filters=width,
        fpn_cell_repeats=cells,
        box_class_repeats=repeats,
        survival_prob=None if backbone in ("b0", "lite0") else 0.8,
        **differences,
    )
    for name, (backbone, side, width, cells, repeats, differences) in _ROWS.items()
}


def model_config(name: str) -> ModelConfig:
    """Looks a model up by its published name, for example `efficientdet-lite3x`.

    Raises:
      ConfigError: the name is not in the table; the message names the nearest one.
    """
    return look_up(name, MODEL_TABLE, what="model_name")
