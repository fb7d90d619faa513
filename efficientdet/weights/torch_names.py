"""Turns variable names of PyTorch's EfficientNets and EfficientDets into ours.

Four programs: the port of EfficientNet (`_blocks.3._depthwise_conv.weight`), timm
(`blocks.1.0.conv_dw.weight`), effdet, whose detectors have timm's backbone (`backbone.`, `fpn.`,
`class_net.`, `box_net.`), and torchvision (`features.2.0.block.1.0.weight`). timm's and effdet's
files named `tf_` are google/automl's networks with TensorFlow's padding, as ours are; their others,
and torchvision's, pad strided convolutions symmetrically.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

# What effdet counts from 0 is the level less this.
_LEVEL_OF_FIRST = 3
_STATISTICS = {"running_mean": "moving_mean", "running_var": "moving_variance"}
_SEPARABLE = {"conv_dw.weight": "depthwise_kernel", "conv_pw.weight": "pointwise_kernel"}
_SEPARABLE |= {"conv_pw.bias": "bias", "conv.weight": "kernel", "conv.bias": "bias"}

_PORT_TOP = {
    "_conv_stem": "stem_conv2d",
    "_bn0": "stem_bn",
    "_conv_head": "top_conv2d",
    "_bn1": "top_bn",
    "_fc": "top_logits",
}
_PORT_BLOCK = {
    "_expand_conv": "expand_conv2d",
    "_bn0": "expand_bn",
    "_depthwise_conv": "depthwise_conv2d",
    "_bn1": "depthwise_bn",
    "_se_reduce": "se_reduce_conv2d",
    "_se_expand": "se_expand_conv2d",
    "_project_conv": "project_conv2d",
    "_bn2": "project_bn",
}
_TIMM_TOP = {
    "conv_stem": "stem_conv2d",
    "bn1": "stem_bn",
    "conv_head": "top_conv2d",
    "bn2": "top_bn",
    "classifier": "top_logits",
}
_SQUEEZE = {"se.conv_reduce": "se_reduce_conv2d", "se.conv_expand": "se_expand_conv2d"}
_TIMM_BLOCK = {
    "conv_pw": "expand_conv2d",
    "bn1": "expand_bn",
    "conv_dw": "depthwise_conv2d",
    "bn2": "depthwise_bn",
    "conv_pwl": "project_conv2d",
    "bn3": "project_bn",
    **_SQUEEZE,
}
_TIMM_BLOCK_WITHOUT_EXPANSION = {
    "conv_dw": "depthwise_conv2d",
    "bn1": "depthwise_bn",
    "conv_pw": "project_conv2d",
    "bn2": "project_bn",
    **_SQUEEZE,
}
_TORCHVISION_BLOCK = {
    "0.0": "expand_conv2d",
    "0.1": "expand_bn",
    "1.0": "depthwise_conv2d",
    "1.1": "depthwise_bn",
    "2.fc1": "se_reduce_conv2d",
    "2.fc2": "se_expand_conv2d",
    "3.0": "project_conv2d",
    "3.1": "project_bn",
}


def scopes_of(variable_names: Iterable[str]) -> dict[tuple[str, ...], str]:
    """Returns where a model has the layers that effdet names by cell, node and source.

    Returns:
      {(cell, node, source): scope} of what brings a source to a node's size, and {(cell, node):
      scope} of what follows the fusion.
    """
    scopes: dict[tuple[str, ...], str] = {}
    pattern = re.compile(
        r"^(fpn_cells/cell_(\d+)/fnode(\d+)/(?:resample_\d+_(\d+)_\d+|op_after_combine\d+))/"
    )
    for name in variable_names:
        if match := pattern.match(name):
            scope, *place = match.groups()
            scopes[tuple(part for part in place if part is not None)] = scope
    return scopes


def torch_name(
    name: str, *, expands: Mapping[str, bool], scopes: Mapping[tuple[str, ...], str]
) -> str | None:
    """Translates one name; None if it is of none of the four programs.

    Args:
      name: as in the file; of a fusion's weights with the number of the input behind it.
      expands: our name of each block of the backbone, in order -> whether it has an expansion.
      scopes: of `scopes_of`.
    """
    if name.startswith("features."):
        return _from_torchvision(name)
    if name.startswith(("fpn.", "class_net.", "box_net.")):
        return _from_effdet(name, scopes)
    if name.startswith("_"):
        return _from_port(name, list(expands))
    return _from_timm(name.removeprefix("backbone."), expands)


def _variable(layer: str, variable: str) -> str | None:
    """Names a variable of one of our layers; None where it has no such variable."""
    if variable in _STATISTICS:
        return f"{layer}/{_STATISTICS[variable]}"
    if variable not in ("weight", "bias"):
        return None
    if layer.endswith("bn") or re.search(r"-bn-\d+$", layer):
        return f"{layer}/{'gamma' if variable == 'weight' else 'beta'}"
    if variable == "bias":
        return f"{layer}/bias"
    return f"{layer}/{'depthwise_kernel' if layer.endswith('depthwise_conv2d') else 'kernel'}"


def _from_port(name: str, blocks: Sequence[str]) -> str | None:
    layer, _, variable = name.rpartition(".")
    match = re.match(r"^_blocks\.(\d+)\.(\w+)$", layer)
    if match is None:
        return _variable(_PORT_TOP[layer], variable) if layer in _PORT_TOP else None
    number, part = match.groups()
    block = blocks[int(number)] if int(number) < len(blocks) else f"stack_?/block_{number}"
    return _variable(f"{block}/{_PORT_BLOCK[part]}", variable) if part in _PORT_BLOCK else None


def _from_timm(name: str, expands: Mapping[str, bool]) -> str | None:
    layer, _, variable = name.rpartition(".")
    if match := re.match(r"^blocks\.(\d+)\.(\d+)\.(.+)$", layer):
        block = f"stack_{match[1]}/block_{match[2]}"
        layers = _TIMM_BLOCK if expands.get(block, match[1] != "0") else None
        layers = layers or _TIMM_BLOCK_WITHOUT_EXPANSION
        return _variable(f"{block}/{layers[match[3]]}", variable) if match[3] in layers else None
    return _variable(_TIMM_TOP[layer], variable) if layer in _TIMM_TOP else None


def _from_torchvision(name: str) -> str | None:
    layer, _, variable = name.removeprefix("features.").rpartition(".")
    top = {"0.0": "stem_conv2d", "0.1": "stem_bn", "8.0": "top_conv2d", "8.1": "top_bn"}
    if layer in top:
        return _variable(top[layer], variable)
    match = re.match(r"^(\d)\.(\d+)\.block\.(\d)\.(\w+)$", layer)
    if match is None:
        return None
    stage, block, step, part = match.groups()
    step = int(step) + (stage == "1")  # the first stage has no expansion
    ours = _TORCHVISION_BLOCK.get(f"{step}.{part}")
    return _variable(f"stack_{int(stage) - 1}/block_{block}/{ours}", variable) if ours else None


def _from_effdet(name: str, scopes: Mapping[tuple[str, ...], str]) -> str | None:
    if match := re.match(r"^(class|box)_net\.(conv_rep\.(\d+)|predict)\.(.+)$", name):
        kind, _, repeat, variable = match.groups()
        ours = _SEPARABLE.get(variable)
        return f"{kind}_net/{kind}-{repeat or 'predict'}/{ours}" if ours else None
    if match := re.match(r"^(class|box)_net\.bn_rep\.(\d+)\.(\d+)\.bn\.(\w+)$", name):
        kind, repeat, level, variable = match.groups()
        return _variable(f"{kind}_net/{kind}-{repeat}-bn-{int(level) + _LEVEL_OF_FIRST}", variable)
    if match := re.match(r"^fpn\.resample\.(\d+)\.conv\.(conv|bn)\.(\w+)$", name):
        level, part, variable = match.groups()
        scope = f"resample_p{int(level) + _LEVEL_OF_FIRST}"
        return _variable(f"{scope}/{'conv2d' if part == 'conv' else 'bn'}", variable)
    match = re.match(r"^fpn\.cell\.(\d+)\.fnode\.(\d+)\.(combine|after_combine)\.(.+)$", name)
    if match is None:
        return None
    cell, node, part, rest = match.groups()
    if edge := re.match(r"^edge_weights\.(\d+)$", rest):
        suffix = "" if edge[1] == "0" else f"_{edge[1]}"
        return f"fpn_cells/cell_{cell}/fnode{node}/WSM{suffix}"
    if match := re.match(r"^resample\.(\d+)\.conv\.(conv|bn)\.(\w+)$", rest):
        source, layer, variable = match.groups()
        unknown = f"fpn_cells/cell_{cell}/fnode{node}/resample_?_{source}_?"
        scope = scopes.get((cell, node, source), unknown)
        return _variable(f"{scope}/{'conv2d' if layer == 'conv' else 'bn'}", variable)
    scope = scopes.get((cell, node), f"fpn_cells/cell_{cell}/fnode{node}/op_after_combine?")
    if match := re.match(r"^conv\.bn\.(\w+)$", rest):
        return _variable(f"{scope}/bn", match[1])
    ours = _SEPARABLE.get(rest.removeprefix("conv."))
    return f"{scope}/conv/{ours}" if part == "after_combine" and ours else None
