"""Recognises whose weights a file holds, and brings them into our names and layout.

Layouts are `ours` and those of `foreign_names`. Also here: what the weights of each demand.

What surprises a newcomer: PyTorch flattens RoI features by channel, row, column and we by row,
column, channel, so that the first dense layer's inputs are permuted, not only transposed.
"""

from __future__ import annotations

import math
import re
from collections.abc import Container, Iterable, Mapping, Sequence

import numpy as np

from detector.weight_loading import Translated, prefer_averages
from maskrcnn.config import (
    IMAGENET_MEAN_RGB,
    IMAGENET_STDDEV_RGB,
    MSRA_MEAN_RGB,
    OUR_CONVENTIONS,
    Conventions,
    ModelConfig,
)
from maskrcnn.weights.foreign_names import (
    BENCHMARK,
    DETECTRON,
    DETECTRON2,
    MATTERPORT,
    MMDETECTION,
    NGC,
    TORCHVISION,
    foreign_name,
)
from object_detection.input.geometry import ANTIALIASED, BILINEAR

OURS = "ours"

CLASS_PREDICTORS = ("box_head/cls_score", "box_head/bbox_pred", "mask_head/mask_fcn_logits")

_MATTERPORT_MEAN_RGB = (123.7, 116.8, 103.9)
_MATTERPORT_RPN_DEVIATIONS = (0.1, 0.1, 0.2, 0.2)
_PARTS = r"(?:backbone|fpn|rpn|box_head|mask_head)/"
_OURS = re.compile(rf"^(?:model/|ema/)?({_PARTS}.+)$")
_V2_MARK = "backbone.fpn.inner_blocks.0.1.running_mean"  # of torchvision's second version
_AVERAGE_PREFIX, _AVERAGE_SUFFIX = "ema/", "/average"
# Ratios height / width of the anchors of all other programs, in their order.
_FOREIGN_RATIOS = (0.5, 1.0, 2.0)


def layout_of(names: Iterable[str]) -> str:
    """Recognises the program that named these arrays; '' if none of the known did."""
    names = set(names)
    if any(name.startswith("resnet50/btlnck_block_") for name in names):
        return NGC
    if "res2_0_branch2a_w" in names:
        return DETECTRON
    if any(name.startswith(("backbone.bottom_up.", "proposal_generator.")) for name in names):
        return DETECTRON2
    if "mrcnn_class_logits/kernel" in names:
        return MATTERPORT
    if "rpn_head.rpn_conv.weight" in names:
        return MMDETECTION
    marks = ("backbone.body.stem.", "backbone.fpn.fpn_", "roi_heads.box.feature_extractor.")
    if any(name.startswith(marks) for name in names):
        return BENCHMARK
    if {"layer1.0.conv1.weight", "backbone.body.layer1.0.conv1.weight"} & names:
        return TORCHVISION
    return OURS if any(_OURS.match(name) for name in names) else ""


def row_of_models(layout: str, names: Container[str]) -> str:
    """Returns the row of models that a file is made for, where its names tell; else ''."""
    if layout == MATTERPORT:
        return f"{'r101' if 'res4w_branch2a/kernel' in names else 'r50'}-fpn-matterport"
    return "r50-fpn-v2" if layout == TORCHVISION and _V2_MARK in names else ""


