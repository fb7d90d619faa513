"""Turns variable names and array layouts of other programs into ours.

Layouts: `ours`; `ngc`, NVIDIA's ResNet-50 classifier for TensorFlow; `torchvision`, its ResNets and
detectors; `benchmark`, maskrcnn-benchmark and NVIDIA's PyTorch program; `detectron`, blobs of
Caffe2. The last two share conventions, as one was trained from the other's backbones.

What surprises a newcomer: PyTorch flattens RoI features by channel, row, column and we by row,
column, channel, so that the first dense layer's inputs are permuted, not only transposed.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from maskrcnn.config import (
    IMAGENET_MEAN_RGB,
    IMAGENET_STDDEV_RGB,
    OUR_CONVENTIONS,
    Conventions,
    ModelConfig,
)

OURS, NGC, TORCHVISION, BENCHMARK, DETECTRON = (
    *("ours", "ngc", "torchvision"),
    *("benchmark", "detectron"),
)
CLASS_PREDICTORS = ("box_head/cls_score", "box_head/bbox_pred", "mask_head/mask_fcn_logits")

_MSRA_MEAN_RGB = (122.7717, 115.9465, 102.9801)
_PARTS = r"(?:backbone|fpn|rpn|box_head|mask_head)/"
_OURS = re.compile(rf"^(?:model/|ema/)?({_PARTS}.+)$")
_AVERAGE_PREFIX, _AVERAGE_SUFFIX = "ema/", "/average"
# Ratios height / width of the anchors of all other programs, in their order.
_FOREIGN_RATIOS = (0.5, 1.0, 2.0)


class Translated(NamedTuple):
    """One array under our name, in our layout."""

    array: np.ndarray
    source: str  # its name in the file
    is_average: bool = False


def layout_of(names: Iterable[str]) -> str:
    """Recognises the program that named these arrays; '' if none of the known did."""
    names = set(names)
    if any(name.startswith("resnet50/btlnck_block_") for name in names):
        return NGC
    if "res2_0_branch2a_w" in names:
        return DETECTRON
    marks = ("backbone.body.stem.", "backbone.fpn.fpn_", "roi_heads.box.feature_extractor.")
    if any(name.startswith(marks) for name in names):
        return BENCHMARK
    if {"layer1.0.conv1.weight", "backbone.body.layer1.0.conv1.weight"} & names:
        return TORCHVISION
    return OURS if any(_OURS.match(name) for name in names) else ""


def conventions_of_layout(layout: str, arrays: Mapping[str, np.ndarray]) -> Conventions | None:
    """Returns what the weights of another program demand; None for ours.

    Detectron's ResNets come from MSRA's, with the stride in the 1x1 convolution; its ResNeXt and
    its networks with group norm have it in the 3x3.
    """
    if layout == NGC:
        return Conventions("same", "3x3", IMAGENET_MEAN_RGB, IMAGENET_STDDEV_RGB)
    if layout == TORCHVISION:
        return OUR_CONVENTIONS
    if layout not in (BENCHMARK, DETECTRON):
        return None
    is_grouped = any(
        re.search(r"res\d_\d+_branch2b_w$|layer\d\.\d+\.conv2\.weight$", name)
        and array.ndim == 4
        and array.shape[0] != array.shape[1]
        for name, array in arrays.items()
    )
    in_first = not is_grouped and not _has_group_norm(layout, arrays)
    return Conventions("symmetric", "1x1" if in_first else "3x3", _MSRA_MEAN_RGB, (1.0, 1.0, 1.0))


def _has_group_norm(layout: str, names: Iterable[str]) -> bool:
    if layout == DETECTRON:
        return any(name.endswith("_gn_s") for name in names)
    # There, a group norm sits in the slot of a batch norm, without statistics.
    return layout == BENCHMARK and not any(name.endswith("running_mean") for name in names)


def translate(
    layout: str, arrays: Mapping[str, np.ndarray], config: ModelConfig, *, prefer_average: bool
) -> tuple[dict[str, Translated], dict[str, str]]:
    """Renames the arrays of a file to our names and brings them into our layout.

    Args:
      layout: of `layout_of`.
      arrays: as read from the file.
      config: of the network that will receive them.
      prefer_average: where our file has both a value and its moving average, take the average.

    Returns:
      {our name: array}, and {name in the file: why it has no place among ours}. Predictors have the
      file's classes, in our order: the background last or, where we have none, left out.
    """
    if layout == OURS:
        return _translate_ours(arrays, prefer_average=prefer_average)
    has_group_norm = _has_group_norm(layout, arrays)
    translated: dict[str, Translated] = {}
    unused: dict[str, str] = {}
    for source, array in arrays.items():
        name = foreign_name(layout, source, has_group_norm=has_group_norm)
        if name is None:
            is_state = source.endswith(("_momentum", "/Momentum", "num_batches_tracked"))
            unused[source] = "training state" if is_state else "not a variable of this network"
            continue
        if layout != NGC:
            array = _to_our_axes(name, array, box_resolution=config.box_resolution)
        translated[name] = Translated(_to_our_order(name, array, layout, config), source)
    if layout in (BENCHMARK, DETECTRON):
        _add_statistics(translated)
    return translated, unused


def _translate_ours(
    arrays: Mapping[str, np.ndarray], *, prefer_average: bool
) -> tuple[dict[str, Translated], dict[str, str]]:
    has_prefixes = any(name.startswith("model/") for name in arrays)
    translated: dict[str, Translated] = {}
    unused: dict[str, str] = {}
    for source, array in arrays.items():
        match = _OURS.match(source)
        if match is None or (has_prefixes and not source.startswith(("model/", _AVERAGE_PREFIX))):
            unused[source] = "training state" if has_prefixes else "not a variable of this network"
            continue
        is_average = source.startswith(_AVERAGE_PREFIX) or source.endswith(_AVERAGE_SUFFIX)
        name = match[1].removesuffix(_AVERAGE_SUFFIX)
        known = translated.get(name)
        if known is not None and is_average != prefer_average:
            unused[source] = f"{known.source} is used"
            continue
        if known is not None:
            unused[known.source] = f"{source} is used"
        translated[name] = Translated(array, source, is_average)
    return translated, unused


# --- names ----------------------------------------------------------------------------------------

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
      layout: one of `NGC`, `TORCHVISION`, `BENCHMARK`, `DETECTRON`.
      name: without a leading `module.`.
      has_group_norm: of the whole file: norms of the backbone are group norms.
    """
    if layout == NGC:
        return _from_ngc(name)
    if layout == DETECTRON:
        return _from_detectron(name)
    if layout == TORCHVISION:
        return _from_torchvision(name)
    return _from_benchmark(name, norm="gn" if has_group_norm else "bn")


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
    suffix = number if downsample is None else ""
    layer = "downsample_" if downsample is not None else ""
    layer += f"{norm}{suffix}" if is_norm else f"conv{suffix}"
    return f"{prefix}/{layer}/{_TORCH_NORM[variable] if is_norm else 'kernel'}"


