"""Configuration of Mask R-CNN: the network section and the table of named models.

Everything that shapes variables, anchors or RoI features is here; what is sampled, lost and kept at
test time is in `settings`. What surprises a newcomer: the fields of `Conventions` are empty by
default, because pretrained weights only work with the convention they were trained with.
`with_conventions` and `with_our_conventions` fill them, and a filled configuration is what the
network is built from and what a checkpoint records.
"""

from __future__ import annotations

import dataclasses
import math
from typing import NamedTuple, Optional

from engine.config.fields import Section, look_up, setting

IMAGENET_MEAN_RGB = (0.485 * 255, 0.456 * 255, 0.406 * 255)
IMAGENET_STDDEV_RGB = (0.229 * 255, 0.224 * 255, 0.225 * 255)
MSRA_MEAN_RGB = (122.7717, 115.9465, 102.9801)  # of Detectron's ResNets

BODIES = ("fpn", "c4", "c5")
NORMS = ("frozen_bn", "batch_norm", "group_norm")
HEAD_NORMS = ("", "batch_norm", "group_norm")
BOX_HEADS = ("mlp", "conv", "res5")
MASK_HEADS = ("fcn", "res5")
PADDINGS = ("", "symmetric", "same", "same_pool")
STRIDE_PLACES = ("", "3x3", "1x1")
ANCHOR_CONVENTIONS = ("", "continuous", "detectron", "detectron2", "torchvision")
ROI_ALIGN_CONVENTIONS = ("", "aligned", "legacy", "crop", "corners")
BACKBONES = ("resnet50", "resnet101", "resnext101_32x8d")

BODY_STRIDES = {"fpn": (4, 8, 16, 32, 64), "c4": (16,), "c5": (32,)}
_OPEN = ("", (), None)
_SQUARE_SHARE = 0.75  # the square canvas has about this share of the landscape canvas' pixels


class Conventions(NamedTuple):
    """What weights demand of the network and its input beside shapes."""

    # Of strided convolutions and the pooling: symmetric (PyTorch, Caffe2), same (TensorFlow) or
    # same_pool (symmetric convolutions, same pooling).
    padding: str
    stride_in: str  # which convolution of a bottleneck has the stride: 1x1 or 3x3
    mean_rgb: tuple[float, float, float]  # of pixel values 0..255
    stddev_rgb: tuple[float, float, float]
    # Demanded by whole detectors only; None elsewhere.
    anchor_convention: str | None = None
    coding_offset: float | None = None
    iou_offset: float | None = None
    roi_align_convention: str | None = None
    resampling: str | None = None

    def of_backbone(self) -> Conventions:
        """Leaves out what only whole detectors demand."""
        return Conventions(*self[:4])


OUR_CONVENTIONS = Conventions(
    "symmetric",
    "3x3",
    IMAGENET_MEAN_RGB,
    IMAGENET_STDDEV_RGB,
    "continuous",
    0.0,
    0.0,
    "aligned",
    "antialiased",
)
"""For weights that are trained from scratch."""


