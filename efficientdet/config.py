"""Configuration of EfficientDet: the model section and the table of published sizes.

Field names are the hyperparameter keys of the reference and of google/automl, so that
`--hparams=key=value` addresses them directly. What surprises a newcomer: `survival_prob` is the
stochastic depth of the backbone only; the residual heads of google/automl have a key of their own,
`head_survival_prob`, because they change the function that the network computes.
"""

from __future__ import annotations

import dataclasses
from typing import Optional

from engine.config.fields import Section, look_up, setting

IMAGENET_MEAN_RGB = (0.485 * 255, 0.456 * 255, 0.406 * 255)
IMAGENET_STDDEV_RGB = (0.229 * 255, 0.224 * 255, 0.225 * 255)

FUSION_METHODS = ("fastattn", "sum", "attn", "channel_attn", "channel_fastattn")
FPN_NAMES = ("bifpn", "bifpn_dyn", "qufpn")


@dataclasses.dataclass(frozen=True)
class ModelConfig(Section):
    """Shape of one EfficientDet, and nothing about data, losses or training."""

    name: str
    backbone_name: str
    image_size: tuple[int, int]  # (height, width), network pixels
    fpn_num_filters: int  # channels of every pyramid level
    fpn_cell_repeats: int
    box_class_repeats: int  # convolutions in each head before the predictor
    min_level: int = 3
    max_level: int = 7
    num_scales: int = 3  # anchor octaves per level
    aspect_ratios: tuple[tuple[float, float], ...] = ((1.0, 1.0), (1.4, 0.7), (0.7, 1.4))  # (w, h)
    anchor_scale: float = 4.0  # anchor side in strides, before octave and aspect
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
    bn_momentum: float = 0.99
    bn_epsilon: float = 1e-3
    mean_rgb: tuple[float, float, float] = IMAGENET_MEAN_RGB  # of uint8 pixel values
    stddev_rgb: tuple[float, float, float] = IMAGENET_STDDEV_RGB
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
        if not 3 <= self.min_level <= 5 or self.max_level <= self.min_level:
            raise ValueError(
                "Expected 3 <= min_level <= 5 and max_level > min_level, "
                f"got min_level={self.min_level} and max_level={self.max_level}."
            )
        if self.max_level < 5:
            raise ValueError(f"Expected max_level >= 5, got {self.max_level}.")

    @property
    def num_anchors_per_cell(self) -> int:
        """Anchors at one position of one level."""
        return self.num_scales * len(self.aspect_ratios)


def _standard(  # one row of table 1 of the paper (arXiv 1911.09070)
    name: str,
    backbone: str,
    *,
    size: int,
    width: int,
    cells: int,
    repeats: int,
    **overrides: object,
) -> ModelConfig:
    survival_prob = None if backbone == "efficientnet-b0" else 0.8
    return ModelConfig(
        **{
            "name": f"efficientdet-{name}",
            "backbone_name": backbone,
            "image_size": (size, size),
            "fpn_num_filters": width,
            "fpn_cell_repeats": cells,
            "box_class_repeats": repeats,
            "survival_prob": survival_prob,
            **overrides,
        }
    )


def _lite(  # one row of the Lite table of google/automl; scales chosen there for int8
    name: str, backbone: str, *, size: int, width: int, cells: int, repeats: int, scale: float
) -> ModelConfig:
    survival_prob = None if backbone == "efficientnet-lite0" else 0.8
    return ModelConfig(
        name=f"efficientdet-{name}",
        backbone_name=backbone,
        image_size=(size, size),
        fpn_num_filters=width,
        fpn_cell_repeats=cells,
        box_class_repeats=repeats,
        anchor_scale=scale,
        fpn_weight_method="sum",
        act_type="relu6",
        survival_prob=survival_prob,
        mean_rgb=(127.0, 127.0, 127.0),
        stddev_rgb=(128.0, 128.0, 128.0),
    )


_ROWS = (
    _standard("d0", "efficientnet-b0", size=512, width=64, cells=3, repeats=3),
    _standard("d1", "efficientnet-b1", size=640, width=88, cells=4, repeats=3),
    _standard("d2", "efficientnet-b2", size=768, width=112, cells=5, repeats=3),
    _standard("d3", "efficientnet-b3", size=896, width=160, cells=6, repeats=4),
    _standard("d4", "efficientnet-b4", size=1024, width=224, cells=7, repeats=4),
    _standard("d5", "efficientnet-b5", size=1280, width=288, cells=7, repeats=4),
    _standard(
        "d6",
        "efficientnet-b6",
        size=1280,
        width=384,
        cells=8,
        repeats=5,
        fpn_weight_method="sum",
    ),
    _standard(
        "d7",
        "efficientnet-b6",
        size=1536,
        width=384,
        cells=8,
        repeats=5,
        fpn_weight_method="sum",
        anchor_scale=5.0,
    ),
    _standard(
        "d7x",
        "efficientnet-b7",
        size=1536,
        width=384,
        cells=8,
        repeats=5,
        fpn_weight_method="sum",
        max_level=8,
    ),
    _lite("lite0", "efficientnet-lite0", size=320, width=64, cells=3, repeats=3, scale=3.0),
    _lite("lite1", "efficientnet-lite1", size=384, width=88, cells=4, repeats=3, scale=3.0),
    _lite("lite2", "efficientnet-lite2", size=448, width=112, cells=5, repeats=3, scale=3.0),
    _lite("lite3", "efficientnet-lite3", size=512, width=160, cells=6, repeats=4, scale=4.0),
    _lite("lite3x", "efficientnet-lite3", size=640, width=200, cells=6, repeats=4, scale=3.0),
    _lite("lite4", "efficientnet-lite4", size=640, width=224, cells=7, repeats=4, scale=4.0),
)

MODEL_TABLE: dict[str, ModelConfig] = {row.name: row for row in _ROWS}


def model_config(name: str) -> ModelConfig:
    """Looks a model up by its published name.

    Args:
      name: for example `efficientdet-d0` or `efficientdet-lite3x`.

    Returns:
      The configuration of that row; change it with `dataclasses.replace`.

    Raises:
      ConfigError: the name is not in the table; the message names the nearest one.
    """
    return look_up(name, MODEL_TABLE, what="model_name")
