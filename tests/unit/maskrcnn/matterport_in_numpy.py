"""Weights under matterport's names, and what its network computes from them, in NumPy.

[batch, height, width, channels], as there; one block in a stage.
"""

import h5py
import network_in_numpy as reference
import numpy as np

EPSILON = 1e-3
RPN_DEVIATIONS = (0.1, 0.1, 0.2, 0.2)


def random_weights(*, width, filters, hidden, classes):
    """Makes the variables of a mask_rcnn .h5; classes include the background."""
    rng, weights = np.random.default_rng(0), {}

    def layer(name, *shape):
        scale = 1.0 / np.sqrt(np.prod(shape[:-1]))
        weights[f"{name}/kernel"] = rng.normal(0.0, scale, shape)
        weights[f"{name}/bias"] = rng.normal(0.0, 0.3, shape[-1])

    def norm(name, channels):
        for variable in ("gamma", "moving_variance"):
            weights[f"{name}/{variable}"] = rng.uniform(0.5, 1.5, channels)
        for variable in ("beta", "moving_mean"):
            weights[f"{name}/{variable}"] = rng.normal(0.0, 0.2, channels)

    layer("conv1", 7, 7, 3, width)
    norm("bn_conv1", width)
    channels = width
    for stage in range(2, 6):
        mid = width << (stage - 2)
        for branch, shape in (
            ("2a", (1, 1, channels, mid)),
            ("2b", (3, 3, mid, mid)),
            ("2c", (1, 1, mid, 4 * mid)),
            ("1", (1, 1, channels, 4 * mid)),
        ):
            layer(f"res{stage}a_branch{branch}", *shape)
            norm(f"bn{stage}a_branch{branch}", shape[-1])
        channels = 4 * mid
        layer(f"fpn_c{stage}p{stage}", 1, 1, channels, filters)
        layer(f"fpn_p{stage}", 3, 3, filters, filters)
    layer("rpn_conv_shared", 3, 3, filters, 2 * filters)
    layer("rpn_class_raw", 1, 1, 2 * filters, 6)
    layer("rpn_bbox_pred", 1, 1, 2 * filters, 12)
    layer("mrcnn_class_conv1", 7, 7, filters, hidden)
    layer("mrcnn_class_conv2", 1, 1, hidden, hidden)
    for index in (1, 2):
        norm(f"mrcnn_class_bn{index}", hidden)
    layer("mrcnn_class_logits", hidden, classes)
    layer("mrcnn_bbox_fc", hidden, 4 * classes)
    for index in range(1, 5):
        layer(f"mrcnn_mask_conv{index}", 3, 3, filters, filters)
        norm(f"mrcnn_mask_bn{index}", filters)
    layer("mrcnn_mask_deconv", 2, 2, filters, filters)
    layer("mrcnn_mask", 1, 1, filters, classes)
    return {name: value.astype(np.float32) for name, value in weights.items()}


def write_keras_h5(path, weights):
    """Writes a file as Keras 2.0 did: a group for each layer, the RPN's layers in one."""
    layers = {}
    for name in weights:
        layer = name.split("/")[0]
        layers.setdefault("rpn_model" if layer.startswith("rpn_") else layer, []).append(name)
    with h5py.File(path, "w") as file:
        file.attrs["layer_names"] = [name.encode() for name in ("input_image", *layers)]
        file.create_group("input_image").attrs["weight_names"] = np.zeros(0, "S1")
        for layer, names in layers.items():
            group = file.create_group(layer)
            group.attrs["weight_names"] = [f"{name}:0".encode() for name in names]
            for name in names:
                group[f"{name}:0"] = weights[name]
    return path


