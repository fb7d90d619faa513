"""What effdet computes from its state dicts, in PyTorch's layout, [batch, channels, height, width].

Networks have one cell over P3 to P7 and heads of one convolution. effdet's `tf_` networks are
google/automl's. Nothing here knows of ours.
"""

import numpy as np

# Inputs of each node of a BiFPN cell over P3..P7, and the level that it makes.
NODES = ((3, 4), (2, 5), (1, 6), (0, 7), (1, 7, 8), (2, 6, 9), (3, 5, 10), (4, 11))
LEVELS = (3, 2, 1, 0, 1, 2, 3, 4)
STRIDES = (1, 2, 2, 2, 1, 2, 1)
EPSILON = 1e-3


def _windows(x, kernel, stride, fill=0.0, is_symmetric=False):
    """Returns each offset's part of x: [kernel * kernel, b, c, h, w].

    Under TensorFlow's padding, or that of PyTorch's convolutions.
    """
    counts = [-(-n // stride) for n in x.shape[2:]]
    pads = [max((c - 1) * stride + kernel - n, 0) for c, n in zip(counts, x.shape[2:])]
    around = [(0, 0), (0, 0), *((pad // 2, pad - pad // 2) for pad in pads)]
    if is_symmetric:
        around[2:] = [(kernel // 2, kernel // 2)] * 2
    x = np.pad(x, around, constant_values=fill)
    spans = [(c - 1) * stride + 1 for c in counts]
    return np.stack(
        [
            x[:, :, i : i + spans[0] : stride, j : j + spans[1] : stride]
            for i in range(kernel)
            for j in range(kernel)
        ]
    )


def _pool(x):
    return _windows(x, 3, 2, -np.inf).max(axis=0)


def _swish(x):
    return x / (1.0 + np.exp(-x))


class Effdet:
    """The forward pass; values: under effdet's names."""

    def __init__(self, values, *, epsilon=EPSILON, is_symmetric=False):
        self.values = {name: value.astype(np.float64) for name, value in values.items()}
        self.epsilon, self.is_symmetric = epsilon, is_symmetric

    def conv(self, x, name, stride=1):
        kernel = self.values[f"{name}.weight"]
        parts = _windows(x, kernel.shape[2], stride, is_symmetric=self.is_symmetric)
        flat = kernel.reshape(*kernel.shape[:2], -1)
        if kernel.shape[1] == 1 and x.shape[1] == len(kernel) and kernel.shape[2] > 1:
            result = np.einsum("kbchw,ck->bchw", parts, flat[:, 0])
        else:
            result = np.einsum("kbchw,ock->bohw", parts, flat, optimize=True)
        bias = self.values.get(f"{name}.bias")
        return result if bias is None else result + bias[:, None, None]

    def norm(self, x, name):
        gamma, beta, mean, variance = (
            self.values[f"{name}.{v}"][:, None, None]
            for v in ("weight", "bias", "running_mean", "running_var")
        )
        return (x - mean) / np.sqrt(variance + self.epsilon) * gamma + beta

    def block(self, x, name, stride):
        inputs, norms = x, 1
        if f"{name}.conv_pwl.weight" in self.values:
            x = _swish(self.norm(self.conv(x, f"{name}.conv_pw"), f"{name}.bn1"))
            norms = 2
        x = _swish(self.norm(self.conv(x, f"{name}.conv_dw", stride), f"{name}.bn{norms}"))
        gate = _swish(self.conv(x.mean(axis=(2, 3), keepdims=True), f"{name}.se.conv_reduce"))
        x = x / (1.0 + np.exp(-self.conv(gate, f"{name}.se.conv_expand")))
        project = f"{name}.conv_pw" + "l" * (norms - 1)
        x = self.norm(self.conv(x, project), f"{name}.bn{norms + 1}")
        return x + inputs if x.shape == inputs.shape else x

    def separable(self, x, name):
        return self.conv(self.conv(x, f"{name}.conv_dw"), f"{name}.conv_pw")

    def resample(self, x, size, name):
        if f"{name}.conv.conv.weight" in self.values:
            x = self.norm(self.conv(x, f"{name}.conv.conv"), f"{name}.conv.bn")
        if x.shape[2] > size:
            return _pool(x)
        return x.repeat(size // x.shape[2], axis=2).repeat(size // x.shape[2], axis=3)

    def body(self, x):
        """Returns P3, P4, P5 of a classifier."""
        x = _swish(self.norm(self.conv(x, "backbone.conv_stem", 2), "backbone.bn1"))
        maps = []
        for stage, stride in enumerate(STRIDES):
            index = 0
            while f"backbone.blocks.{stage}.{index}.conv_dw.weight" in self.values:
                x = self.block(x, f"backbone.blocks.{stage}.{index}", 1 if index else stride)
                index += 1
            if stage in (2, 4, 6):
                maps.append(x)
        return maps

    def pyramid(self, x):
        maps = self.body(x)
        x = maps[-1]
        maps.append(
            _pool(self.norm(self.conv(x, "fpn.resample.3.conv.conv"), "fpn.resample.3.conv.bn"))
        )
        maps.append(_pool(maps[-1]))
        sizes = [m.shape[2] for m in maps]
        for node, (inputs, level) in enumerate(zip(NODES, LEVELS)):
            name = f"fpn.cell.0.fnode.{node}"
            weights = np.maximum(self.values[f"{name}.combine.edge_weights"], 0.0)
            weights = weights / (weights.sum() + 1e-4)
            parts = [
                weight * self.resample(maps[i], sizes[level], f"{name}.combine.resample.{i}")
                for weight, i in zip(weights, inputs)
            ]
            x = self.separable(_swish(sum(parts)), f"{name}.after_combine.conv")
            maps.append(self.norm(x, f"{name}.after_combine.conv.bn"))
        return maps[-5:]

    def head(self, maps, kind, outputs):
        """Returns [batch, anchors, outputs]."""
        rows = []
        for level, x in enumerate(maps):
            x = self.separable(x, f"{kind}_net.conv_rep.0")
            x = _swish(self.norm(x, f"{kind}_net.bn_rep.0.{level}.bn"))
            x = self.separable(x, f"{kind}_net.predict").transpose(0, 2, 3, 1)
            rows.append(x.reshape(len(x), -1, outputs))
        return np.concatenate(rows, axis=1)
