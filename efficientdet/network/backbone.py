"""EfficientNet B0-B7 and Lite0-Lite4 (arXiv 1905.11946), as feature extractor.

Lite networks have no squeeze-and-excitation, and neither the width of the stem nor the repeats of
the first and last stage are scaled. Variable names are those of the NVIDIA EfficientNet:
`stem_conv2d`, `stem_bn`, `stack_{i}/block_{j}/{expand,depthwise,se_reduce,se_expand,project}_*`.
Images come in already normalised; `double_normalize` repeats it only for the reference's weights.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import tensorflow as tf

from detector.recompute import recomputed
from efficientdet.network.convolutions import Conv2D, DepthwiseConv2D
from efficientdet.network.layers import (
    BatchNormFactory,
    activation_function,
    drop_connect,
    fresh_drop_connect_seed,
    is_stochastic,
)
from engine.config.fields import look_up

# (expand ratio, kernel, stride of the first block, repeats, output channels) of B0's stages.
_B0_STAGES = (
    (1, 3, 1, 1, 16),
    (6, 3, 2, 2, 24),
    (6, 5, 2, 2, 40),
    (6, 3, 2, 3, 80),
    (6, 5, 1, 3, 112),
    (6, 5, 2, 4, 192),
    (6, 3, 1, 1, 320),
)
_STEM_CHANNELS = 32
_SE_RATIO = 0.25  # of the channels that enter the block, before expansion
# The reference's backbone normalises by these a second time, without the factor of 255.
_UNIT_MEAN_RGB = (0.485, 0.456, 0.406)
_UNIT_STDDEV_RGB = (0.229, 0.224, 0.225)


class Scaling(NamedTuple):
    """Compound scaling of one network."""

    width: float
    depth: float
    is_lite: bool = False


# (width, depth) of B0 to B7; Lite0 to Lite4 are scaled as B0 to B4.
_SCALES = (
    (1.0, 1.0),
    (1.0, 1.1),
    (1.1, 1.2),
    (1.2, 1.4),
    (1.4, 1.8),
    (1.6, 2.2),
    (1.8, 2.6),
    (2.0, 3.1),
)
SCALINGS: dict[str, Scaling] = {
    **{f"efficientnet-b{i}": Scaling(*scale) for i, scale in enumerate(_SCALES)},
    **{f"efficientnet-lite{i}": Scaling(*_SCALES[i], is_lite=True) for i in range(5)},
}


class Block(NamedTuple):
    """One inverted-residual block after scaling."""

    name: str  # stack_{i}/block_{j}
    expand_ratio: int
    kernel_size: int
    stride: int
    in_channels: int
    out_channels: int
    se_channels: int  # 0: no squeeze-and-excitation
    level: int  # log2 of the stride of its output

    @property
    def has_residual(self) -> bool:
        """Whether the block's input is added to its output."""
        return self.stride == 1 and self.in_channels == self.out_channels


def scaling_of(name: str) -> Scaling:
    """Looks a backbone up by name."""
    return look_up(name, SCALINGS, what="backbone_name")


