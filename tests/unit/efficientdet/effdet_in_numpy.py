"""State dicts under effdet's names, files of them, and what effdet computes from them.

effdet's `tf_` networks are google/automl's; `under_automls_names` gives the same weights as that
program stores them.

The forward pass is in PyTorch's layout, [batch, channels, height, width], and knows nothing
of ours.
"""

import json
import re

import numpy as np

# Inputs of each node of a BiFPN cell over P3..P7, and the level that it makes.
NODES = ((3, 4), (2, 5), (1, 6), (0, 7), (1, 7, 8), (2, 6, 9), (3, 5, 10), (4, 11))
LEVELS = (3, 2, 1, 0, 1, 2, 3, 4)
STRIDES = (1, 2, 2, 2, 1, 2, 1)
EPSILON = 1e-3


def shapes_of(blocks, *, stem, width, classes):
    """Names and shapes of a detector with one cell and heads of one convolution.

    blocks: (stage, index, kernel, expansion, in, out, squeezed channels) of the backbone.
    """
    shapes = {"backbone.conv_stem.weight": (stem, 3, 3, 3)}

    def norm(name, channels):
        for variable in ("weight", "bias", "running_mean", "running_var"):
            shapes[f"{name}.{variable}"] = (channels,)

    def conv(name, *shape, bias=True):
        shapes[f"{name}.weight"] = shape
        if bias:
            shapes[f"{name}.bias"] = shape[:1]

    def separable(name, outputs):
        conv(f"{name}.conv_dw", width, 1, 3, 3, bias=False)
        conv(f"{name}.conv_pw", outputs, width, 1, 1)

    norm("backbone.bn1", stem)
    features = {}
    for stage, index, kernel, expansion, inputs, outputs, squeezed in blocks:
        name, wide, norms = f"backbone.blocks.{stage}.{index}", inputs * expansion, 1
        if expansion > 1:
            conv(f"{name}.conv_pw", wide, inputs, 1, 1, bias=False)
            norm(f"{name}.bn1", wide)
            norms = 2
        conv(f"{name}.conv_dw", wide, 1, kernel, kernel, bias=False)
        norm(f"{name}.bn{norms}", wide)
        conv(f"{name}.se.conv_reduce", squeezed, wide, 1, 1)
        conv(f"{name}.se.conv_expand", wide, squeezed, 1, 1)
        conv(f"{name}.conv_pw" + "l" * (expansion > 1), outputs, wide, 1, 1, bias=False)
        norm(f"{name}.bn{norms + 1}", outputs)
        features[stage] = outputs
    sources = [features[2], features[4], features[6]]
    conv("fpn.resample.3.conv.conv", width, sources[2], 1, 1)
    norm("fpn.resample.3.conv.bn", width)
    for node, inputs in enumerate(NODES):
        name = f"fpn.cell.0.fnode.{node}"
        shapes[f"{name}.combine.edge_weights"] = (len(inputs),)
        for source in inputs:
            if source < 3 and sources[source] != width:
                conv(f"{name}.combine.resample.{source}.conv.conv", width, sources[source], 1, 1)
                norm(f"{name}.combine.resample.{source}.conv.bn", width)
        separable(f"{name}.after_combine.conv", width)
        norm(f"{name}.after_combine.conv.bn", width)
    for kind, outputs in (("class", 9 * classes), ("box", 36)):
        separable(f"{kind}_net.conv_rep.0", width)
        for level in range(5):
            norm(f"{kind}_net.bn_rep.0.{level}.bn", width)
        separable(f"{kind}_net.predict", outputs)
    return shapes


_OF_NORM = {"weight": "gamma", "bias": "beta"}
_OF_NORM |= {"running_mean": "moving_mean", "running_var": "moving_variance"}
_OF_SEPARABLE = {"conv_dw.weight": "depthwise_kernel", "conv_pw.weight": "pointwise_kernel"}
_OF_SEPARABLE |= {"conv_pw.bias": "bias"}


