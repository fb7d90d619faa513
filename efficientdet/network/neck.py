"""Bidirectional feature pyramid (EfficientDet, arXiv 1911.09070, section 3) and its extra levels.

A cell is a list of nodes, each joining earlier feature maps of any level into one level. The node
lists are plain data (`cell_nodes`), the layers follow from them. Names are those of google/automl:
`resample_p6/conv2d`, `fpn_cells/cell_0/fnode0/WSM`, `.../op_after_combine5/conv`.
What surprises a newcomer: a backbone map that two nodes use is projected twice, once for each.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import tensorflow as tf

from efficientdet.config import ModelConfig
from efficientdet.network.convolutions import Conv2D, SeparableConv2D
from efficientdet.network.layers import BatchNormFactory, activation_function

_FUSION_EPSILON = 1e-4  # section 3.3, fast normalised fusion


class Node(NamedTuple):
    """One fusion of a cell."""

    level: int
    inputs: tuple[int, ...]  # ids; the cell's inputs are 0.., nodes are numbered after them
    weight_method: str


def cell_nodes(config: ModelConfig) -> list[Node]:
    """Lists the nodes of the configured cell.

    BiFPN is a top-down path, then a bottom-up path. A top-down node joins the level's input with
    the last map of the level above; a bottom-up node joins all maps of its level with the last map
    of the level below. The quad pyramid (`qufpn`) starts again from the cell's inputs, bottom-up
    and then top-down; a last `fastattn` node per level adds the ends of both.

    Returns:
      Nodes in the order they are computed; node i has the id (number of levels + i).
    """
    nodes: list[Node] = []
    levels = range(config.min_level, config.max_level + 1)
    source = {level: level - config.min_level for level in levels}

    def add(level: int, inputs: Iterable[int], method: str = config.fpn_weight_method) -> int:
        nodes.append(Node(level, tuple(inputs), method))
        return len(levels) - 1 + len(nodes)

    def path(order: Sequence[int], first: dict[int, int]) -> dict[int, int]:
        """Walks the levels; a node joins its source, what the first pass made, its neighbour."""
        ends = {order[0]: first[order[0]]}
        for previous, level in zip(order[:-1], order[1:]):
            ends[level] = add(level, dict.fromkeys((source[level], first[level], ends[previous])))
        return ends

    upward, downward = list(levels), list(reversed(levels))
    down_up = path(upward, path(downward, source))
    if config.fpn_name == "qufpn":
        up_down = path(downward, path(upward, source))
        for level in downward:
            add(level, (down_up[level], up_down[level]), "fastattn")
    return nodes


def _double(x: tf.Tensor, target: int, *, axis: int) -> tf.Tensor:
    """Repeats each cell along an axis; for an odd target the last cell is not repeated."""
    size = x.shape[axis]
    shape = [-1, *x.shape[1:]]
    shape[axis] = 2 * size
    multiples = [1] * (len(shape) + 1)
    multiples[axis + 1] = 2
    doubled = tf.reshape(tf.tile(tf.expand_dims(x, axis + 1), multiples), shape)
    return doubled if target == 2 * size else tf.split(doubled, [target, 1], axis=axis)[0]


class UpsampleTo(tf.keras.layers.Layer):
    """Nearest-neighbour upsampling from n to 2n or 2n - 1 cells by repetition.

    Equals `tf.compat.v1.image.resize_nearest_neighbor`, which google/automl calls, and PyTorch's
    nearest: 3 cells become 0 0 1 1 2, not the 0 0 1 2 2 of `tf.image.resize`. XLA cannot compile
    its gradient on the CPU; this one is a sum over pairs of cells.
    """

    def __init__(self, height: int, width: int, **kwargs: object) -> None:
        """Takes the target size in cells."""
        super().__init__(**kwargs)
        self._size = (height, width)

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        """Upsamples [batch, h, w, channels] to [batch, height, width, channels]."""
        x = inputs
        for axis, target in zip((1, 2), self._size):
            size = inputs.shape[axis]
            if target not in (size, 2 * size, 2 * size - 1):
                raise ValueError(
                    f"{self.name}: cannot upsample {size} cells to {target}; "
                    f"expected {2 * size - 1} or {2 * size}."
                )
            if target != size:
                x = _double(x, target, axis=axis)
        return x


class Fuse(tf.keras.layers.Layer):
    """Weighted sum of equally shaped maps; the weights are the variables `WSM`, `WSM_1`, ...

    `fastattn` divides non-negative weights by their sum (section 3.3, eq. 3), `attn` takes their
    softmax, `channel_*` have one weight per channel, `sum` has none. Weights are normalised in
    float32.
    """

    def __init__(self, weight_method: str, *, raw_weights: bool, scope: str) -> None:
        """Takes the method, whether to skip the ReLU, and the scope of the variable names."""
        super().__init__(name=f"{scope}/fuse")
        self._weight_method = weight_method
        self._raw_weights = raw_weights
        self._scope = scope
        self._edge_weights: list[tf.Variable] = []

    def build(self, input_shape: list[tf.TensorShape]) -> None:
        """Creates one weight per input."""
        if self._weight_method == "sum":
            return
        shape = (input_shape[0][-1],) if self._weight_method.startswith("channel") else ()
        with tf.name_scope(f"{self._scope}/"):  # the slash makes the scope absolute
            for index in range(len(input_shape)):
                weight = self.add_weight(
                    name="WSM" if index == 0 else f"WSM_{index}",
                    shape=shape,
                    initializer="ones",
                    experimental_autocast=False,
                )
                self._edge_weights.append(weight)

    def call(self, inputs: list[tf.Tensor]) -> tf.Tensor:
        """Fuses tensors of [batch, height, width, channels]."""
        if self._weight_method == "sum":
            return tf.add_n(inputs)
        weights = tf.stack([tf.convert_to_tensor(weight) for weight in self._edge_weights])
        if self._weight_method.endswith("fastattn"):
            if not self._raw_weights:
                weights = tf.nn.relu(weights)
            weights = weights / (tf.reduce_sum(weights, axis=0) + _FUSION_EPSILON)
        else:
            weights = tf.nn.softmax(weights, axis=0)
        weights = tf.unstack(tf.cast(weights, inputs[0].dtype))
        return tf.add_n([x * weight for x, weight in zip(inputs, weights)])


class NeckBuilder:
    """Builds pyramid layers on Keras tensors for one configuration."""

    def __init__(self, config: ModelConfig, batch_norm: BatchNormFactory) -> None:
        """Takes the configuration and the maker of batch-norm layers."""
        self._config = config
        self._batch_norm = batch_norm

    def pyramid_levels(self, features: dict[int, tf.Tensor]) -> list[tf.Tensor]:
        """Extends backbone features by the coarser levels.

        Args:
          features: {level: [batch, h, w, channels]} for min_level..5.

        Returns:
          Maps of min_level..max_level; those above 5 have the pyramid's width.
        """
        maps = [features[level] for level in range(self._config.min_level, 6)]
        for level in range(6, self._config.max_level + 1):
            height, width = (-(-size // 2) for size in maps[-1].shape[1:3])
            maps.append(self._resample(maps[-1], height, width, name=f"resample_p{level}"))
        return maps

    def cell(self, maps: list[tf.Tensor], *, name: str) -> list[tf.Tensor]:
        """Applies one cell: maps of min_level..max_level in, the same levels out."""
        config = self._config
        maps = list(maps)
        num_levels = len(maps)
        sizes = [x.shape[1:3] for x in maps]
        last = list(maps)
        for index, node in enumerate(cell_nodes(config)):
            scope = f"{name}/fnode{index}"
            height, width = sizes[node.level - config.min_level]
            inputs = [
                self._resample(
                    maps[source],
                    height,
                    width,
                    name=f"{scope}/resample_{position}_{source}_{num_levels + index}",
                )
                for position, source in enumerate(node.inputs)
            ]
            fuse = Fuse(node.weight_method, raw_weights=config.raw_fusion_weights, scope=scope)
            x = self._after_fusion(
                fuse(inputs), name=f"{scope}/op_after_combine{num_levels + index}"
            )
            maps.append(x)
            last[node.level - config.min_level] = x
        return last

    def _resample(self, x: tf.Tensor, height: int, width: int, *, name: str) -> tf.Tensor:
        """Brings a map to the pyramid's width and a given size."""
        project = x.shape[-1] != self._config.fpn_num_filters
        shrinks = height < x.shape[1] or width < x.shape[2]
        projects_last = shrinks and self._config.conv_after_downsample
        if project and not projects_last:
            x = self._project(x, name=name)
        if shrinks:
            strides = [
                (size - 1) // target + 1 for size, target in zip(x.shape[1:3], (height, width))
            ]
            pool = tf.keras.layers.MaxPool2D(
                [stride + 1 for stride in strides], strides, padding="same", name=f"{name}/max_pool"
            )
            x = pool(x)
        elif height > x.shape[1] or width > x.shape[2]:
            x = UpsampleTo(height, width, name=f"{name}/upsample")(x)
        return self._project(x, name=name) if project and projects_last else x

    def _project(self, x: tf.Tensor, *, name: str) -> tf.Tensor:
        x = Conv2D(self._config.fpn_num_filters, 1, padding="same", name=f"{name}/conv2d")(x)
        if self._config.apply_bn_for_resampling:
            x = self._batch_norm(name=f"{name}/bn")(x)
        return x

    def _after_fusion(self, x: tf.Tensor, *, name: str) -> tf.Tensor:
        """Applies activation, 3x3 convolution and BN in the configured order."""
        config = self._config
        act = activation_function(config.act_type)
        conv_class = SeparableConv2D if config.separable_conv else Conv2D
        conv = conv_class(
            config.fpn_num_filters,
            3,
            padding="same",
            use_bias=not config.conv_bn_act_pattern,
            name=f"{name}/conv",
        )
        if config.conv_bn_act_pattern:
            return self._batch_norm(name=f"{name}/bn", activation=act)(conv(x))
        x = tf.keras.layers.Activation(act, name=f"{name}/activation")(x)
        return self._batch_norm(name=f"{name}/bn")(conv(x))


def build_neck(
    features: dict[int, tf.Tensor], config: ModelConfig, *, batch_norm: BatchNormFactory
) -> list[tf.Tensor]:
    """Builds the pyramid on backbone features.

    Args:
      features: {level: [batch, h, w, channels]} for at least min_level..5.
      config, batch_norm: as of `build_model`.

    Returns:
      [batch, h, w, fpn_num_filters] for each of min_level..max_level.
    """
    builder = NeckBuilder(config, batch_norm)
    maps = builder.pyramid_levels(features)
    for index in range(config.fpn_cell_repeats):
        maps = builder.cell(maps, name=f"fpn_cells/cell_{index}")
    return maps