def round_channels(channels: int, width: float) -> int:
    """Scales a channel count to a multiple of 8 that loses at most a tenth."""
    scaled = channels * width
    rounded = max(8, int(scaled + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * scaled else rounded


def stem_channels(name: str) -> int:
    """Channels after the first convolution."""
    scaling = scaling_of(name)
    return _STEM_CHANNELS if scaling.is_lite else round_channels(_STEM_CHANNELS, scaling.width)


def backbone_blocks(name: str) -> list[Block]:
    """Lists the blocks of a backbone in order, scaled."""
    scaling = scaling_of(name)
    blocks = []
    channels = stem_channels(name)
    level = 1
    for stage, (expand, kernel, stride, repeats, out_channels) in enumerate(_B0_STAGES):
        if not (scaling.is_lite and stage in (0, len(_B0_STAGES) - 1)):
            repeats = math.ceil(scaling.depth * repeats)
        out_channels = round_channels(out_channels, scaling.width)
        level += stride == 2
        for index in range(repeats):
            blocks.append(
                Block(
                    name=f"stack_{stage}/block_{index}",
                    expand_ratio=expand,
                    kernel_size=kernel,
                    stride=stride if index == 0 else 1,
                    in_channels=channels,
                    out_channels=out_channels,
                    se_channels=0 if scaling.is_lite else max(1, int(channels * _SE_RATIO)),
                    level=level,
                )
            )
            channels = out_channels
    return blocks


def _conv_initializer(mode: str = "fan_in") -> tf.keras.initializers.Initializer:
    """Makes a new initialiser; one object for several layers would give them equal kernels."""
    return tf.keras.initializers.VarianceScaling(2.0, mode=mode, distribution="truncated_normal")


def _conv(
    name: str,
    filters: int,
    *,
    kernel_size: int = 1,
    strides: int = 1,
    use_bias: bool = False,
    padding: str = "same",
) -> tf.keras.layers.Layer:
    return Conv2D(
        filters,
        kernel_size,
        strides,
        padding=padding,
        use_bias=use_bias,
        kernel_initializer=_conv_initializer(),
        name=name,
    )


class MBConvBlock(tf.keras.layers.Layer):
    """Inverted residual block: expand, depthwise, squeeze-and-excite, project.

    With `remat` the activations inside the block are not kept for the backward pass but computed
    again there, from the same seed; the second pass leaves the moving statistics alone.
    """

    def __init__(
        self,
        block: Block,
        batch_norm: BatchNormFactory,
        *,
        act_type: str,
        survival_prob: float | None,
        remat: bool,
        is_symmetric: bool = False,
    ) -> None:
        """Creates the sub-layers; their names follow the block's. Arguments: see `build_backbone`.

        Args:
          survival_prob: of the residual branch of this block; None: always kept.
        """
        super().__init__(name=block.name)
        self._block = block
        self._act = activation_function(act_type)
        self._survival_prob = survival_prob if is_stochastic(survival_prob) else None
        self._remat = remat
        self._border = block.kernel_size // 2 if is_symmetric and block.stride > 1 else 0
        wide = block.in_channels * block.expand_ratio
        if block.expand_ratio != 1:
            self.expand_conv2d = _conv("expand_conv2d", wide)
            self.expand_bn = batch_norm(name="expand_bn", activation=self._act)
        # Keras counts the fan-in of a depthwise kernel over all channels; fan-out is k * k here.
        self.depthwise_conv2d = DepthwiseConv2D(
            block.kernel_size,
            block.stride,
            padding="valid" if self._border else "same",
            use_bias=False,
            depthwise_initializer=_conv_initializer("fan_out"),
            name="depthwise_conv2d",
        )
        self.depthwise_bn = batch_norm(name="depthwise_bn", activation=self._act)
        if block.se_channels:
            self.se_reduce_conv2d = _conv("se_reduce_conv2d", block.se_channels, use_bias=True)
            self.se_expand_conv2d = _conv("se_expand_conv2d", wide, use_bias=True)
        self.project_conv2d = _conv("project_conv2d", block.out_channels)
        self.project_bn = batch_norm(name="project_bn")

    def call(self, inputs: tf.Tensor, training: bool | None = None) -> tf.Tensor:
        """Applies the block to [batch, height, width, channels]."""
        seed = fresh_drop_connect_seed() if training and self._survival_prob else None
        if not (self._remat and training):
            return self._forward(inputs, training=training, seed=seed)
        forward = functools.partial(self._forward, training=training, seed=seed)
        return recomputed(self, forward, inputs)

    def _forward(
        self, inputs: tf.Tensor, *, training: bool | None, seed: tf.Tensor | None
    ) -> tf.Tensor:
        x = inputs
        if self._block.expand_ratio != 1:
            x = self.expand_bn(self.expand_conv2d(x, training=training), training=training)
        if self._border:
            sides = [self._border, self._border]
            x = tf.pad(x, [[0, 0], sides, sides, [0, 0]])
        x = self.depthwise_conv2d(x, training=training)
        if not self._block.se_channels:
            x = self.depthwise_bn(x, training=training)
        elif self.depthwise_bn.is_merged(x, training):
            x = self._merged_excitation(x)
        else:
            x = self.depthwise_bn(x, training=training)
            # In float32: the number of pixels, by which the gradient is divided, is beyond float16.
            squeezed = tf.reduce_mean(tf.cast(x, tf.float32), axis=(1, 2), keepdims=True)
            squeezed = tf.cast(squeezed, x.dtype)
            gate = self.se_expand_conv2d(self._act(self.se_reduce_conv2d(squeezed)))
            x = x * tf.sigmoid(gate)
        x = self.project_bn(self.project_conv2d(x, training=training), training=training)
        if not self._block.has_residual:
            return x
        if seed is not None:
            x = drop_connect(x, seed, survival_prob=self._survival_prob, salt=self.name)
        return x + inputs

    def _merged_excitation(self, x: tf.Tensor) -> tf.Tensor:
        """Normalises, activates and gates the depthwise convolution's result in one function."""
        layers = self.se_reduce_conv2d, self.se_expand_conv2d
        weights = [tf.cast(w, x.dtype) for layer in layers for w in (layer.kernel, layer.bias)]

        def excitation(means: tf.Tensor, *weights: tf.Tensor) -> tf.Tensor:
            reduce, reduce_bias, expand, expand_bias = weights
            hidden = self._act(tf.matmul(means, tf.squeeze(reduce, (0, 1))) + reduce_bias)
            return tf.sigmoid(tf.matmul(hidden, tf.squeeze(expand, (0, 1))) + expand_bias)

        return self.depthwise_bn.merged(x, weights, excitation=excitation)


def build_backbone(
    images: tf.Tensor,
    *,
    name: str,
    batch_norm: BatchNormFactory,
    act_type: str = "swish",
    survival_prob: float | None = None,
    double_normalize: bool = False,
    is_symmetric: bool = False,
    remat: bool = False,
) -> dict[int, tf.Tensor]:
    """Builds the feature extractor on a Keras tensor.

    Args:
      images: [batch, height, width, 3], normalised.
      name: key of `SCALINGS`.
      batch_norm: makes a batch-norm layer from a name and the activation after it.
      act_type: activation of all blocks.
      survival_prob: of the last block; it falls linearly from 1 at the first.
      double_normalize: apply (x - mean) / std again, with the statistics of 0..1 images.
      is_symmetric: strided convolutions are padded by as much on both sides, as in PyTorch;
        TensorFlow's SAME pads an even side more at its end.
      remat: recompute each block in the backward pass.

    Returns:
      {level: features} for levels 1..5; the features of a level are the output of the last
      block with that stride, [batch, ceil(h / 2**level), ceil(w / 2**level), channels].
    """
    x = images
    if double_normalize:
        x = tf.keras.layers.Rescaling(
            [1.0 / std for std in _UNIT_STDDEV_RGB],
            [-mean / std for mean, std in zip(_UNIT_MEAN_RGB, _UNIT_STDDEV_RGB)],
            name="second_normalization",
        )(x)
    if is_symmetric:
        x = tf.keras.layers.ZeroPadding2D(1, name="stem_pad")(x)
    padding = "valid" if is_symmetric else "same"
    stem = _conv("stem_conv2d", stem_channels(name), kernel_size=3, strides=2, padding=padding)
    x = stem(x)
    x = batch_norm(name="stem_bn", activation=activation_function(act_type))(x)
    blocks = backbone_blocks(name)
    features = {}
    for index, block in enumerate(blocks):
        survival = None
        if is_stochastic(survival_prob):
            survival = 1.0 - (1.0 - survival_prob) * index / len(blocks)
        layer = MBConvBlock(
            block,
            batch_norm,
            act_type=act_type,
            survival_prob=survival,
            remat=remat,
            is_symmetric=is_symmetric,
        )
        x = layer(x)
        features[block.level] = x
    return features