def _from_torchvision(name: str) -> str | None:
    body = name.removeprefix("backbone.body.")
    if found := _from_torch_resnet(body, prefix="backbone", norm="bn"):
        return found
    layer, _, variable = name.rpartition(".")
    if variable not in _TORCH_LAYER:
        return None
    ours = None
    # Newer versions wrap each convolution into a sequence, older ones do not.
    if match := re.match(r"^backbone\.fpn\.(inner|layer)_blocks\.(\d)(?:\.0)?$", layer):
        ours = f"fpn/{match[1]}{int(match[2]) + 2}"
    elif match := re.match(r"^rpn\.head\.(conv|cls_logits|bbox_pred)(?:\.0\.0)?$", layer):
        ours = f"rpn/{match[1]}"
    elif match := re.match(r"^roi_heads\.box_(?:head|predictor)\.(\w+)$", layer):
        ours = f"box_head/{match[1]}"
    elif match := re.match(r"^roi_heads\.mask_predictor\.(\w+)$", layer):
        ours = f"mask_head/{match[1]}"
    elif match := re.match(r"^roi_heads\.mask_head\.(?:mask_fcn(\d)|(\d)\.0)$", layer):
        ours = f"mask_head/mask_fcn{match[1] or int(match[2]) + 1}"
    return f"{ours}/{_TORCH_LAYER[variable]}" if ours else None


def _from_benchmark(name: str, *, norm: str) -> str | None:
    for start, prefix in (
        ("backbone.body.stem.", "backbone"),
        ("backbone.body.", "backbone"),
        ("roi_heads.box.feature_extractor.head.", "box_head"),
    ):
        if name.startswith(start):
            return _from_torch_resnet(name[len(start) :], prefix=prefix, norm=norm)
    layer, _, variable = name.rpartition(".")
    if variable not in _TORCH_LAYER:
        return None
    is_norm = False
    ours = None
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
    if ours is None:
        return None
    return (
        f"{ours}_{norm}/{_TORCH_NORM[variable]}" if is_norm else f"{ours}/{_TORCH_LAYER[variable]}"
    )


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


