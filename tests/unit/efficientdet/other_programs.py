"""Our values under the names and in the layout of other programs, and files of them.

Networks have one cell over P3 to P7 and heads of one convolution.
"""

import json
import re

import numpy as np

_TORCH = {"kernel": "weight", "depthwise_kernel": "weight", "bias": "bias"}
_TORCH |= {"gamma": "weight", "beta": "bias"}
_TORCH |= {"moving_mean": "running_mean", "moving_variance": "running_var"}
_EFFDETS_SEPARABLE = {"depthwise_kernel": "conv_dw.weight", "pointwise_kernel": "conv_pw.weight"}
_EFFDETS_SEPARABLE |= {"bias": "conv_pw.bias"}
_TIMMS_SQUEEZE = {"se_reduce_conv2d": "se.conv_reduce", "se_expand_conv2d": "se.conv_expand"}
_TIMMS_BLOCK = {
    "expand_conv2d": "conv_pw",
    "expand_bn": "bn1",
    "depthwise_conv2d": "conv_dw",
    "depthwise_bn": "bn2",
    "project_conv2d": "conv_pwl",
    "project_bn": "bn3",
}
_TIMMS_BLOCK_WITHOUT_EXPANSION = {
    "depthwise_conv2d": "conv_dw",
    "depthwise_bn": "bn1",
    "project_conv2d": "conv_pw",
    "project_bn": "bn2",
}


def _in_torchs_layout(name, value):
    if value.ndim < 4:
        return value
    return value.transpose((2, 3, 0, 1) if "depthwise" in name else (3, 2, 0, 1))


def _expands(block, ours):
    return f"{block}/expand_conv2d/kernel" in ours


def under_effdets_names(ours):
    """Returns a detector's state dict; its backbone, without the prefix, is timm's."""
    values, edges = {}, {}
    for name, value in ours.items():
        if match := re.match(r"fpn_cells/cell_0/fnode(\d)/WSM", name):
            edges.setdefault(f"fpn.cell.0.fnode.{match[1]}.combine.edge_weights", []).append(value)
        else:
            values[_effdets_name(name, ours)] = _in_torchs_layout(name, value)
    return values | {name: np.array(weights) for name, weights in edges.items()}


def under_timms_names(ours):
    """Returns the backbone of a classifier's state dict."""
    return {
        name.removeprefix("backbone."): value
        for name, value in under_effdets_names(ours).items()
        if name.startswith("backbone.")
    }


def _effdets_name(name, ours):
    scope, _, variable = name.rpartition("/")
    place, _, layer = scope.rpartition("/")
    end = _TORCH.get(variable)
    if scope in ("stem_conv2d", "stem_bn"):
        return f"backbone.{'bn1' if layer == 'stem_bn' else 'conv_stem'}.{end}"
    if match := re.match(r"stack_(\d)/block_(\d)$", place):
        parts = _TIMMS_BLOCK if _expands(place, ours) else _TIMMS_BLOCK_WITHOUT_EXPANSION
        return f"backbone.blocks.{match[1]}.{match[2]}.{(parts | _TIMMS_SQUEEZE)[layer]}.{end}"
    projection = f"conv.{'bn' if layer == 'bn' else 'conv'}.{end}"
    if place == "resample_p6":
        return f"fpn.resample.3.{projection}"
    if match := re.match(r"fpn_cells/cell_0/fnode(\d)/resample_\d_(\d+)_\d+$", place):
        return f"fpn.cell.0.fnode.{match[1]}.combine.resample.{match[2]}.{projection}"
    if match := re.match(r"fpn_cells/cell_0/fnode(\d)/op_after_combine\d+$", place):
        part = f"bn.{end}" if layer == "bn" else _EFFDETS_SEPARABLE[variable]
        return f"fpn.cell.0.fnode.{match[1]}.after_combine.conv.{part}"
    if match := re.match(r"\w+-0-bn-(\d)$", layer):
        return f"{place}.bn_rep.0.{int(match[1]) - 3}.bn.{end}"
    part = "predict" if layer.endswith("predict") else "conv_rep.0"
    return f"{place}.{part}.{_EFFDETS_SEPARABLE[variable]}"


def under_automls_names(ours):
    """Numbers blocks throughout, and the layers of a kind within each; all else is called alike."""
    renamed = {}
    places = (name.rsplit("/", 2)[0] for name in ours if name.startswith("stack_"))
    blocks = list(dict.fromkeys(places))
    for name, value in ours.items():
        *place, layer, variable = name.split("/")
        if name.startswith("stem_"):
            kind = "tpu_batch_normalization" if layer == "stem_bn" else "conv2d"
            name = f"efficientnet-b0/stem/{kind}/{variable}"
        elif name.startswith("stack_"):
            block = "/".join(place)
            convolutions = ["project_conv2d"]
            norms = ["depthwise_bn", "project_bn"]
            if _expands(block, ours):
                convolutions.insert(0, "expand_conv2d")
                norms.insert(0, "expand_bn")
            kinds = {"tpu_batch_normalization": norms, "conv2d": convolutions}
            kinds |= {"depthwise_conv2d": ["depthwise_conv2d"]}
            kinds |= {"se/conv2d": ["se_reduce_conv2d", "se_expand_conv2d"]}
            kind = next(kind for kind, layers in kinds.items() if layer in layers)
            index = kinds[kind].index(layer)
            counted = f"{kind}_{index}" if index else kind
            name = f"efficientnet-b0/blocks_{blocks.index(block)}/{counted}/{variable}"
        renamed[name] = value
    return renamed


def under_torchvisions_names(ours):
    """Returns a classifier's state dict with the values of our backbone."""
    layers = {"expand": 0, "depthwise": 1, "se": 2, "project": 3}
    values = {"features.8.0.weight": np.zeros((1280, 1, 1, 1), np.float32)}
    for name, value in ours.items():
        if not name.startswith(("stem_", "stack_")):
            continue
        *place, layer, variable = name.split("/")
        theirs = f"0.{int(layer == 'stem_bn')}"
        if place:
            stage, block = (int(part.split("_")[1]) for part in place)
            step = layers[layer.split("_")[0]] - (stage == 0)
            part = f"fc{1 + ('expand' in layer)}" if layer.startswith("se_") else int("bn" in layer)
            theirs = f"{stage + 1}.{block}.block.{step}.{part}"
        values[f"features.{theirs}.{_TORCH[variable]}"] = _in_torchs_layout(name, value)
    return values


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