class Matterport:
    """The forward pass."""

    def __init__(self, weights):
        self.weights = {name: value.astype(np.float64) for name, value in weights.items()}

    def conv(self, x, name, *, stride=1, padding="same"):
        kernel, bias = (self.weights[f"{name}/{kind}"] for kind in ("kernel", "bias"))
        return reference.conv2d(x, kernel, stride=stride, padding=padding, bias=bias)

    def norm(self, x, name):
        return reference.norm(x, self.weights, name, epsilon=EPSILON)

    def pyramid(self, images):
        x = self.conv(images, "conv1", stride=2, padding="symmetric")
        x = reference.max_pool(reference.relu(self.norm(x, "bn_conv1")), padding="same")
        maps = {}
        for stage in range(2, 6):
            stride = 1 if stage == 2 else 2
            y = x
            for branch in ("2a", "2b", "2c"):
                strides = stride if branch == "2a" else 1
                y = self.conv(y, f"res{stage}a_branch{branch}", stride=strides)
                y = self.norm(y, f"bn{stage}a_branch{branch}")
                y = y if branch == "2c" else reference.relu(y)
            x = self.conv(x, f"res{stage}a_branch1", stride=stride)
            x = maps[stage] = reference.relu(self.norm(x, f"bn{stage}a_branch1") + y)
        return reference.pyramid(
            maps,
            lambda x, level: self.conv(x, f"fpn_c{level}p{level}"),
            lambda x, level: self.conv(x, f"fpn_p{level}"),
        )

    def rpn(self, x):
        """Returns logits [b, h, w, 3] of its probabilities, and deltas in units of anchors."""
        hidden = reference.relu(self.conv(x, "rpn_conv_shared"))
        pairs = np.exp(self.conv(hidden, "rpn_class_raw").reshape(*x.shape[:3], 3, 2))
        probabilities = pairs[..., 1] / pairs.sum(axis=-1)
        deltas = self.conv(hidden, "rpn_bbox_pred").reshape(*x.shape[:3], 3, 4)
        return np.log(probabilities) - np.log1p(-probabilities), deltas * RPN_DEVIATIONS

    def boxes(self, rois):
        """rois: [n, 7, 7, c]; returns class logits [n, classes] and deltas [n, classes, 4]."""
        x = rois.reshape(len(rois), -1)
        for index in (1, 2):
            kernel = self.weights[f"mrcnn_class_conv{index}/kernel"]
            x = x @ kernel.reshape(-1, kernel.shape[-1])
            x = x + self.weights[f"mrcnn_class_conv{index}/bias"]
            x = reference.relu(self.norm(x, f"mrcnn_class_bn{index}"))
        logits, deltas = (
            x @ self.weights[f"{name}/kernel"] + self.weights[f"{name}/bias"]
            for name in ("mrcnn_class_logits", "mrcnn_bbox_fc")
        )
        return logits, deltas.reshape(len(x), -1, 4)

    def masks(self, rois):
        """rois: [n, 14, 14, c]; returns logits [n, 28, 28, classes]."""
        x = rois
        for index in range(1, 5):
            x = self.norm(self.conv(x, f"mrcnn_mask_conv{index}"), f"mrcnn_mask_bn{index}")
            x = reference.relu(x)
        kernel, bias = (self.weights[f"mrcnn_mask_deconv/{kind}"] for kind in ("kernel", "bias"))
        x = reference.relu(reference.transposed_conv(x, kernel, bias))
        return self.conv(x, "mrcnn_mask")


def pyramid_anchors(shape, stride, side):
    """Anchors of one level, (y1, x1, y2, x2), row by row, ratios 1/2, 1, 2 of width to height."""
    ratios = np.array([0.5, 1.0, 2.0])
    heights, widths = side / np.sqrt(ratios), side * np.sqrt(ratios)
    y, x = np.meshgrid(np.arange(shape[0]) * stride, np.arange(shape[1]) * stride, indexing="ij")
    centres = np.stack([y, x], axis=-1)[:, :, np.newaxis]
    halves = np.stack([heights, widths], axis=-1) / 2
    return np.concatenate([centres - halves, centres + halves], axis=-1).reshape(-1, 4)
