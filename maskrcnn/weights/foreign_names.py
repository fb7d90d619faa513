"""Translates variable names of other programs into ours, one function per program.

`ngc` is NVIDIA's ResNet-50 classifier for TensorFlow; `torchvision` its ResNets and detectors;
`benchmark` maskrcnn-benchmark and NVIDIA's PyTorch program; `detectron` blobs of Caffe2;
`detectron2`, `mmdetection` and `matterport` the programs of these names. Arrays are the matter of
`weight_names`. With group norm, maskrcnn-benchmark keeps the names of batch norm in the body, and
elsewhere makes each layer a sequence of layer and norm.
"""

from __future__ import annotations

import re

NGC, TORCHVISION, BENCHMARK, DETECTRON = "ngc", "torchvision", "benchmark", "detectron"
DETECTRON2, MMDETECTION, MATTERPORT = "detectron2", "mmdetection", "matterport"

_NGC_CONV = re.compile(
    r"^resnet50/(?:btlnck_block_(\d)_(\d+)/(?:bottleneck_(\d)|(shortcut)/conv2d)|(conv2d))"
    r"/(?:(?:conv2d/)(kernel)|BatchNorm/(gamma|beta|moving_mean|moving_variance))$"
)
_TORCH_BLOCK = re.compile(
    r"^(?:layer(\d)\.(\d+)\.)?(?:(conv|bn)(\d)|downsample\.(0|1))\.(weight|bias|running_mean|running_var)$"
)
_TORCH_NORM = {
    "weight": "gamma",
    "bias": "beta",
    "running_mean": "moving_mean",
    "running_var": "moving_variance",
}
_TORCH_LAYER = {"weight": "kernel", "bias": "bias"}
_BLOB_LAYER = {"w": "kernel", "b": "bias"}
_BLOB_NORM = {"s": "gamma", "b": "beta"}


def foreign_name(layout: str, name: str, *, has_group_norm: bool = False) -> str | None:
    """Translates one name of another program; None if it has no place in our networks.

    Args:
      layout: one of the constants of this module.
      name: without a leading `module.`.
      has_group_norm: of the whole file: norms of the backbone are group norms.
    """
    if layout == BENCHMARK:
        return _from_benchmark(name, norm="gn" if has_group_norm else "bn")
    translators = {
        NGC: _from_ngc,
        DETECTRON: _from_detectron,
        TORCHVISION: _from_torchvision,
        DETECTRON2: _from_detectron2,
        MMDETECTION: _from_mmdetection,
        MATTERPORT: _from_matterport,
    }
    return translators[layout](name)


def _from_ngc(name: str) -> str | None:
    match = _NGC_CONV.match(name)
    if match is None:
        return None
    stage, block, conv, shortcut, _, kernel, norm = match.groups()
    prefix = "backbone" if stage is None else f"backbone/layer{int(stage) + 1}/{block}"
    if shortcut:
        return f"{prefix}/downsample_{'conv/kernel' if kernel else f'bn/{norm}'}"
    number = conv or "1"
    return f"{prefix}/conv{number}/kernel" if kernel else f"{prefix}/bn{number}/{norm}"


def _from_torch_resnet(name: str, *, prefix: str, norm: str) -> str | None:
    match = _TORCH_BLOCK.match(name)
    if match is None:
        return None
    stage, block, kind, number, downsample, variable = match.groups()
    if stage is not None:
        prefix = f"{prefix}/layer{stage}/{block}"
    is_norm = kind == "bn" or downsample == "1"
    if not is_norm and variable != "weight":
        return None
    layer = "" if downsample is None else "downsample_"
    layer += f"{norm if is_norm else 'conv'}{number or ''}"
    return f"{prefix}/{layer}/{_TORCH_NORM[variable] if is_norm else 'kernel'}"


def _from_torchvision(name: str) -> str | None:
    body = name.removeprefix("backbone.body.")
    if found := _from_torch_resnet(body, prefix="backbone", norm="bn"):
        return found
    layer, _, variable = name.rpartition(".")
    ours, is_norm = None, False
    # Newer versions wrap each convolution into a sequence, older ones do not; the networks of the
    # second version have a norm in it, and a sequence as box head.
    if match := re.match(r"^backbone\.fpn\.(inner|layer)_blocks\.(\d)(?:\.([01]))?$", layer):
        ours, is_norm = f"fpn/{match[1]}{int(match[2]) + 2}", match[3] == "1"
    elif match := re.match(r"^rpn\.head\.conv\.([1-9])\.0$", layer):
        ours = f"rpn/conv{int(match[1]) + 1}"
    elif match := re.match(r"^rpn\.head\.(conv|cls_logits|bbox_pred)(?:\.0\.0)?$", layer):
        ours = f"rpn/{match[1]}"
    elif match := re.match(r"^roi_heads\.box_head\.(\d)\.([01])$", layer):
        ours, is_norm = f"box_head/conv{int(match[1]) + 1}", match[2] == "1"
    elif re.match(r"^roi_heads\.box_head\.\d$", layer):
        ours = "box_head/fc6"
    elif match := re.match(r"^roi_heads\.box_(?:head|predictor)\.([a-z]\w+)$", layer):
        ours = f"box_head/{match[1]}"
    elif match := re.match(r"^roi_heads\.mask_predictor\.(\w+)$", layer):
        ours = f"mask_head/{match[1]}"
    elif match := re.match(r"^roi_heads\.mask_head\.(?:mask_fcn(\d)|(\d)\.([01]))$", layer):
        ours, is_norm = f"mask_head/mask_fcn{match[1] or int(match[2]) + 1}", match[3] == "1"
    return _torch_variable(ours, variable, norm="bn" if is_norm else "")