def under_automls_names(values):
    """Renames a state dict to the variables of google/automl's network, in TensorFlow's layout."""
    blocks = {}  # "stage.index" -> number
    for name in values:
        if match := re.match(r"backbone\.blocks\.(\d+\.\d+)\.", name):
            blocks.setdefault(match[1], len(blocks))
    renamed = {}
    for name, value in values.items():
        if name.endswith("edge_weights"):
            node = re.search(r"fnode\.(\d+)", name)[1]
            for i, weight in enumerate(value):
                suffix = f"_{i}" if i else ""
                renamed[f"fpn_cells/cell_0/fnode{node}/WSM{suffix}"] = np.asarray(weight)
            continue
        if value.ndim == 4:
            is_depthwise = "conv_dw" in name
            value = value.transpose((2, 3, 0, 1) if is_depthwise else (2, 3, 1, 0))
        renamed[_automls_name(name, blocks, values)] = value
    return renamed


def _automls_name(name, blocks, values):
    layer, _, variable = name.rpartition(".")
    kernel = "kernel" if variable == "weight" else "bias"
    if match := re.match(r"backbone\.(?:blocks\.(\d+\.\d+)\.)?(.+)$", layer):
        place = "stem" if match[1] is None else f"blocks_{blocks[match[1]]}"
        part = match[2]
        expands = f"backbone.blocks.{match[1]}.conv_pwl.weight" in values
        if part.startswith("bn"):
            index = int(part[2:]) - 1
            norm = "tpu_batch_normalization" + (f"_{index}" if index else "")
            return f"efficientnet-b0/{place}/{norm}/{_OF_NORM[variable]}"
        if part == "conv_dw":
            return f"efficientnet-b0/{place}/depthwise_conv2d/depthwise_kernel"
        ours = {"se.conv_reduce": "se/conv2d", "se.conv_expand": "se/conv2d_1"}
        ours |= {"conv_stem": "conv2d", "conv_pw": "conv2d"}
        ours |= {"conv_pwl": "conv2d_1" if expands else "conv2d"}
        return f"efficientnet-b0/{place}/{ours[part]}/{kernel}"
    end = f"bn/{_OF_NORM[variable]}" if layer.endswith("bn") else f"conv2d/{kernel}"
    if name.startswith("fpn.resample.3."):
        return f"resample_p6/{end}"
    if match := re.match(r"fpn\.cell\.0\.fnode\.(\d)\.combine\.resample\.(\d)\.", name):
        node, source = int(match[1]), int(match[2])
        scope = f"resample_{NODES[node].index(source)}_{source}_{node + 5}"
        return f"fpn_cells/cell_0/fnode{node}/{scope}/{end}"
    if match := re.match(r"fpn\.cell\.0\.fnode\.(\d)\.after_combine\.conv\.(.+)$", name):
        scope = f"fpn_cells/cell_0/fnode{match[1]}/op_after_combine{int(match[1]) + 5}"
        if match[2] in _OF_SEPARABLE:
            return f"{scope}/conv/{_OF_SEPARABLE[match[2]]}"
        return f"{scope}/bn/{_OF_NORM[variable]}"
    kind, part, rest = re.match(r"(class|box)_net\.(predict|\w+_rep\.0)\.(.+)$", name).groups()
    if part == "bn_rep.0":
        return f"{kind}_net/{kind}-0-bn-{int(rest[0]) + 3}/{_OF_NORM[variable]}"
    end = "predict" if part == "predict" else "0"
    return f"{kind}_net/{kind}-{end}/{_OF_SEPARABLE[rest]}"


def write_safetensors(path, values):
    table, data = {"__metadata__": {"format": "pt"}}, b""
    for name, value in values.items():
        raw = np.ascontiguousarray(value).tobytes()
        places = [len(data), len(data) + len(raw)]
        kind = {"float32": "F32", "int64": "I64"}[value.dtype.name]
        table[name] = {"dtype": kind, "shape": list(value.shape), "data_offsets": places}
        data += raw
    head = json.dumps(table).encode()
    path.write_bytes(len(head).to_bytes(8, "little") + head + data)
    return path


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