def conventions_of_layout(layout: str, arrays: Mapping[str, np.ndarray]) -> Conventions | None:
    """Returns what the weights of another program demand; None for ours.

    Detectron's ResNets come from MSRA's, with the stride in the 1x1 convolution; its ResNeXt and
    its networks with group norm have it in the 3x3. Detectron2's are likewise, and its ResNeXt has
    pixels divided by deviations; mmdetection's files are taken for those of its style `pytorch`.
    Whole detectors also demand the anchors, the box coding, the RoIAlign and the resampling that
    they were trained with.
    """
    if layout == NGC:
        return Conventions("same", "3x3", IMAGENET_MEAN_RGB, IMAGENET_STDDEV_RGB)
    if layout == TORCHVISION:
        detector = Conventions(*OUR_CONVENTIONS[:4], "torchvision", 0.0, 0.0, "legacy", BILINEAR)
        return detector if _is_detector(arrays) else detector.of_backbone()
    if layout == MMDETECTION:
        return Conventions(*OUR_CONVENTIONS[:4], "detectron2", 0.0, 0.0, "aligned", BILINEAR)
    if layout == MATTERPORT:
        of_body = ("same_pool", "1x1", _MATTERPORT_MEAN_RGB, (1.0, 1.0, 1.0))
        # Its boxes are in units of the image less one pixel, as if far corners were one nearer.
        return Conventions(*of_body, "detectron2", -1.0, -1.0, "corners", BILINEAR)
    if layout not in (BENCHMARK, DETECTRON, DETECTRON2):
        return None
    is_grouped = any(
        re.search(r"res\d_\d+_branch2b_w$|(?:layer|res)\d\.\d+\.conv2\.weight$", name)
        and array.ndim == 4
        and array.shape[0] != array.shape[1]
        for name, array in arrays.items()
    )
    in_first = not is_grouped and not _has_group_norm(layout, arrays)
    stride_in = "1x1" if in_first else "3x3"
    if layout == DETECTRON2:
        stddev = IMAGENET_STDDEV_RGB if is_grouped else (1.0, 1.0, 1.0)
        of_body = ("symmetric", stride_in, IMAGENET_MEAN_RGB, stddev)
        return Conventions(*of_body, "detectron2", 0.0, 0.0, "aligned", ANTIALIASED)
    of_body = ("symmetric", stride_in, MSRA_MEAN_RGB, (1.0, 1.0, 1.0))
    # Detectron resizes by OpenCV, maskrcnn-benchmark by Pillow, which antialiases.
    resampling = BILINEAR if layout == DETECTRON else ANTIALIASED
    detector = Conventions(*of_body, "detectron", 1.0, 1.0, "legacy", resampling)
    return detector if _is_detector(arrays) else detector.of_backbone()


def _is_detector(names: Iterable[str]) -> bool:
    """Whether a file of another program holds more than a classifier: all detectors have an RPN."""
    return any(re.search(r"(^|[._])rpn[._]", name) for name in names)


def _has_group_norm(layout: str, names: Iterable[str]) -> bool:
    if layout == DETECTRON:
        return any(name.endswith("_gn_s") for name in names)
    # There, a group norm sits in the slot of a batch norm, without statistics.
    return layout == BENCHMARK and not any(name.endswith("running_mean") for name in names)


def translate(
    layout: str, arrays: Mapping[str, np.ndarray], config: ModelConfig
) -> tuple[dict[str, Translated], dict[str, str]]:
    """Renames the arrays of a file to our names and brings them into our layout.

    Args:
      layout: of `layout_of`.
      arrays: as read from the file.
      config: of the network that will receive them.

    Returns:
      {our name: array}, of our files the average where a value has one, and {name in the file: why
      it has no place among ours}. Predictors have the file's classes, in our order: the background
      last or, where we have none, left out.
    """
    if layout == OURS:
        return _translate_ours(arrays)
    has_group_norm = _has_group_norm(layout, arrays)
    translated: dict[str, Translated] = {}
    unused: dict[str, str] = {}
    for source, array in arrays.items():
        name = foreign_name(layout, source, has_group_norm=has_group_norm)
        if name is None:
            is_state = source.endswith(("_momentum", "/Momentum", "num_batches_tracked"))
            unused[source] = "training state" if is_state else "not a variable of this network"
            continue
        if layout not in (NGC, MATTERPORT):
            array = _to_our_axes(name, array, box_resolution=config.box_resolution)
        translated[name] = Translated(_to_our_order(name, array, layout, config), source)
    if layout in (BENCHMARK, DETECTRON):
        _add_statistics(translated)
    if layout == MATTERPORT:
        _fold_biases(translated)
    return translated, unused


