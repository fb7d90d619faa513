"""ResNet-50, ResNet-101 and ResNeXt-101-32x8d (arXiv 1512.03385, 1611.05431) as feature extractors.

Variable names are torchvision's with slashes: `backbone/conv1/kernel`, `backbone/bn1/gamma`,
`backbone/layer1/0/conv2/kernel`, `backbone/layer1/0/downsample_bn/beta`; group norm is `gn` in
place of `bn`. Stages are counted from 1 where freezing is concerned (1 is the stem) but named as in
torchvision, so `freeze_at=2` freezes the stem and `layer1`.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import tensorflow as tf

from detector.recompute import recomputed
from maskrcnn.config import ModelConfig, conventions_of
from maskrcnn.network.convolution import Conv2D
from maskrcnn.network.layers import (
    BatchNormFactory,
    NormMaker,
    PaddedConv2D,
    kaiming_uniform,
    normalised,
    relu,
)

_EXPANSION = 4
_PUBLISHED_WIDTH = 64


class Depth(NamedTuple):
    """Repeats of the four stages, and the width of their 3x3 convolutions."""

    repeats: tuple[int, int, int, int]
    num_groups: int = 1
    width_per_group: int = 64  # in the first stage; doubled at each next one


DEPTHS: dict[str, Depth] = {
    "resnet50": Depth((3, 4, 6, 3)),
    "resnet101": Depth((3, 4, 23, 3)),
    "resnext101_32x8d": Depth((3, 4, 23, 3), num_groups=32, width_per_group=8),
}


class Block(NamedTuple):
    """One bottleneck."""

    name: str
    mid_channels: int  # of the 1x1 and 3x3 convolutions
    out_channels: int
    num_groups: int
    stride: int
    dilation: int
    stride_in: str  # 1x1 or 3x3
    padding: str  # see Conventions
    has_projection: bool  # a convolution on the shortcut


def stage_blocks(
    config: ModelConfig, stage: int, *, prefix: str = "backbone", dilation: int = 1
) -> list[Block]:
    """Lists the bottlenecks of one stage.

    Args:
      stage: 1..4, torchvision's layer number.
      prefix: of the names; `box_head` for a stage that runs on RoI features.
      dilation: of the 3x3 convolutions; above 1 the stage keeps its input's size.
    """
    depth = DEPTHS[config.backbone_name]
    repeats = config.backbone_repeats or depth.repeats
    conventions = conventions_of(config)
    width = depth.width_per_group * config.backbone_width // _PUBLISHED_WIDTH
    return [
        Block(
            name=f"{prefix}/layer{stage}/{index}",
            mid_channels=depth.num_groups * width * 2 ** (stage - 1),
            out_channels=config.backbone_width * _EXPANSION * 2 ** (stage - 1),
            num_groups=depth.num_groups,
            stride=2 if index == 0 and stage > 1 and dilation == 1 else 1,
            dilation=dilation,
            stride_in=conventions.stride_in,
            padding=conventions.padding,
            has_projection=index == 0,
        )
        for index in range(repeats[stage - 1])
    ]


def _conv(
    name: str,
    filters: int,
    *,
    padding: str,
    kernel_size: int = 1,
    stride: int = 1,
    dilation: int = 1,
    groups: int = 1,
) -> tf.keras.layers.Layer:
    is_padded = padding != "same" and stride > 1 and kernel_size > 1
    return (PaddedConv2D if is_padded else Conv2D)(
        filters,
        kernel_size,
        stride,
        padding="same",
        dilation_rate=dilation,
        groups=groups,
        use_bias=False,
        kernel_initializer=kaiming_uniform(),
        name=name,
    )


class Bottleneck(tf.keras.layers.Layer):
    """1x1, 3x3, 1x1 with norms and a shortcut (arXiv 1512.03385, section 4.1).

    With `remat` the activations inside are not kept for the backward pass but computed again
    there; the second pass leaves moving statistics alone.
    """

    def __init__(self, block: Block, norm: NormMaker, *, remat: bool) -> None:
        """Creates the sub-layers of that shape."""
        super().__init__(name=block.name)
        self._remat = remat
        in_first = block.stride_in == "1x1"
        self.conv1 = _conv(
            "conv1",
            block.mid_channels,
            stride=block.stride if in_first else 1,
            padding=block.padding,
        )
        self.norm1 = norm.named(f"{norm.short_name}1")
        self.conv2 = _conv(
            "conv2",
            block.mid_channels,
            kernel_size=3,
            stride=1 if in_first else block.stride,
            dilation=block.dilation,
            groups=block.num_groups,
            padding=block.padding,
        )
        self.norm2 = norm.named(f"{norm.short_name}2")
        self.conv3 = _conv("conv3", block.out_channels, padding=block.padding)
        self.norm3 = norm.named(f"{norm.short_name}3")
        self.projection = None
        if block.has_projection:
            self.projection = _conv(
                "downsample_conv", block.out_channels, stride=block.stride, padding=block.padding
            )
            self.projection_norm = norm.named(f"downsample_{norm.short_name}")

    def call(self, inputs: tf.Tensor, training: bool | None = None) -> tf.Tensor:
        """Applies the block to [batch, height, width, channels]."""
        if not (self._remat and training):
            return self._forward(inputs, training=training)
        return recomputed(self, functools.partial(self._forward, training=training), inputs)

    def _forward(self, inputs: tf.Tensor, *, training: bool | None) -> tf.Tensor:
        x = relu(normalised(self.conv1, self.norm1, inputs, training=training))
        x = relu(normalised(self.conv2, self.norm2, x, training=training))
        x = normalised(self.conv3, self.norm3, x, training=training)
        shortcut = inputs
        if self.projection is not None:
            shortcut = normalised(self.projection, self.projection_norm, inputs, training=training)
        return relu(x + shortcut)


def residual_stage(
    x: tf.Tensor,
    config: ModelConfig,
    stage: int,
    *,
    norm: NormMaker,
    prefix: str = "backbone",
    dilation: int = 1,
    is_frozen: bool = False,
    remat: bool = False,
) -> tf.Tensor:
    """Adds one stage to a Keras tensor.

    Args:
      x: [batch, h, w, channels].
      stage: 1..4; see `stage_blocks`, also for `prefix` and `dilation`.
      norm: of the stages that are trained.
      is_frozen: nothing of the stage is trained.

    Returns:
      [batch, h', w', 4 * backbone_width * 2**(stage - 1)]; h' is ceil(h / 2) for stages 2..4
      without dilation.
    """
    maker = norm.frozen() if is_frozen else norm
    for block in stage_blocks(config, stage, prefix=prefix, dilation=dilation):
        layer = Bottleneck(block, maker, remat=remat)
        layer.trainable = not is_frozen
        x = layer(x)
    return x


def build_backbone(
    images: tf.Tensor,
    config: ModelConfig,
    *,
    batch_norm: BatchNormFactory | None,
    remat: bool,
) -> dict[int, tf.Tensor]:
    """Builds the body on a Keras tensor.

    Args:
      images: [batch, height, width, 3], normalised.

    Returns:
      {level: features}: levels 2..5, of a c4 body 2..4; [batch, ceil(h / 2**level),
      ceil(w / 2**level), backbone_width * 2**level]. With dilation level 5 has the size of level 4.
    """
    padding = conventions_of(config).padding
    norm = NormMaker(config, config.backbone_norm, batch_norm)
    is_frozen = config.freeze_at >= 1
    stem = _conv("backbone/conv1", config.backbone_width, kernel_size=7, stride=2, padding=padding)
    stem_maker = norm.frozen() if is_frozen else norm
    stem_norm = stem_maker.named(f"backbone/{norm.short_name}1")
    stem.trainable = stem_norm.trainable = not is_frozen
    x = tf.keras.layers.Activation(relu, name="backbone/relu1")(stem_norm(stem(images)))
    if padding == "symmetric":  # zeros: no feature is below
        x = tf.keras.layers.ZeroPadding2D(1, name="backbone/pad1")(x)
    pool_padding = "valid" if padding == "symmetric" else "same"
    x = tf.keras.layers.MaxPool2D(3, 2, pool_padding, name="backbone/pool1")(x)
    features = {}
    for stage in range(1, 4 if config.body == "c4" else 5):
        x = residual_stage(
            x,
            config,
            stage,
            norm=norm,
            dilation=config.res5_dilation if stage == 4 else 1,
            is_frozen=config.freeze_at > stage,
            remat=remat,
        )
        features[stage + 1] = x
    return features