def _torch_variable(ours: str | None, variable: str, *, norm: str = "") -> str | None:
    """Names a variable of our layer, or of the norm that follows it; None if there is none."""
    variables = _TORCH_NORM if norm else _TORCH_LAYER
    if ours is None or variable not in variables:
        return None
    return f"{ours}_{norm}/{variables[variable]}" if norm else f"{ours}/{variables[variable]}"


def _from_benchmark(name: str, *, norm: str) -> str | None:
    for start, prefix in (
        ("backbone.body.stem.", "backbone"),
        ("backbone.body.", "backbone"),
        ("roi_heads.box.feature_extractor.head.", "box_head"),
    ):
        if name.startswith(start):
            return _from_torch_resnet(name[len(start) :], prefix=prefix, norm=norm)
    layer, _, variable = name.rpartition(".")
    ours, is_norm = None, False
    # With group norm a layer is a sequence whose second entry is the norm.
    if match := re.match(r"^backbone\.fpn\.fpn_(inner|layer)(\d)(?:\.([01]))?$", layer):
        ours, is_norm = f"fpn/{match[1]}{int(match[2]) + 1}", match[3] == "1"
    elif match := re.match(r"^rpn\.head\.(conv|cls_logits|bbox_pred)$", layer):
        ours = f"rpn/{match[1]}"
    elif match := re.match(r"^roi_heads\.box\.feature_extractor\.xconvs\.(\d+)$", layer):
        steps = 3 if norm == "gn" else 2  # convolution, norm, ReLU
        index, step = divmod(int(match[1]), steps)
        ours, is_norm = f"box_head/conv{index + 1}", step == 1
    elif match := re.match(
        r"^roi_heads\.(box|mask)\.(?:feature_extractor|predictor)\.(\w+)(?:\.([01]))?$", layer
    ):
        ours, is_norm = f"{match[1]}_head/{match[2]}", match[3] == "1"
    return _torch_variable(ours, variable, norm=norm if is_norm else "")


def _from_detectron(name: str) -> str | None:
    if match := re.match(r"^(?:res_)?conv1_(bn|gn)_([sb])$", name):
        return f"backbone/{match[1]}1/{_BLOB_NORM[match[2]]}"
    if name == "conv1_w":
        return "backbone/conv1/kernel"
    if match := re.match(r"^res([2-5])_(\d+)_branch(1|2[abc])_(?:(w)|(bn|gn)_([sb]))$", name):
        stage, block, branch, is_conv, norm, variable = match.groups()
        number = "" if branch == "1" else str("abc".index(branch[1]) + 1)
        layer = "downsample_" if branch == "1" else ""
        layer += f"conv{number}/kernel" if is_conv else f"{norm}{number}/{_BLOB_NORM[variable]}"
        return f"backbone/layer{int(stage) - 1}/{block}/{layer}"
    layer, _, variable = name.rpartition("_")
    if variable not in _BLOB_LAYER:
        return None
    ours = None
    if match := re.match(r"^fpn_(inner_)?res([2-5])_\d+_sum(?:_lateral)?$", layer):
        ours = f"fpn/{'inner' if match[1] else 'layer'}{match[2]}"
    elif match := re.match(r"^(conv_rpn|rpn_cls_logits|rpn_bbox_pred)(?:_fpn2)?$", layer):
        ours = f"rpn/{match[1].removeprefix('rpn_').replace('conv_rpn', 'conv')}"
    elif layer in ("fc6", "fc7", "cls_score", "bbox_pred"):
        ours = f"box_head/{layer}"
    elif match := re.match(r"^_\[mask\]_fcn(\d)$", layer):
        ours = f"mask_head/mask_fcn{match[1]}"
    elif layer in ("conv5_mask", "mask_fcn_logits"):
        ours = f"mask_head/{layer}"
    return f"{ours}/{_BLOB_LAYER[variable]}" if ours else None