def _translate_ours(
    arrays: Mapping[str, np.ndarray],
) -> tuple[dict[str, Translated], dict[str, str]]:
    has_prefixes = any(name.startswith("model/") for name in arrays)
    named: list[tuple[str, Translated]] = []
    unused: dict[str, str] = {}
    for source, array in arrays.items():
        match = _OURS.match(source)
        if match is None or (has_prefixes and not source.startswith(("model/", _AVERAGE_PREFIX))):
            unused[source] = "training state" if has_prefixes else "not a variable of this network"
            continue
        is_average = source.startswith(_AVERAGE_PREFIX) or source.endswith(_AVERAGE_SUFFIX)
        name = match[1].removesuffix(_AVERAGE_SUFFIX)
        named.append((name, Translated(array, source, is_average)))
    return prefer_averages(named, unused), unused


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
    if name == "backbone/conv1/kernel" and layout in (BENCHMARK, DETECTRON, DETECTRON2):
        return array[:, :, ::-1]  # blue, green, red there
    layer, _, _ = name.rpartition("/")
    if layout == MATTERPORT:
        array = _matterport_array(name, array)
    is_ours = layout in (DETECTRON2, MMDETECTION)  # background last, or absent
    if layer == "box_head/cls_score":
        return array if is_ours else np.roll(array, -1, axis=-1)
    if layer == "mask_head/mask_fcn_logits":
        return array if is_ours else array[..., 1:]
    if layer == "box_head/bbox_pred" and array.shape[-1] % 4 == 0:
        array = array if layout == MATTERPORT else _swap_coordinates(array)
        return array[..., 0 if is_ours else 4 :]
    if layer == "rpn/bbox_pred" and array.shape[-1] == 4 * config.num_anchors_per_cell:
        return _swap_coordinates(array, anchor_order(config, layout))
    if layer == "rpn/cls_logits" and array.shape[-1] == config.num_anchors_per_cell:
        return array[..., anchor_order(config, layout)]
    return array


def _matterport_array(name: str, array: np.ndarray) -> np.ndarray:
    """Makes dense layers of convolutions as large as their input, one logit of two.

    Its RPN scores background and object by a softmax, and divides deltas by deviations.
    """
    if name in ("box_head/fc6/kernel", "box_head/fc7/kernel"):
        return array.reshape(-1, array.shape[-1])
    if name.startswith("rpn/cls_logits/"):
        return array[..., 1::2] - array[..., 0::2]
    if name.startswith("rpn/bbox_pred/"):
        deltas = array.reshape(*array.shape[:-1], -1, 4) * np.float32(_MATTERPORT_RPN_DEVIATIONS)
        return _swap_coordinates(deltas.reshape(array.shape))  # as the others have them
    return array


def _fold_biases(translated: dict[str, Translated]) -> None:
    """Takes biases of layers before batch norms off the means, where our layers have none."""
    for name, value in list(translated.items()):
        layer = name.removesuffix("/bias")
        norm = re.sub(r"(^|_|/)conv(\d?)$", r"\1bn\2", layer)
        norm = norm if f"{norm}/moving_mean" in translated else f"{layer}_bn"
        mean = translated.get(f"{norm}/moving_mean")
        if layer != name and mean is not None:
            translated[f"{norm}/moving_mean"] = mean._replace(array=mean.array - value.array)
            del translated[name]


def _swap_coordinates(array: np.ndarray, order: Sequence[int] | None = None) -> np.ndarray:
    """Turns (tx, ty, tw, th) into (ty, tx, th, tw) and puts boxes into an order."""
    boxes = array.reshape(*array.shape[:-1], -1, 4)[..., [1, 0, 3, 2]]
    boxes = boxes if order is None else boxes[..., list(order), :]
    return boxes.reshape(array.shape)


def anchor_order(config: ModelConfig, layout: str = "") -> list[int]:
    """Returns, for each anchor of a cell of ours, its position among those of other programs.

    Ours run over sizes and then aspects, theirs over the ratios 1/2, 1, 2 and then sizes;
    Detectron2's over sizes and then these ratios; matterport's, of one size, over 2, 1, 1/2.

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
    if layout == MATTERPORT:
        positions = [2 - position for position in positions]
    if layout == DETECTRON2:
        return [3 * size + position for size in range(num_sizes) for position in positions]
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

    Detectron and maskrcnn-benchmark add nothing, nor does torchvision to the first version of the
    detector that it publishes; where it trains batch norm it does, and counts batches.
    """
    names = set(names)
    if layout in (BENCHMARK, DETECTRON):
        return 0.0
    if layout == TORCHVISION:
        is_detector = any(name.startswith("roi_heads.") for name in names)
        is_trained = any(name.endswith((_V2_MARK, ".num_batches_tracked")) for name in names)
        return 0.0 if is_detector and not is_trained else 1e-5
    if layout == MATTERPORT:
        return 1e-3
    return 1e-5 if layout in (NGC, DETECTRON2, MMDETECTION) else None