# --- arrays ---------------------------------------------------------------------------------------


def _to_our_axes(name: str, array: np.ndarray, *, box_resolution: int) -> np.ndarray:
    """Moves axes from [out, in, h, w] and [out, in] to [h, w, in, out] and [in, out].

    Transposed convolutions are [in, out, h, w] there and [h, w, out, in] here: the same move.
    """
    if array.ndim == 4:
        return array.transpose(2, 3, 1, 0)
    if array.ndim != 2:
        return array
    cells = box_resolution**2
    if name == "box_head/fc6/kernel" and array.shape[1] % cells == 0:
        array = array.reshape(len(array), -1, box_resolution, box_resolution)
        return array.transpose(2, 3, 1, 0).reshape(-1, len(array))
    return array.T


def _to_our_order(name: str, array: np.ndarray, layout: str, config: ModelConfig) -> np.ndarray:
    """Reorders colours, classes, anchors and coordinates along the axes they lie on."""
    if name == "backbone/conv1/kernel" and layout in (BENCHMARK, DETECTRON):
        return array[:, :, ::-1]  # blue, green, red there
    layer, _, _ = name.rpartition("/")
    if layer == "box_head/cls_score":
        return np.roll(array, -1, axis=-1)
    if layer == "mask_head/mask_fcn_logits":
        return array[..., 1:]
    if layer == "box_head/bbox_pred" and array.shape[-1] % 4 == 0:
        return _swap_coordinates(array)[..., 4:]
    if layer == "rpn/bbox_pred" and array.shape[-1] == 4 * config.num_anchors_per_cell:
        return _swap_coordinates(array, anchor_order(config))
    if layer == "rpn/cls_logits" and array.shape[-1] == config.num_anchors_per_cell:
        return array[..., anchor_order(config)]
    return array


def _swap_coordinates(array: np.ndarray, order: Sequence[int] | None = None) -> np.ndarray:
    """Turns (tx, ty, tw, th) into (ty, tx, th, tw) and puts boxes into an order."""
    boxes = array.reshape(*array.shape[:-1], -1, 4)[..., [1, 0, 3, 2]]
    boxes = boxes if order is None else boxes[..., list(order), :]
    return boxes.reshape(array.shape)


def anchor_order(config: ModelConfig) -> list[int]:
    """Returns, for each anchor of a cell of ours, its position among those of other programs.

    Ours run over sizes and then aspects, theirs over the ratios 1/2, 1, 2 and then sizes.

    Raises:
      ValueError: our aspects are not those three.
    """
    ratios = [height / width for width, height in config.aspect_ratios]
    positions = [
        min(range(3), key=lambda index: abs(math.log(ratio / _FOREIGN_RATIOS[index])))
        for ratio in ratios
    ]
    errors = [abs(r / _FOREIGN_RATIOS[p] - 1.0) for r, p in zip(ratios, positions)]
    if sorted(positions) != [0, 1, 2] or max(errors) > 0.1:
        raise ValueError(
            f"model.aspect_ratios={config.aspect_ratios}, but the file's anchors have heights of "
            "1/2, 1 and 2 widths: use (1.4, 0.7), (1, 1), (0.7, 1.4) in any order"
        )
    num_sizes = config.num_anchors_per_cell // 3
    return [position * num_sizes + size for size in range(num_sizes) for position in positions]


def _add_statistics(translated: dict[str, Translated]) -> None:
    """Adds mean 0 and variance 1 to batch norms whose statistics are folded into the scale."""
    for name, value in list(translated.items()):
        layer = name.removesuffix("/gamma")
        if layer == name or not re.match(r"^(?:\w*_)?bn\d?$", layer.split("/")[-1]):
            continue
        source = f"{value.source} (folded)"
        zeros = np.zeros_like(value.array)
        translated.setdefault(f"{layer}/moving_mean", Translated(zeros, source))
        translated.setdefault(f"{layer}/moving_variance", Translated(zeros + 1.0, source))


def batch_norm_epsilon(layout: str, names: Iterable[str]) -> float | None:
    """Returns what the file's program adds to variances; None where it is ours.

    Detectron and maskrcnn-benchmark add nothing, nor does torchvision to the detector it publishes.
    """
    if layout in (BENCHMARK, DETECTRON):
        return 0.0
    if layout == TORCHVISION:
        return 0.0 if any(name.startswith("roi_heads.") for name in names) else 1e-5
    return 1e-5 if layout == NGC else None