_DETECTRON2_BODY = re.compile(
    r"^(?:backbone\.(?:bottom_up\.)?|(roi_heads)\.)(?:stem|res(\d)\.(\d+))"
    r"\.(?:conv(\d)|shortcut)\.(?:(weight)|norm\.(\w+))$"
)
_DETECTRON2_LAYERS = {
    "proposal_generator.rpn_head.conv": "rpn/conv",
    "proposal_generator.rpn_head.objectness_logits": "rpn/cls_logits",
    "proposal_generator.rpn_head.anchor_deltas": "rpn/bbox_pred",
    "roi_heads.box_head.fc1": "box_head/fc6",
    "roi_heads.box_head.fc2": "box_head/fc7",
    "roi_heads.box_predictor.cls_score": "box_head/cls_score",
    "roi_heads.box_predictor.bbox_pred": "box_head/bbox_pred",
    "roi_heads.mask_head.deconv": "mask_head/conv5_mask",
    "roi_heads.mask_head.predictor": "mask_head/mask_fcn_logits",
    **{f"roi_heads.mask_head.mask_fcn{i}": f"mask_head/mask_fcn{i}" for i in range(1, 9)},
    **{f"backbone.fpn_lateral{level}": f"fpn/inner{level}" for level in range(2, 6)},
    **{f"backbone.fpn_output{level}": f"fpn/layer{level}" for level in range(2, 6)},
}
_MMDETECTION_LAYERS = {
    "rpn_head.rpn_conv": "rpn/conv",
    "rpn_head.rpn_cls": "rpn/cls_logits",
    "rpn_head.rpn_reg": "rpn/bbox_pred",
    "roi_head.bbox_head.shared_fcs.0": "box_head/fc6",
    "roi_head.bbox_head.shared_fcs.1": "box_head/fc7",
    "roi_head.bbox_head.fc_cls": "box_head/cls_score",
    "roi_head.bbox_head.fc_reg": "box_head/bbox_pred",
    "roi_head.mask_head.upsample": "mask_head/conv5_mask",
    "roi_head.mask_head.conv_logits": "mask_head/mask_fcn_logits",
    **{f"roi_head.mask_head.convs.{i}.conv": f"mask_head/mask_fcn{i + 1}" for i in range(8)},
    **{f"neck.lateral_convs.{i}.conv": f"fpn/inner{i + 2}" for i in range(4)},
    **{f"neck.fpn_convs.{i}.conv": f"fpn/layer{i + 2}" for i in range(4)},
}


def _of_layer(name: str, layers: dict[str, str]) -> str | None:
    layer, _, variable = name.rpartition(".")
    return _torch_variable(layers.get(layer), variable)


def _from_detectron2(name: str) -> str | None:
    match = _DETECTRON2_BODY.match(name)
    if match is None:
        return _of_layer(name, _DETECTRON2_LAYERS)
    heads, stage, block, number, weight, norm = match.groups()
    prefix = "box_head" if heads else "backbone"
    prefix += f"/layer{int(stage) - 1}/{block}/" if stage else "/"
    prefix += "" if number else "downsample_"
    if weight:
        return f"{prefix}conv{number or ''}/kernel"
    return f"{prefix}bn{number or ''}/{_TORCH_NORM[norm]}" if norm in _TORCH_NORM else None


def _from_mmdetection(name: str) -> str | None:
    if name.startswith("backbone."):
        return _from_torch_resnet(name.removeprefix("backbone."), prefix="backbone", norm="bn")
    return _of_layer(name, _MMDETECTION_LAYERS)


_MATTERPORT_BLOCK = re.compile(r"^(res|bn)([2-5])([a-w])_branch(1|2[abc])$")
_MATTERPORT_LAYERS = {
    "conv1": "backbone/conv1",
    "bn_conv1": "backbone/bn1",
    **{f"fpn_c{level}p{level}": f"fpn/inner{level}" for level in range(2, 6)},
    **{f"fpn_p{level}": f"fpn/layer{level}" for level in range(2, 6)},
    "rpn_conv_shared": "rpn/conv",
    "rpn_class_raw": "rpn/cls_logits",
    "rpn_bbox_pred": "rpn/bbox_pred",
    **{f"mrcnn_class_conv{i}": f"box_head/fc{i + 5}" for i in (1, 2)},
    **{f"mrcnn_class_bn{i}": f"box_head/fc{i + 5}_bn" for i in (1, 2)},
    "mrcnn_class_logits": "box_head/cls_score",
    "mrcnn_bbox_fc": "box_head/bbox_pred",
    **{f"mrcnn_mask_conv{i}": f"mask_head/mask_fcn{i}" for i in range(1, 5)},
    **{f"mrcnn_mask_bn{i}": f"mask_head/mask_fcn{i}_bn" for i in range(1, 5)},
    "mrcnn_mask_deconv": "mask_head/conv5_mask",
    "mrcnn_mask": "mask_head/mask_fcn_logits",
}


def _from_matterport(name: str) -> str | None:
    """Kernels, biases and norms have Keras' names, which are ours."""
    layer, _, variable = name.rpartition("/")
    if match := _MATTERPORT_BLOCK.match(layer):
        kind, stage, block, branch = match.groups()
        kind = "conv" if kind == "res" else "bn"
        number = "" if branch == "1" else str("abc".index(branch[1]) + 1)
        prefix = "" if number else "downsample_"
        place = f"layer{int(stage) - 1}/{ord(block) - ord('a')}"
        return f"backbone/{place}/{prefix}{kind}{number}/{variable}"
    return f"{_MATTERPORT_LAYERS[layer]}/{variable}" if layer in _MATTERPORT_LAYERS else None