@dataclasses.dataclass(frozen=True)
class ModelConfig(Section):
    """Mask R-CNN: shape of one network with its anchors and RoI features."""

    name: str
    backbone_name: str = setting("resnet50", "Which ResNet.", flag=None, choices=BACKBONES)
    backbone_width: int = 64  # channels of the stem; the stages' follow. Weights exist for 64
    backbone_repeats: tuple[int, ...] = ()  # blocks of the four stages; (): of the backbone's name
    body: str = setting(
        "fpn", "fpn: P2..P6; c4, c5: the one map of that stage.", flag=None, choices=BODIES
    )
    image_size: tuple[int, int] = setting(
        (832, 1344),
        "Mask R-CNN's limits of the short and the long side: 832,1344, or 800,1333.",
    )
    canvases: tuple[tuple[int, int], ...] = ()  # (height, width) of network inputs; (): derived
    padding: str = setting(
        "", "symmetric, same, same_pool; '': by the weights.", flag=None, choices=PADDINGS
    )
    stride_in: str = setting("", "3x3, 1x1; '': by the weights.", flag=None, choices=STRIDE_PLACES)
    mean_rgb: tuple[float, ...] = ()  # of uint8 pixel values; (): by the weights
    stddev_rgb: tuple[float, ...] = setting((), "Likewise.", flag=None, above=0)
    resampling: str = setting(
        "",
        "How images are resized; '': by the weights, else antialiased.",
        flag=None,
        choices=("", "antialiased", "bilinear", "bilinear_legacy"),
    )
    norm: str = setting("frozen_bn", "Of the backbone.", flag=None, choices=NORMS)
    finetune_bn: bool = setting(
        False, "Train batch norm where the model says frozen_bn; not that of frozen stages."
    )
    freeze_at: int = setting(
        2, "0: nothing; 1: stem; 2: and the first residual stage.", flag=None, least=0, most=5
    )
    bn_momentum: float = setting(0.9, "What old statistics count.", flag=None, least=0, below=1)
    bn_epsilon: float = setting(1e-5, "Added to variances.", flag=None, above=0)
    num_norm_groups: int = setting(32, "Of group norm.", flag=None, least=1)
    gn_epsilon: float = setting(1e-5, "Added to variances.", flag=None, above=0)
    res5_dilation: int = 1  # 2: stage 5 of a c5 body keeps stride 16
    fpn_num_filters: int = setting(256, "Channels of its maps.", flag=None, least=1)
    fpn_norm: str = setting("", "Of the FPN.", flag=None, choices=HEAD_NORMS)
    fpn_relu: bool = False  # ReLU after the norm of the FPN's convolutions
    anchor_sizes: tuple[float, ...] = setting(
        (32.0, 64.0, 128.0, 256.0, 512.0), "Sides of squares, pixels.", flag=None, above=0
    )
    aspect_ratios: tuple[tuple[float, float], ...] = setting(
        ((1.4, 0.7), (1.0, 1.0), (0.7, 1.4)), "(w, h) of anchors.", flag=None, above=0
    )
    anchor_convention: str = setting(
        "", "'': by the weights.", flag=None, choices=ANCHOR_CONVENTIONS
    )
    coding_offset: Optional[float] = setting(
        None,
        "Added to widths and heights in box coding, 1: the references, -1: matterport's; none: by "
        "the weights.",
        flag=None,
        least=-1,
    )
    iou_offset: Optional[float] = setting(
        None, "And in overlaps, 1: the PyTorch reference.", flag=None, least=-1
    )
    rpn_num_convs: int = setting(1, "3x3 convolutions of the RPN.", flag=None, least=1, most=100)
    rpn_conv_dim: int = setting(0, "Their filters; 0: as the maps have.", flag=None, least=0)
    rpn_only: bool = False  # no box and mask heads
    include_mask: bool = True  # False: Faster R-CNN
    box_head: str = setting(
        "mlp",
        "mlp: 2 dense layers; conv: 4 convolutions, 1 dense; res5: stage 5.",
        flag=None,
        choices=BOX_HEADS,
    )
    box_resolution: int = setting(7, "RoI feature cells per side.", flag=None, least=2)
    box_mlp_dim: int = setting(1024, "Units of its dense layers.", flag=None, least=1)
    box_conv_dim: int = setting(256, "Filters of its convolutions.", flag=None, least=1)
    box_num_convs: int = setting(4, "And their number.", flag=None, least=0, most=100)
    box_head_norm: str = setting("", "Of the box head.", flag=None, choices=HEAD_NORMS)
    mask_head: str = setting(
        "fcn",
        "fcn: convolutions of its own; res5: on the box head's stage 5.",
        flag=None,
        choices=MASK_HEADS,
    )
    mask_resolution: int = setting(
        14, "RoI feature cells per side; res5: box_resolution is used.", flag=None, least=2
    )
    mask_conv_dims: tuple[int, ...] = setting(
        (256, 256, 256, 256), "Filters of its convolutions.", flag=None, least=1
    )
    mask_deconv_dim: int = setting(256, "And of its deconvolution.", flag=None, least=1)
    mask_head_norm: str = setting("", "Of the mask head.", flag=None, choices=HEAD_NORMS)
    roi_sampling_ratio: int = setting(
        2, "Samples per RoI cell and axis; 0: ceil(cell size).", flag=None, least=0
    )
    roi_align_convention: str = setting(
        "",
        "legacy: of the PyTorch reference; crop: of the TF2 one; corners: matterport's.",
        flag=None,
        choices=ROI_ALIGN_CONVENTIONS,
    )
    roi_max_level: int = setting(
        5, "Coarsest level that RoIs are read from, with an FPN.", flag=None, least=2, most=6
    )

    def __post_init__(self) -> None:
        """Rejects values that could only fail later, inside the model."""
        super().__post_init__()
        if self.backbone_width < 8 or self.backbone_width % 8:
            raise ValueError(f"backbone_width={self.backbone_width}: expected a multiple of 8")
        repeats = self.backbone_repeats
        if repeats and (len(repeats) != 4 or min(repeats) < 1):
            raise ValueError(f"backbone_repeats={repeats}: expected four numbers of at least 1")
        for key in ("mean_rgb", "stddev_rgb"):
            if len(getattr(self, key)) not in (0, 3):
                raise ValueError(f"{key}={getattr(self, key)}: expected three numbers (R, G, B)")

    @property
    def anchor_strides(self) -> tuple[int, ...]:
        """Pixels per cell of the maps that carry anchors, finest first."""
        return (16,) if self.is_dilated else BODY_STRIDES[self.body]

    @property
    def map_levels(self) -> tuple[int, ...]:
        """Level (log2 of the stride) of each map that carries anchors."""
        return tuple(stride.bit_length() - 1 for stride in self.anchor_strides)

    @property
    def roi_levels(self) -> tuple[int, ...]:
        """Levels that RoI features are read from."""
        if self.body != "fpn":
            return self.map_levels
        return tuple(level for level in self.map_levels if level <= self.roi_max_level)

    @property
    def is_dilated(self) -> bool:
        """Whether stage 5 of the body keeps the stride of stage 4."""
        return self.body == "c5" and self.res5_dilation > 1

    @property
    def num_anchors_per_cell(self) -> int:
        """Anchors at one position: with an FPN one size per level, else all sizes."""
        sizes = 1 if self.body == "fpn" else len(self.anchor_sizes)
        return sizes * len(self.aspect_ratios)

    @property
    def mask_size(self) -> int:
        """Side of a predicted mask: twice that of the features before the deconvolution."""
        if self.mask_head == "res5":
            return 2 * -(-self.box_resolution // 2)  # stage 5 halves, the deconvolution doubles
        return 2 * self.mask_resolution

    @property
    def backbone_norm(self) -> str:
        """The norm of stages that are not frozen."""
        return "batch_norm" if self.norm == "frozen_bn" and self.finetune_bn else self.norm

    @property
    def size_divisor(self) -> int:
        """What sides of network inputs must be divisible by, so that maps meet."""
        return 16 if self.body == "c4" or self.is_dilated else 32

    @property
    def canvas_sizes(self) -> tuple[tuple[int, int], ...]:
        """(height, width) of every network input; see `derived_canvases`."""
        return self.canvases or derived_canvases(self.image_size, divisor=self.size_divisor)


def derived_canvases(image_size: tuple[int, int], *, divisor: int) -> tuple[tuple[int, int], ...]:
    """Chooses landscape, portrait and square network inputs for a pair of side limits.

    An image is scaled until its short or its long side reaches its limit, and goes to the smallest
    canvas that holds it. The square one saves work for images near 1:1.

    Args:
      image_size: limits of (short, long) side, in any order, pixels.
      divisor: what the canvases' sides are rounded up to a multiple of.

    Returns:
      (height, width) without repetitions; one canvas if the limits are equal.
    """
    short, long = sorted(-(-side // divisor) * divisor for side in image_size)
    square = math.ceil(math.sqrt(_SQUARE_SHARE * short * long) / divisor) * divisor
    sizes = [(short, long), (long, short)]
    if short <= square and square * square < short * long:
        sizes.append((square, square))
    return tuple(dict.fromkeys(sizes))


def conventions_of(config: ModelConfig) -> Conventions:
    """Returns the conventions of a configuration, ours where it leaves them open."""
    given = (getattr(config, name) for name in Conventions._fields)
    return Conventions(
        *(ours if value in _OPEN else value for value, ours in zip(given, OUR_CONVENTIONS))
    )


def with_our_conventions(config: ModelConfig) -> ModelConfig:
    """Fills the conventions that a configuration leaves open with ours."""
    return dataclasses.replace(config, **conventions_of(config)._asdict())


def with_conventions(config: ModelConfig, demanded: Conventions, *, source: str) -> ModelConfig:
    """Fills the open conventions of a configuration with those that weights demand.

    Args:
      config: the network's configuration.
      demanded: of the weights; None where they demand nothing.
      source: where the weights come from, for messages.

    Returns:
      The configuration with all that is demanded; how images are resized may be chosen otherwise.

    Raises:
      ValueError: the configuration already says something else; names field, values and remedy.
    """
    changes = {}
    for name, value in demanded._asdict().items():
        given = getattr(config, name)
        if value is None:
            continue
        if given in _OPEN:
            changes[name] = value
        elif name != "resampling" and not _is_equal(given, value):
            raise ValueError(
                f"model.{name}={given!r}, but {source} was trained with {value!r}: leave "
                f"model.{name} unset before the model is built, or choose weights or a preset of "
                "the same convention"
            )
    return dataclasses.replace(config, **changes)


def _is_equal(given: object, value: object) -> bool:
    if not isinstance(value, tuple):
        return given == value
    return all(math.isclose(a, b, rel_tol=1e-3) for a, b in zip(given, value))


_FPN_GN = {
    "norm": "group_norm",
    "fpn_norm": "group_norm",
    "box_head_norm": "group_norm",
    "mask_head_norm": "group_norm",
}
_C4 = {
    "body": "c4",
    "box_head": "res5",
    "mask_head": "res5",
    "box_resolution": 14,
    "roi_sampling_ratio": 0,
}
_C5 = {"body": "c5"}
# torchvision's second version (arXiv 2111.11429).
_FPN_V2 = {
    "norm": "batch_norm",
    "fpn_norm": "batch_norm",
    "rpn_num_convs": 2,
    "box_head": "conv",
    "box_head_norm": "batch_norm",
    "mask_head_norm": "batch_norm",
}
# matterport's Mask_RCNN.
_MATTERPORT = {
    "image_size": (800, 1024),
    "canvases": ((1024, 1024),),
    "rpn_conv_dim": 512,
    "box_head_norm": "batch_norm",
    "mask_head_norm": "batch_norm",
    "roi_sampling_ratio": 1,
}
_ROWS: dict[str, dict[str, object]] = {
    "r50-fpn": {},
    "r101-fpn": {"backbone_name": "resnet101"},
    "r50-fpn-v2": _FPN_V2,
    "r50-c4": _C4,
    "r101-c4": {"backbone_name": "resnet101", **_C4},
    "r50-c5": _C5,
    "r101-c5": {"backbone_name": "resnet101", **_C5},
    "x101-32x8d-fpn": {"backbone_name": "resnext101_32x8d"},
    "r50-fpn-gn": _FPN_GN,
    "r101-fpn-gn": {"backbone_name": "resnet101", **_FPN_GN},
    "r50-fpn-4conv1fc-gn": {"box_head": "conv", **_FPN_GN},
    "r101-fpn-4conv1fc-gn": {"backbone_name": "resnet101", "box_head": "conv", **_FPN_GN},
    "r50-fpn-matterport": _MATTERPORT,
    "r101-fpn-matterport": {"backbone_name": "resnet101", **_MATTERPORT},
}
_FAMILIES: dict[str, dict[str, object]] = {
    "maskrcnn": {},
    "fasterrcnn": {"include_mask": False},
    "rpn": {"include_mask": False, "rpn_only": True},
}

MODEL_TABLE: dict[str, ModelConfig] = {
    f"{family}-{row}": ModelConfig(**{"name": f"{family}-{row}", **fields, **changes})
    for family, changes in _FAMILIES.items()
    for row, fields in _ROWS.items()
}


def model_config(name: str) -> ModelConfig:
    """Looks a model up by its name.

    Args:
      name: for example `maskrcnn-r50-fpn`, `fasterrcnn-r50-c4` or `maskrcnn-r50-fpn-gn`.

    Returns:
      The configuration of that row; change it with `dataclasses.replace`.

    Raises:
      ConfigError: the name is not in the table; the message names the nearest one.
    """
    return look_up(name, MODEL_TABLE, what="model_name")
